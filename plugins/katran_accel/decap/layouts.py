# SPDX-License-Identifier: Apache-2.0
"""The maps of bpf/decap: `decap_counters`, `tpr_server_id` and `decap_dst` as published, `decap_drops` nfcore's own."""

from __future__ import annotations

import numpy as np

from nfcore.kernel import MapSpec, MapType

DECAP_COUNTERS = np.dtype([(name, "<u8") for name in ("v4", "v6", "total", "tpr_misrouted", "tpr_total")])
DECAP_DROPS = np.dtype([(name, "<u8") for name in ("fragments", "options", "malformed")])
ADDRESS = np.dtype([("addr", "u1", (16,))])
"""Network byte order; an IPv4 address fills the first four bytes."""
FAMILY_FLAGS = {4: 1 << 30, 6: 1 << 31}
"""IP version → bit of a value of `decap_dst`, nfcore's own: both families share the keys."""
MAX_DESTINATIONS = 512

_U32 = np.dtype("<u4")
COUNTERS = MapSpec("decap_counters", MapType.PERCPU_ARRAY, _U32, DECAP_COUNTERS, 1)
DROPS = MapSpec("decap_drops", MapType.PERCPU_ARRAY, _U32, DECAP_DROPS, 1)
SERVER_ID = MapSpec("tpr_server_id", MapType.ARRAY, _U32, _U32, 1)
DESTINATIONS = MapSpec("decap_dst", MapType.HASH, ADDRESS, _U32, MAX_DESTINATIONS)
