# SPDX-License-Identifier: Apache-2.0
"""What `nfcore trace` says of a packet, by the counters that the model of Katran's data plane raises for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import numpy as np
import pytest

from nfcore.kernel import XdpAction
from nfcore.plugins.katran_accel.layouts import LB_STATS, MAX_VIPS, AccelCounter
from nfcore.plugins.katran_accel.trace_reasons import FrameFacts, Raised, explain
from tests.katran_model import frames
from tests.katran_model.balancer import Balancer, Step
from tests.katran_model.maps import MAX_REALS, FlowKey, Maps, Prefix, Real, VipFlag, VipKey
from tests.katran_model.packet import TCP, UDP
from tests.unit.katran_model.scene import CLIENT, OWN, SERVERS, SYN, VIP, answer, balancer, error, send, tcp, udp

MTU = 1500
SERVER = {number: server for server, number in SERVERS.items()}
STABLE: dict[str, Any] = {"udp_stable_routing": True}
DECAP: dict[str, Any] = {"inline_decap_ipip": True, "inline_decap_gue": True}
OF_REAL_6 = 6
FLOW = FlowKey(CLIENT[4].ljust(16, b"\0"), VIP[4].ljust(16, b"\0"), 31337, 80, TCP)


def raised(program: Balancer, step: Step, *, of_vip: bool = True) -> Raised:
    """What the model counts, as it is read from the maps. It has no counters of paths: `of_vip` stands for them."""
    stats, reals = np.zeros(2 * MAX_VIPS, LB_STATS), np.zeros(MAX_REALS, np.int64)
    accel = np.zeros(len(AccelCounter), np.int64)
    accel[AccelCounter.SLOW] = of_vip
    fields = {"quic_stats_map.cid_invalid_server_id_sample": program.memory.last_invalid_id}
    for name, value in step.counters.published().items():
        found = re.fullmatch(r"(\w+)\[(\d+)\]", name)
        if not found or isinstance(value, int):
            assert isinstance(value, int)
            fields[name] = value
        elif found[1] == "stats":
            stats[int(found[2])] = tuple(value)
        elif found[1] == "reals_stats":
            reals[int(found[2])] = value[0]
        else:
            fields |= {f"{found[1]}.v1": value[0], f"{found[1]}.v2": value[1]}
    return Raised(stats, reals, accel, {name: value for name, value in fields.items() if value})


def quic(server: int, version: int = 2) -> bytes:
    """A packet of QUIC with the id of a server."""
    number = server.to_bytes(3, "big") if version == 2 else server.to_bytes(4, "big")
    return udp(payload=bytes([0x40, version << 6]) + number + bytes(8))


def stable(server: int) -> bytes:
    return udp(payload=b"\x52" + server.to_bytes(3, "big") + b"rest")


def tcp_id(server: int) -> bytes:
    return tcp(options=b"\xb7\6" + server.to_bytes(4, "little") + b"\0\0")


def tunnel(family: int, inner: bytes, gue: bool = False) -> bytes:
    """A packet in a tunnel to the balancer's address."""
    dst = OWN[family][: len(CLIENT[family])]
    return frames.gue(CLIENT[family], dst, 6080, inner) if gue else frames.ipip(CLIENT[family], dst, inner)


@dataclass(frozen=True)
class Case:
    """A packet, and what is said of it."""

    packet: bytes
    why: str
    verdict: XdpAction = XdpAction.TX
    features: Mapping[str, Any] = field(default_factory=dict)
    flags: int = 0
    maps: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the maps that are other ones."""
    before: tuple[bytes, ...] = ()
    """Packets that came first."""
    of_vip: bool = True


PASS, DROP = XdpAction.PASS, XdpAction.DROP
UNKNOWN = {"server_ids": {9: MAX_REALS, 10: 1}}
ALL_LOCAL = {
    "reals": {number: Real(bytes([10, 0, 0, number]) + bytes(12), v6=False, local=True) for number in (1, 2, 3)}
}
ENDS = {"decap_addresses": {(OWN[4], 4): 0, (OWN[6], 6): 2}}
TOO_LONG = udp(payload=bytes(1500))

CASES = {
    "by ring": Case(tcp(), ""),
    "echo request": Case(frames.icmp(CLIENT[4], VIP[4], 8, 0), "an echo request to a VIP: answered", of_vip=False),
    "echo request, v6": Case(
        frames.icmp(CLIENT[6], VIP[6], 128, 0), "an echo request to a VIP: answered", of_vip=False
    ),
    "echo request of nobody": Case(frames.icmp(CLIENT[4], CLIENT[4], 8, 0), "", PASS, of_vip=False),
    "ICMP error": Case(
        frames.icmp(CLIENT[4], VIP[4], 3, 1, 0, answer()), "an ICMP error: goes to the real of the flow that it quotes"
    ),
    "ICMP error with an MTU": Case(
        error(answer()), "an ICMP error that tells an MTU: goes to the real of the flow that it quotes"
    ),
    "ICMP error with a small MTU, v6": Case(
        frames.icmp(CLIENT[6], VIP[6], 2, 0, 1279, answer(6)),
        "an ICMP error that tells an MTU below 1280: goes to the real of the flow that it quotes",
    ),
    "ICMP error of nobody": Case(
        frames.icmp(CLIENT[4], CLIENT[4], 3, 4, 1400, tcp(vip=CLIENT[4])), "", PASS, of_vip=False
    ),
    "too big, answered": Case(
        TOO_LONG, "of 1528 bytes, longer than the MTU: its sender is told", features={"too_big": True}
    ),
    "too big, dropped": Case(TOO_LONG, "of 1528 bytes, longer than the MTU of 1500: dropped", DROP),
    "too big, of nobody": Case(tcp(vip=CLIENT[4])[:34] + bytes(1500), "", PASS, of_vip=False),
    "QUIC id": Case(quic(SERVER[6]), "its QUIC connection id of version 2 names the real", flags=VipFlag.QUIC),
    "QUIC id of version 3": Case(
        quic(10, 3),
        "its QUIC connection id of version 3 names the real",
        features={"hashed_server_ids": True},
        flags=VipFlag.QUIC,
        maps=UNKNOWN,
    ),
    "QUIC id, other than the table": Case(
        quic(SERVER[6]),
        "its QUIC connection id of version 2 names the real; the connection table had another real and was corrected",
        flags=VipFlag.QUIC,
        before=(udp(),),
    ),
    "QUIC id of nobody": Case(
        quic(77),
        "its QUIC connection id has the server id 77, which is none of server_ids",
        flags=VipFlag.QUIC,
    ),
    "QUIC id of an unknown real": Case(
        quic(9),
        "the real of its QUIC connection id does not exist: dropped",
        DROP,
        flags=VipFlag.QUIC,
        maps=UNKNOWN,
    ),
    "QUIC, first packet": Case(
        udp(payload=b"\xc0" + bytes(13)),
        "the first packet of a QUIC flow has no server id yet",
        flags=VipFlag.QUIC,
    ),
    "QUIC without id": Case(udp(payload=b"\x40"), "its QUIC header has no server id", flags=VipFlag.QUIC),
    "stable routing": Case(
        stable(SERVER[6]),
        "its stable-routing id names the real",
        features=STABLE,
        flags=VipFlag.UDP_STABLE_ROUTING,
    ),
    "stable routing, id too large": Case(
        stable(0xFFFFFF),
        "its stable-routing id is none of server_ids",
        features=STABLE,
        flags=VipFlag.UDP_STABLE_ROUTING,
    ),
    "stable routing, unknown real": Case(
        stable(9),
        "the real of its stable-routing id does not exist: dropped",
        DROP,
        STABLE,
        VipFlag.UDP_STABLE_ROUTING,
        UNKNOWN,
    ),
    "stable routing, other payload": Case(
        udp(), "its payload has no stable-routing id", features=STABLE, flags=VipFlag.UDP_STABLE_ROUTING
    ),
    "stable routing, id 0": Case(
        stable(0), "its stable-routing id is 0", features=STABLE, flags=VipFlag.UDP_STABLE_ROUTING
    ),
    "TCP server id": Case(tcp_id(SERVER[6]), "its TCP server id names the real", features={"tcp_server_ids": True}),
    "TCP server id, other than the table": Case(
        tcp_id(SERVER[6]),
        "its TCP server id names the real; the connection table had another real and was corrected",
        features={"tcp_server_ids": True},
        before=(tcp(),),
    ),
    "TCP server id of nobody": Case(
        tcp_id(77), "among its TCP options is no server id of a real", features={"tcp_server_ids": True}
    ),
    "TCP SYN": Case(tcp(flags=SYN), "a SYN has no server id yet", features={"tcp_server_ids": True}),
    "source route": Case(
        tcp(),
        "a source route names the real",
        features={"source_routing": True},
        flags=VipFlag.SOURCE_ROUTING,
        maps={"source_routes": {4: {Prefix.of(ip_network("192.168.0.0/16")): 3}, 6: {}}},
    ),
    "no source route": Case(
        tcp(),
        "no source route fits the client: the ring chose",
        features={"source_routing": True},
        flags=VipFlag.SOURCE_ROUTING,
    ),
    "global table": Case(
        tcp(),
        "a global connection table has the flow",
        features={"global_lru": True},
        flags=VipFlag.GLOBAL_LRU,
        maps={"fallback_global_lru": {FLOW: 2}},
    ),
    "migrated": Case(
        udp(),
        "its real is down: the flow leaves it",
        flags=VipFlag.UDP_MIGRATION,
        maps={"down_reals": {VipKey(FLOW.dst, 80, UDP): {1, 2, 3}}},
        before=(udp(),),
    ),
    "for this host": Case(
        tcp(),
        "its real is this host: passed to the stack",
        PASS,
        {"local_delivery": True},
        VipFlag.LOCAL,
        ALL_LOCAL,
    ),
    "fragment": Case(
        frames.fragment(udp(), 0x2000), "a fragment: goes by its source address alone", features={"fragments": True}
    ),
    "fragment, v6": Case(
        frames.fragment(udp(6), 1), "a fragment: goes by its source address alone", features={"fragments": True}
    ),
    "no reals": Case(tcp(), "the VIP has no real for new flows: dropped", DROP, maps={"rings": {}}),
    "tunnel that ends here": Case(
        tunnel(4, tcp()),
        "taken out of a tunnel over IPv4 that ends here, and the IPv4 packet looked at anew",
        features=DECAP,
        maps=ENDS,
    ),
    "tunnel with a packet for nobody": Case(
        tunnel(4, tcp(6, vip=CLIENT[6])),
        "taken out of a tunnel over IPv4 that ends here, and the IPv6 packet looked at anew; it is no VIP's",
        PASS,
        DECAP,
        maps=ENDS,
        of_vip=False,
    ),
    "tunnel with an echo request": Case(
        tunnel(4, frames.icmp(CLIENT[4], VIP[4], 8, 0)),
        "taken out of a tunnel over IPv4 that ends here, and the IPv4 packet looked at anew; "
        "an echo request to a VIP: answered",
        features=DECAP,
        maps=ENDS,
        of_vip=False,
    ),
    "tunnel with a QUIC id": Case(
        tunnel(4, quic(SERVER[6]), gue=True),
        "taken out of a tunnel over IPv4 that ends here, and the IPv4 packet looked at anew; "
        "its QUIC connection id of version 2 names the real",
        features=DECAP,
        flags=VipFlag.QUIC,
        maps=ENDS,
    ),
    "tunnel of egress": Case(
        tunnel(6, tcp(), gue=True),
        "taken out of a tunnel over IPv6, and the IPv4 packet sent back to where the frame came from",
        features=DECAP,
        maps=ENDS,
        of_vip=False,
    ),
    "tunnel to another address": Case(
        tunnel(4, tcp()),
        "taken out of a tunnel over IPv4, whose address is none of decap.addresses: passed to the stack",
        PASS,
        DECAP,
        of_vip=False,
    ),
    "GUE to another address": Case(
        tunnel(6, tcp(), gue=True),
        "taken out of a tunnel over IPv6, whose address is none of decap.addresses: passed to the stack; "
        "although it is for a VIP",
        PASS,
        DECAP,
        of_vip=False,
    ),
    "tunnel, TTL over": Case(
        tunnel(4, tcp()[:8] + b"\1" + tcp()[9:]),
        "taken out of a tunnel over IPv4, and its TTL is over: dropped",
        DROP,
        DECAP,
        maps=ENDS,
        of_vip=False,
    ),
    "tunnel without a packet": Case(
        tunnel(4, tcp()[:15]),
        "a tunnel ends here, but there is no whole packet in it",
        DROP,
        DECAP,
        maps=ENDS,
        of_vip=False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_said_of_a_packet(name: str) -> None:
    case = CASES[name]
    program = balancer(case.features, case.flags)
    for attribute, value in case.maps.items():
        assert hasattr(Maps(), attribute)
        setattr(program.maps, attribute, value)
    for packet in case.before:
        send(program, packet)
    step = send(program, case.packet)
    verdict = XdpAction[step.verdict.name]
    why = explain(raised(program, step, of_vip=case.of_vip), FrameFacts.of(frames.ethernet(case.packet)), verdict, MTU)
    assert (verdict, why) == (case.verdict, case.why)


def test_each_counter_of_marks_has_its_reason() -> None:
    program = balancer()
    step = send(program, tcp())
    for counter, word in ((AccelCounter.STALE, "changed since"), (AccelCounter.MALFORMED, "truncated")):
        found = raised(program, step)
        found.accel[counter] = 1
        assert word in explain(found, FrameFacts.of(frames.ethernet(tcp())), XdpAction.TX, MTU)


@pytest.mark.parametrize("tags", [(), ((0x8100, 7),), ((0x88A8, 7), (0x8100, 8))])
def test_tags_are_not_the_packet(tags: tuple[tuple[int, int], ...]) -> None:
    echo = FrameFacts.of(frames.ethernet(frames.icmp(CLIENT[6], VIP[6], 128, 0), tags))
    assert echo == FrameFacts(48, is_echo_request=True)
    assert FrameFacts.of(frames.ethernet(frames.fragment(udp(), 0x2000), tags)).is_fragment
    assert FrameFacts.of(frames.ethernet(error(answer()), tags)).is_icmp_error


def test_a_frame_may_end_anywhere() -> None:
    for packet in (error(answer()), error(answer(6)), frames.fragment(udp(6), 1), tcp()):
        frame = frames.ethernet(packet, ((0x88A8, 7), (0x8100, 8)))
        for size in range(14, len(frame)):
            assert 0 <= FrameFacts.of(frame[:size]).ip_bytes <= len(packet) + 8
