# SPDX-License-Identifier: Apache-2.0
"""The maps of bpf/decap: `decap_counters`, `tpr_server_id` and `decap_dst` as published, `decap_drops` nfcore's own."""

from __future__ import annotations

import numpy as np

from nfcore.kernel import MapSpec, MapType

from ..layouts import ADDRESS, MAX_DECAP_ADDRESSES

DECAP_COUNTERS = np.dtype([(name, "<u8") for name in ("v4", "v6", "total", "tpr_misrouted", "tpr_total")])
DECAP_DROPS = np.dtype([(name, "<u8") for name in ("fragments", "options", "malformed")])
_U32 = np.dtype("<u4")
COUNTERS = MapSpec("decap_counters", MapType.PERCPU_ARRAY, _U32, DECAP_COUNTERS, 1)
DROPS = MapSpec("decap_drops", MapType.PERCPU_ARRAY, _U32, DECAP_DROPS, 1)
SERVER_ID = MapSpec("tpr_server_id", MapType.ARRAY, _U32, _U32, 1)
DESTINATIONS = MapSpec("decap_dst", MapType.HASH, ADDRESS, _U32, MAX_DECAP_ADDRESSES)
"""Also of the balancer, whose tunnels may end at its own addresses."""
