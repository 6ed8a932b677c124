# SPDX-License-Identifier: Apache-2.0
"""The maps of bpf/healthcheck, as published, as numpy dtypes.

Addresses and ports are in network byte order; an IPv4 address fills the first four bytes.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from nfcore.kernel import MapSpec, MapType

HC_ADDRESS = np.dtype([("addr", "u1", (16,)), ("flags", "u1"), ("pad", "u1", (3,))])
HC_MAC = np.dtype([("mac", "u1", (6,))])
HC_KEY = np.dtype([("addr", "u1", (16,)), ("port", ">u2"), ("proto", "u1"), ("pad", "u1")])
HC_STATS = np.dtype(
    [(name, "<u8") for name in ("processed", "dropped", "skipped", "too_big", "dst_matched", "src_matched")]
)
IPV6_FLAG = 1
"""Of HC_ADDRESS."""
OUT_INTERFACE = 3
"""Slot of `hc_ctrl_map`."""
MAX_REALS = 4096
MAX_KEYS = 512


class SourceSlot(IntEnum):
    """Slots of `hc_pckt_srcs_map`."""

    IPV4 = 0
    IPV6 = 1


class MacSlot(IntEnum):
    """Slots of `hc_pckt_macs`."""

    SOURCE = 0
    DESTINATION = 1


_U32, _U64 = np.dtype("<u4"), np.dtype("<u8")
SPECS = {
    spec.name: spec
    for spec in (
        MapSpec("hc_ctrl_map", MapType.ARRAY, _U32, _U32, 4),
        MapSpec("hc_reals_map", MapType.HASH, _U32, HC_ADDRESS, MAX_REALS),
        MapSpec("hc_pckt_srcs_map", MapType.ARRAY, _U32, HC_ADDRESS, len(SourceSlot)),
        MapSpec("hc_pckt_macs", MapType.ARRAY, _U32, HC_MAC, len(MacSlot)),
        MapSpec("hc_stats_map", MapType.PERCPU_ARRAY, _U32, HC_STATS, 1),
        MapSpec("hc_key_map", MapType.HASH, HC_KEY, _U32, MAX_KEYS),
        MapSpec("per_hckey_stats", MapType.PERCPU_ARRAY, _U32, _U64, MAX_KEYS),
    )
}
