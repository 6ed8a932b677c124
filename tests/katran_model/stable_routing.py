# SPDX-License-Identifier: Apache-2.0
"""UDP stable routing: the real that the payload's first bytes name."""

from __future__ import annotations

from .maps import Vip, VipFlag
from .packet import UDP, Outcome, Packet, Verdict, number
from .run import Run

STATS = "stable_rt_stats"
_TYPE = 0x52
_HEADER = 8


def route(run: Run, packet: Packet, vip: Vip) -> int | Outcome | None:
    """Number of the real by the id; None: by connection table or ring."""
    wanted = run.features.udp_stable_routing and vip.flags & VipFlag.UDP_STABLE_ROUTING
    if not wanted or packet.flow_protocol != UDP or packet.icmp is not None:
        return None
    payload = packet.frame[packet.payload :]
    if len(payload) < _HEADER or payload[0] != _TYPE:
        run.counters.field(f"{STATS}.invalid_packet_type")
        run.counters.field(f"{STATS}.ch_routed")
        return None
    server = number(payload[1:4])
    if not server:
        run.counters.field(f"{STATS}.ch_routed")
        return None
    return _real_of(run, packet, server)


def _real_of(run: Run, packet: Packet, server: int) -> int | Outcome | None:
    real = run.maps.server_id(server, run.features.hashed_server_ids)
    if real is None:
        run.counters.field(f"{STATS}.cid_invalid_server_id")
        run.counters.field(f"{STATS}.ch_routed")
        return None
    if not real:
        return None
    if run.maps.real(real):
        run.counters.field(f"{STATS}.cid_routed")
        return real
    run.counters.field(f"{STATS}.cid_unknown_real_dropped")
    return None if run.quirks.stable_unknown_real_goes_on else packet.outcome(Verdict.DROP)
