# SPDX-License-Identifier: Apache-2.0
"""The balancer: one frame in, a verdict and a frame out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from . import connections, quic, stable_routing, tcp_server_ids
from .counters import Counters, Stat
from .encapsulation import encapsulate
from .features import Features
from .hashing import flow_slot
from .icmp import is_icmp, read_icmp
from .inline_decap import Again, inline_decap
from .maps import FlowKey, Maps, Memory, Vip, VipFlag, VipKey
from .packet import IPIP, IPV6, RST, TCP, Outcome, Packet, Verdict, has_ports, read_header, read_ip
from .run import NEW_TCP, Event, Run
from .too_big import is_too_big, tell_client
from .unfit import can_hash_addresses, is_unfit, verdict_of_unfit
from .vip import find_vip, vip_of_address

_VERDICT_SLOTS = {Verdict.TX: Stat.TX, Verdict.DROP: Stat.DROP, Verdict.PASS: Stat.PASS}
_MOST_RUNS = 34
"""The first, and 33 tail calls, which the kernel allows: then what is inside is passed."""


class Step(NamedTuple):
    """What became of a frame."""

    verdict: Verdict
    frame: bytes
    """Means nothing when it was dropped."""
    counters: Counters
    """What it has added."""
    events: list[Event]


@dataclass
class Balancer:
    """The program with its maps. `maps` may be changed, and replaced, between frames."""

    features: Features
    maps: Maps
    memory: Memory = field(default_factory=Memory)
    total: Counters = field(default_factory=Counters)

    def step(self, frame: bytes, cpu: int = 0, now: int = 0) -> Step:
        """Balance a frame, on a CPU at a time in nanoseconds."""
        run = Run(self.features, self.maps, self.memory, cpu, now)
        outcome = _run(run, frame)
        self.total.merge(run.counters)
        return Step(*outcome, run.counters, run.events)


def _run(run: Run, frame: bytes) -> Outcome:
    for left in reversed(range(_MOST_RUNS)):
        if len(frame) < 14:
            return Outcome(Verdict.DROP, frame)
        run.counters.stat(Stat.TOTAL, 1, len(frame))
        result = _process(run, frame)
        if not isinstance(result, Again):
            break
        if left:
            frame = result.frame
    if isinstance(result, Again):
        result = Outcome(Verdict.PASS, result.frame)
    elif isinstance(result, Verdict):
        result = Outcome(result, frame)
    run.counters.stat(_VERDICT_SLOTS[result.verdict], 1, len(frame))
    return result


def _process(run: Run, frame: bytes) -> Outcome | Again | Verdict:
    packet = read_ip(frame, run.features)
    if isinstance(packet, Verdict):
        return packet
    if run.features.fragments and can_hash_addresses(packet):
        return _balance_fragment(run, packet)
    if is_unfit(packet):
        read_header(packet)
        return verdict_of_unfit(run, packet)
    return _by_protocol(run, packet)


def _by_protocol(run: Run, packet: Packet) -> Outcome | Again | Verdict:
    if is_icmp(packet) and run.features.icmp:
        return read_icmp(run, packet) or _balance(run, packet)
    if packet.protocol in (IPIP, IPV6):
        return inline_decap(run, packet) or Verdict.PASS
    if not has_ports(packet):
        return Verdict.PASS
    if not read_header(packet):
        return verdict_of_unfit(run, packet)
    return inline_decap(run, packet) or _balance(run, packet)


def _balance(run: Run, packet: Packet) -> Outcome:
    """What has ports, its own or those of a quoted packet, goes to a real."""
    packet.spread_src, packet.spread_sport = packet.src, packet.sport
    found = find_vip(run, packet)
    if not found:
        return packet.outcome(Verdict.PASS)
    vip, key = found
    if is_too_big(run, packet):
        return tell_client(run, packet)
    if not run.quirks.outer_sport_unhidden:
        packet.spread_sport = packet.hash_sport
    run.counters.stat(Stat.LRU, v1=1)
    number = _choose(run, packet, vip, key)
    return number if isinstance(number, Outcome) else _send(run, packet, vip, number)


def _balance_fragment(run: Run, packet: Packet) -> Outcome:
    """What may have no ports goes to the real that the ring has for the source address alone, and is not remembered."""
    vip = vip_of_address(run, packet, packet.protocol)
    if not vip:
        return packet.outcome(Verdict.PASS)
    if is_too_big(run, packet):
        return tell_client(run, packet)
    packet.spread_src = packet.src
    ring = run.maps.rings.get(vip.number)
    number = ring[flow_slot(packet.family, packet.src, 0, 0)] if ring else 0
    if not run.maps.real(number):
        return _no_real(run, packet, number)
    return _send(run, packet, vip, number)


def _choose(run: Run, packet: Packet, vip: Vip, key: VipKey) -> int | Outcome:
    """Number of the real: by an id, by what is known of the flow, or new."""
    table = connections.table_of(run)
    number = quic.route(run, packet, vip, table)
    if number is None:
        number = stable_routing.route(run, packet, vip)
    if number is None:
        number = tcp_server_ids.route(run, packet, vip, table)
    if number is not None:
        return number
    if vip.flags & VipFlag.HASH_DPORT_ONLY and not run.quirks.dport_only_forgets:
        packet.spread_src = bytes(16)
    number = connections.find(run, packet, vip, table)
    if connections.is_migrated(run, packet, vip, key, number):
        number = None
    return _decide(run, packet, vip, key, table) if number is None else number


def _decide(run: Run, packet: Packet, vip: Vip, key: VipKey, table: connections.Table) -> int | Outcome:
    """Number of the real of a new flow, by source route or ring; the flow gets its entry."""
    connections.count_miss(run, packet)
    if packet.flow_protocol == TCP and not packet.syn:
        run.sample(NEW_TCP, packet.frame)
    flood = connections.is_flood(run)
    flow = connections.key_of(run, packet)
    number = None if flood else _by_source(run, packet, vip)
    if number is None:
        number, flow = _by_ring(run, packet, vip)
    found = number and run.maps.real(number)
    if found or run.quirks.misses_before_ring:
        run.counters.stat(Stat.LRU, v2=1)
    if not number or not found:
        return _no_real(run, packet, number or 0)
    if run.maps.vip_of_misses == key:
        run.counters.field(f"lru_miss_stats[{number}]")
    if not (flood or packet.flags & RST or vip.flags & VipFlag.LRU_BYPASS):
        connections.store(run, packet, flow, table, number)
    return number


def _no_real(run: Run, packet: Packet, number: int) -> Outcome:
    """The ring has nothing for the packet, or the number of a real that is not there."""
    run.counters.stat(Stat.RING_DROP, int(bool(number)), int(not number))
    return packet.outcome(Verdict.DROP)


def _by_source(run: Run, packet: Packet, vip: Vip) -> int | None:
    if not run.features.source_routing or not vip.flags & VipFlag.SOURCE_ROUTING:
        return None
    fitting = [
        (prefix.bits, number)
        for prefix, number in run.maps.source_routes[packet.family].items()
        if prefix.has(packet.src)
    ]
    run.counters.stat(Stat.SOURCE_ROUTE, int(not fitting), int(bool(fitting)))
    return max(fitting)[1] if fitting else None


def _by_ring(run: Run, packet: Packet, vip: Vip) -> tuple[int, FlowKey]:
    """What the ring has for a flow, and the flow as it is to be stored."""
    flow, hashed = connections.key_of(run, packet), packet.published_key
    if vip.flags & VipFlag.HASH_DPORT_ONLY:
        hashed = hashed._replace(src=bytes(16), sport=hashed.dport)
        if run.quirks.dport_only_forgets:
            flow, packet.spread_src = hashed, bytes(16)
    ring = run.maps.rings.get(vip.number)
    slot = flow_slot(packet.family, hashed.src, hashed.sport, hashed.dport)
    return ring[slot] if ring else 0, flow


def _send(run: Run, packet: Packet, vip: Vip, number: int) -> Outcome:
    """Count a packet for VIP and real, and send it."""
    real = run.maps.real(number)
    assert real, "looked up when it was chosen"
    run.counters.stat(vip.number, 1, packet.ip_bytes)
    run.counters.add("reals_stats", number, 1, packet.ip_bytes)
    if run.features.local_delivery and vip.flags & VipFlag.LOCAL and real.local:
        return packet.outcome(Verdict.PASS)
    frame = encapsulate(run, packet, real)
    if frame is None:
        run.counters.family(Stat.ENCAP_FAIL, packet.family)
        return packet.outcome(Verdict.DROP)
    return Outcome(Verdict.TX, frame)
