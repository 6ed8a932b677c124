# SPDX-License-Identifier: Apache-2.0
"""QUIC: the real that a connection id names."""

from __future__ import annotations

from . import connections
from .counters import Stat
from .maps import Vip, VipFlag
from .packet import UDP, Outcome, Packet, Verdict, number
from .run import NO_SUCH_REAL, Run

STATS = "quic_stats_map"
_LONG, _TYPE, _INITIALS = 0x80, 0x30, (0x00, 0x10)
_IGNORABLE = {4: (1, 3), 6: (3, 4)}
"""Family → codes of ICMP errors that are counted apart."""
_INITIAL = "initial"


def route(run: Run, packet: Packet, vip: Vip, table: connections.Table) -> int | Outcome | None:
    """Number of the real by the id; None: by connection table or ring."""
    if not vip.flags & VipFlag.QUIC or packet.flow_protocol != UDP:
        return None
    if packet.icmp is not None:
        run.counters.stat(Stat.QUIC_ICMP, 1, int(packet.icmp in _IGNORABLE[packet.family]))
        return None
    found = _connection_id(packet.frame[packet.payload :])
    if found is _INITIAL:
        run.counters.field(f"{STATS}.cid_initial")
        run.counters.add("server_id_stats", vip.number, v1=1)
        return None
    version, server = _server_id(found) if isinstance(found, bytes) else (0, 0)
    if server <= 0:
        run.counters.field(f"{STATS}.ch_routed")
        return None
    run.counters.field(f"{STATS}.cid_v{version}")
    return _real_of(run, packet, vip, table, server)


def _connection_id(payload: bytes) -> bytes | str | None:
    """8 bytes, that it is a first packet, or None."""
    if payload[:1] < bytes([_LONG]):
        return payload[1:9] if len(payload) >= 9 else None
    if len(payload) < 14:
        return None
    if payload[0] & _TYPE in _INITIALS:
        return _INITIAL
    return payload[6:14] if payload[5] >= 8 else None


def _server_id(connection_id: bytes) -> tuple[int, int]:
    """Version, and the server id; 0 or less: none."""
    version = connection_id[0] >> 6
    if version == 1:
        return version, number(connection_id[:3]) >> 6 & 0xFFFF
    if version == 2:
        return version, number(connection_id[1:4])
    if version == 3:
        return version, int.from_bytes(connection_id[1:5], "big", signed=True)
    return version, 0


def _real_of(run: Run, packet: Packet, vip: Vip, table: connections.Table, server: int) -> int | Outcome | None:
    real = run.maps.server_id(server, run.features.hashed_server_ids)
    if not real:
        run.counters.field(f"{STATS}.cid_invalid_server_id")
        run.counters.field(f"{STATS}.ch_routed")
        run.memory.last_invalid_id = server
        return None
    if not run.maps.real(real):
        run.counters.field(f"{STATS}.cid_unknown_real_dropped")
        run.sample(NO_SUCH_REAL, packet.frame)
        return packet.outcome(Verdict.DROP)
    run.counters.field(f"{STATS}.cid_routed")
    same = connections.correct(run, packet, table, real)
    result = {True: "dst_match_in_lru", False: "dst_mismatch_in_lru", None: "dst_not_found_in_lru"}[same]
    run.counters.field(f"{STATS}.{result}")
    if same is False:
        run.counters.add("server_id_stats", vip.number, v2=1)
    return real
