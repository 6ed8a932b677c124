# SPDX-License-Identifier: Apache-2.0
"""TCP server ids: the real that an option of the TCP header names."""

from __future__ import annotations

from . import connections
from .maps import Vip, VipFlag
from .packet import TCP, Packet
from .run import Run

STATS = "tpr_stats_map"
_KIND, _LENGTH = 0xB7, 6
_END, _NOTHING = 0, 1
_MOST_OPTIONS = 15


def route(run: Run, packet: Packet, vip: Vip, table: connections.Table) -> int | None:
    """Number of the real by the id; None: by connection table or ring."""
    if not run.features.tcp_server_ids or packet.flow_protocol != TCP or packet.icmp is not None:
        return None
    if packet.syn:
        run.counters.field(f"{STATS}.tcp_syn")
        run.counters.add("server_id_stats", vip.number, v1=1)
        return None
    server = server_id(packet)
    real = run.maps.server_id(server, run.features.hashed_server_ids) if server else None
    if not real or not run.maps.real(real):
        run.counters.field(f"{STATS}.ch_routed")
        return None
    run.counters.field(f"{STATS}.sid_routed")
    if not vip.flags & VipFlag.LRU_BYPASS and connections.correct(run, packet, table, real) is False:
        run.counters.field(f"{STATS}.dst_mismatch_in_lru")
        run.counters.add("server_id_stats", vip.number, v2=1)
    return real


def server_id(packet: Packet) -> int:
    """The id in a TCP header's options; 0: none."""
    size = (packet.frame[packet.l4 + 12] >> 4) * 4 - 20
    if size < _LENGTH:
        return 0
    options = packet.frame[packet.payload : packet.payload + size]
    for _ in range(_MOST_OPTIONS):
        if options[:1] == bytes([_NOTHING]):
            options = options[1:]
            continue
        if len(options) < 2 or options[0] == _END or not 2 <= options[1] <= len(options):
            return 0
        if options[0] == _KIND:
            return int.from_bytes(options[2:6], "little") if options[1] == _LENGTH else 0
        options = options[options[1] :]
    return 0
