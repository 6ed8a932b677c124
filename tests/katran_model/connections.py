# SPDX-License-Identifier: Apache-2.0
"""Connection tables, the local ones and the global ones, and the flood limit. Nothing is ever pushed out here."""

from __future__ import annotations

from .counters import Stat
from .maps import Connection, FlowKey, Vip, VipFlag, VipKey
from .packet import TCP, UDP, Packet
from .run import Run

IDLE_LIMIT = 30_000_000_000
WINDOW = 1_000_000_000
MOST_NEW_FLOWS = 125_000
"""Per window and CPU."""
_SHARED = -1

Table = dict[FlowKey, Connection]


def table_of(run: Run) -> Table:
    """The table of this CPU, or that of all CPUs without one."""
    own = run.cpu in run.maps.lru_cpus
    if not own:
        run.counters.stat(Stat.NO_LRU, v1=1)
    return run.memory.tables.setdefault(run.cpu if own else _SHARED, {})


def key_of(run: Run, packet: Packet) -> FlowKey:
    """The flow's key in the local tables."""
    if run.quirks.equal_hashes_share_entry:
        return packet.published_key
    family = 0 if run.quirks.families_share_keys else packet.family
    return FlowKey(packet.src, packet.dst, packet.sport, packet.dport, packet.flow_protocol, family)


def find(run: Run, packet: Packet, vip: Vip, table: Table) -> int | None:
    """Number of the real that a flow has. A SYN begins a new flow."""
    if packet.syn:
        return None
    number = None if vip.flags & VipFlag.LRU_BYPASS else _find_local(run, packet, table)
    if number is None and run.features.global_lru and vip.flags & VipFlag.GLOBAL_LRU:
        number = _find_global(run, packet)
    return number


def _find_local(run: Run, packet: Packet, table: Table) -> int | None:
    entry = table.get(key_of(run, packet))
    if entry is None:
        return None
    if packet.flow_protocol == UDP:
        if run.now - entry.atime > IDLE_LIMIT:
            return None
        entry.atime = run.now
    return entry.real if run.maps.real(entry.real) else None


def _find_global(run: Run, packet: Packet) -> int | None:
    flows = run.maps.global_lrus.get(run.cpu)
    if flows is None:
        run.counters.stat(Stat.GLOBAL_LRU, v1=1)
        flows = run.maps.fallback_global_lru
    number = flows.get(packet.published_key)
    if number is None or not run.maps.real(number):
        return None
    run.counters.stat(Stat.GLOBAL_LRU, v2=1)
    return number


def is_flood(run: Run) -> bool:
    """Count an event of a new flow; whether there were too many within the second."""
    count, start = run.memory.windows.get(run.cpu, (0, 0))
    count, start = (1, run.now) if run.now - start > WINDOW else (count + 1, start)
    run.memory.windows[run.cpu] = count, start
    return count > MOST_NEW_FLOWS


def store(run: Run, packet: Packet, key: FlowKey, table: Table, number: int) -> None:
    """Store what the ring, or a source route, has decided."""
    table[key] = Connection(number, run.now if packet.flow_protocol == UDP else 0)


def correct(run: Run, packet: Packet, table: Table, number: int) -> bool | None:
    """Let a flow's entry have the real that an id names: whether it had that real; None: there was no entry."""
    key = key_of(run, packet)
    entry = table.get(key)
    if entry is None:
        if not is_flood(run):
            table[key] = Connection(number, 0)
        return None
    same = entry.real == number
    entry.real = number
    return same


def is_migrated(run: Run, packet: Packet, vip: Vip, key: VipKey, number: int | None) -> bool:
    """Whether a UDP flow has to leave its real because that is down."""
    if packet.flow_protocol != UDP or not vip.flags & VipFlag.UDP_MIGRATION or is_flood(run):
        return False
    if (number or 0) not in run.maps.down_reals.get(key, ()):
        return False
    run.counters.stat(Stat.MIGRATED, v1=1)
    return True


def count_miss(run: Run, packet: Packet) -> None:
    """Count a TCP packet whose flow is new to this CPU."""
    if packet.flow_protocol == TCP:
        run.counters.stat(Stat.TCP_MISS, int(packet.syn), int(not packet.syn))
