# SPDX-License-Identifier: Apache-2.0
"""Masked rules in the emulated NIC: what they match, whatever the packet; how shapes come and go."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from nfcore.api.flows import FLOW_KEY, Anything, FlowMatch, Wild
from nfcore.api.rules import Drop, Outcome, Rule, RuleBatch, SetMark
from nfcore.errors import HostError
from nfcore.kernel import Map, Program, remove_bpffs
from nfcore.plugins.softnic.backend import SoftnicBackend
from nfcore.plugins.softnic.layouts import LINKS_SPEC, SHAPES, SHAPES_SPEC, STATS_SPEC, rules_spec
from nfcore.plugins.softnic.nic import load_program

from .pins import Pins

TABLE = 1000
Nic = tuple[SoftnicBackend, Program]


@pytest.fixture(scope="module")
def opened() -> Iterator[tuple[dict[str, Map], Nic]]:
    maps = {spec.name: Map.create(spec) for spec in (rules_spec(TABLE), SHAPES_SPEC, STATS_SPEC, LINKS_SPEC)}
    for link in (0, 1):
        maps["softnic_links"].update(link, 1)  # towards the loopback interface: a test run redirects nothing
    with load_program("softnic_wire", maps) as program:
        yield maps, (SoftnicBackend(maps["softnic_rules"], maps["softnic_shapes"], maps["softnic_stats"]), program)
    for each in maps.values():
        each.close()


@pytest.fixture
def nic(opened: tuple[dict[str, Map], Nic]) -> Nic:
    _, nic = opened
    clear(nic[0])
    return nic


def clear(backend: SoftnicBackend) -> None:
    backend.remove(RuleBatch(np.ascontiguousarray(backend.dump()["rule"])))


def rule(text: str, mark: int, cookie: int = 0) -> Rule:
    """A rule that marks; mark 0: one that drops."""
    return Rule(FlowMatch.parse(text), SetMark(mark) if mark else Drop(), cookie or mark)


def mark_of(program: Program, packet: Packet) -> int | None:
    """The mark that a packet gets; 0: none; None: it is dropped."""
    run = program.test_run(bytes(Ether(src="02:00:5e:00:00:02", dst="02:00:5e:00:00:01") / packet).ljust(60, b"\0"))
    if run.verdict.name == "XDP_DROP":
        return None
    assert run.verdict.name == "XDP_REDIRECT"
    return int.from_bytes(run.metadata, "little")


def shapes_in_use(maps: dict[str, Map]) -> int:
    (value,) = maps["softnic_shapes"].read_array()
    assert not value["shapes"]["family"][value["count"] :].any()
    return int(np.count_nonzero(value["shapes"]["family"]))


V4 = IP(src="198.18.1.2", dst="198.19.1.2")
V6 = IPv6(src="2001:db8:1::2", dst="2001:db8:2::2")
ENDS4, ENDS6 = "198.18.1.0/24:{} > 198.19.1.2:{}/{}", "[2001:db8:1::/64]:{} > [2001:db8:2::2]:{}/{}"
LAYER4 = TCP(sport=7, dport=80)
EXACT = "198.18.1.2:7 > 198.19.1.2:80/tcp"
ODD = [
    (V4 / ICMP(), 1),
    (V4 / Raw(b"x"), 0),
    (IP(src=V4.src, dst=V4.dst, flags="MF") / LAYER4, 6),
    (IP(src=V4.src, dst=V4.dst, frag=9, proto=6) / Raw(b"12345678"), 6),
    (IP(src=V4.src, dst=V4.dst, options=b"\1\1\1\1") / LAYER4, 6),
    (IP(src=V4.src, dst=V4.dst, proto=6) / Raw(b"short"), 6),
    (IP(src=V4.src, dst=V4.dst, proto=132) / Raw(bytes(30)), 132),
    (V6 / IPv6ExtHdrHopByHop() / LAYER4, 6),
    (V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt() / LAYER4, 6),
    (V6 / IPv6ExtHdrFragment(m=1) / UDP(sport=7, dport=80), 17),
    (V6 / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(offset=3, nh=6) / Raw(bytes(40)), 6),
    # What follows in a later fragment is no header, whatever its first one was.
    (V6 / IPv6ExtHdrFragment(offset=3, nh=60) / Raw(b"\x06\0" + bytes(38)), 60),
    (IPv6(src=V6.src, dst=V6.dst, nh=58) / Raw(bytes(8)), 58),
]
"""Packets whose ports a NIC does not know, and their protocol."""


@pytest.mark.parametrize(("packet", "proto"), ODD, ids=[packet.summary() for packet, _ in ODD])
def test_a_packet_without_ports_has_addresses_and_a_protocol(nic: Nic, packet: Packet, proto: int) -> None:
    backend, program = nic
    ends = ENDS4 if isinstance(packet, IP) else ENDS6
    # With a port it is never matched; with another protocol neither.
    for never in ((7, "*", "tcp"), ("*", 80, "tcp"), (7, "*", "udp"), ("*", 80, "udp"), ("*", "*", 99)):
        backend.install(RuleBatch.of([rule(ends.format(*never), 5)]))
    assert mark_of(program, packet) == 0
    for mark, text in ((1, ends.format("*", "*", proto)), (2, ends.format("*", "*", "*"))):
        added = RuleBatch.of([rule(text, mark)])
        assert backend.install(added).status.tolist() == [Outcome.INSTALLED]
        assert mark_of(program, packet) == mark
        assert backend.remove(added).counted.tolist()[0][0] == 1  # type: ignore[union-attr]
    backend.install(RuleBatch.of([rule(ends.format("*", "*", "*"), 0, cookie=9)]))
    assert mark_of(program, packet) is None


TAGGED = [Dot1Q(vlan=5), Dot1AD(vlan=5) / Dot1Q(vlan=6), Dot1AD(vlan=0) / Dot1Q(vlan=6)]


@pytest.mark.parametrize("tags", TAGGED, ids=[tags.summary() for tags in TAGGED])
def test_a_frame_with_tags_matches_no_masked_rule(nic: Nic, tags: Packet) -> None:
    backend, program = nic
    masked = rule(ENDS4.format("*", "*", "*"), 1)
    backend.install(RuleBatch.of([masked, Rule(FlowMatch.parse(EXACT), SetMark(2), 2)]))
    assert mark_of(program, V4 / LAYER4) == 2
    assert mark_of(program, V4 / ICMP()) == 1
    assert mark_of(program, tags / V4 / LAYER4) == 0
    assert mark_of(program, tags / V4 / ICMP()) == 0


def test_a_frame_with_a_priority_alone_has_no_tag(nic: Nic) -> None:
    backend, program = nic
    backend.install(RuleBatch.of([Rule(FlowMatch.parse(EXACT), SetMark(2), 2)]))
    assert mark_of(program, Dot1Q(vlan=0, prio=5) / V4 / LAYER4) == 2
    assert mark_of(program, Dot1Q(vlan=1, prio=5) / V4 / LAYER4) == 0


def test_of_three_tags_none_is_matched(nic: Nic) -> None:
    backend, program = nic
    backend.install(RuleBatch.of([Rule(FlowMatch.parse(EXACT), SetMark(2), 2, (5, 6))]))
    assert mark_of(program, Dot1Q(vlan=5) / Dot1Q(vlan=6) / V4 / LAYER4) == 2
    assert mark_of(program, Dot1Q(vlan=5) / Dot1Q(vlan=6) / Dot1Q(vlan=7) / V4 / LAYER4) == 0


@pytest.mark.parametrize("length", range(14, 23))
def test_a_frame_may_end_within_its_tags(nic: Nic, length: int) -> None:
    _, program = nic
    frame = bytes(Ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / V4 / LAYER4)
    assert program.test_run(frame[:length]).verdict.name == "XDP_REDIRECT"


def test_what_cannot_match_is_unsupported(nic: Nic) -> None:
    backend, _ = nic
    src, dst = ipaddress.ip_address("198.18.1.0"), ipaddress.ip_address("198.19.1.2")
    matches = [
        FlowMatch.parse(ENDS4.format("*", 80, "*")),
        FlowMatch.parse(ENDS4.format(7, 80, 47)),
        FlowMatch.parse("198.18.1.2:7 > 198.19.1.2:80/1"),
        FlowMatch(src, dst, 6, 7, 80, Wild(src=33)),
        FlowMatch(src, dst, 6, 7, 80, Wild(8, 0, Anything(8))),
    ]
    good = FlowMatch.parse(ENDS4.format("*", "*", 47))
    rules = [Rule(good, SetMark(1), 1, (5, 0)), *(Rule(match, SetMark(1), 1) for match in [*matches, good])]
    outcomes = backend.install(RuleBatch.of(rules))
    assert outcomes.status.tolist() == [Outcome.UNSUPPORTED] * (len(matches) + 1) + [Outcome.INSTALLED]
    said = "softnic: a rule matches TCP or UDP, or leaves both ports open; with VLAN tags it is not masked"
    assert outcomes.messages == {0: said}


def test_the_exact_rule_comes_first(nic: Nic) -> None:
    backend, program = nic
    backend.install(RuleBatch.of([rule(ENDS4.format("*", 80, "tcp"), 1), rule("198.18.1.2:7 > 198.19.1.2:80/tcp", 2)]))
    assert mark_of(program, V4 / LAYER4) == 2
    assert mark_of(program, V4 / TCP(sport=8, dport=80)) == 1


def test_shapes_are_forgotten_with_their_last_rule(opened: tuple[dict[str, Map], Nic], nic: Nic) -> None:
    maps, (backend, program) = opened[0], nic
    widths = range(1, SHAPES + 1)
    rules = [rule(f"[2001:db8::/{128 - width}]:* > [2001:db8:{width}::1]:80/tcp", width) for width in widths]
    twin = rule("[2001:db8:7::/127]:* > [2001:db8:2::2]:80/tcp", 99)
    assert (backend.install(RuleBatch.of([*rules, twin])).status == Outcome.INSTALLED).all()
    assert shapes_in_use(maps) == SHAPES
    more = RuleBatch.of([rule(ENDS4.format("*", 80, "tcp"), 100), rule("198.18.1.2:7 > 198.19.1.2:80/tcp", 101)])
    outcomes = backend.install(more)
    assert outcomes.status.tolist() == [Outcome.FAILED, Outcome.INSTALLED]
    assert outcomes.messages == {0: "softnic: it has room for 64 different masks, and all are used"}
    # The shape of rules[0] is also that of the twin; that of rules[1] goes.
    backend.remove(RuleBatch.of(rules[:1]))
    assert (shapes_in_use(maps), backend.install(more).status[0]) == (SHAPES, Outcome.FAILED)
    backend.remove(RuleBatch.of(rules[1:2]))
    assert (shapes_in_use(maps), backend.install(more).status[0]) == (SHAPES - 1, Outcome.INSTALLED)
    assert shapes_in_use(maps) == SHAPES
    assert mark_of(program, V4 / TCP(sport=9, dport=80)) == 100
    clear(backend)
    assert shapes_in_use(maps) == 0


def test_a_rule_that_is_installed_again_counts_once(opened: tuple[dict[str, Map], Nic], nic: Nic) -> None:
    maps, (backend, program) = opened[0], nic
    one = rule(ENDS4.format("*", 80, "tcp"), 1)
    backend.install(RuleBatch.of([one, one]))
    mark_of(program, V4 / LAYER4)
    backend.install(RuleBatch.of([one]))
    assert backend.dump()["packets"].tolist() == [1]
    assert backend.remove(RuleBatch.of([one, one])).status.tolist().count(Outcome.REMOVED) >= 1
    assert shapes_in_use(maps) == 0


def test_a_full_table_leaves_no_shape_without_a_rule(opened: tuple[dict[str, Map], Nic], nic: Nic) -> None:
    maps, (backend, _) = opened[0], nic
    flows = [rule(f"198.18.1.2:{port} > 198.19.1.2:80/tcp", port) for port in range(1, TABLE + 1)]
    assert (backend.install(RuleBatch.of(flows)).status == Outcome.INSTALLED).all()
    assert backend.install(RuleBatch.of([rule(ENDS4.format("*", 80, "tcp"), 1)])).status.tolist() == [Outcome.FULL]
    backend.dump()
    assert shapes_in_use(maps) == 0


def test_the_next_process_finds_masked_rules_and_their_shapes(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "nic")
    pins.make(size=64)
    rules = [
        rule(ENDS4.format("*", 80, "tcp"), 1),
        rule(ENDS6.format("*", "*", "*"), 2),
        rule(ENDS4.format("*", 81, "tcp"), 3),
    ]
    first = SoftnicBackend.open(pins.folder, "test")
    first.install(RuleBatch.of(rules))
    first.close()
    second = SoftnicBackend.open(pins.folder, "test")
    # Without a dump: the other rule of this shape keeps it.
    second.remove(RuleBatch.of(rules[:1]))
    with Map.open_pinned(pins.folder / "softnic_shapes", SHAPES_SPEC) as shapes:
        assert shapes_in_use({"softnic_shapes": shapes}) == 2
        assert sorted(RuleBatch(np.ascontiguousarray(second.dump()["rule"])), key=str) == sorted(rules[1:], key=str)
        second.remove(RuleBatch.of(rules[1:]))
        assert shapes_in_use({"softnic_shapes": shapes}) == 0
    second.close()
    pins.remove()
    remove_bpffs(pins.folder)


def test_a_nic_without_masks_is_to_be_made_again(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "nic")
    pins.make()
    (pins.folder / "softnic_shapes").unlink()
    message = r"softnic\.pins\.eth1: the softnic in .* has no map softnic_shapes.*nfcore softnic remove --pin"
    with pytest.raises(HostError, match=message):
        SoftnicBackend.open(pins.folder, "softnic.pins.eth1")
    pins.remove()
    remove_bpffs(pins.folder)


def test_a_nic_without_tags_is_to_be_made_again(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "nic")
    pins.make()
    (pins.folder / "softnic_rules").unlink()
    earlier = np.dtype([("flow", FLOW_KEY), ("family", "<u4")])
    with Map.create(replace(rules_spec(64), key=earlier)) as rules:
        rules.pin(pins.folder / "softnic_rules")
    message = r"softnic\.pins\.eth1: .*softnic_rules.* 44.*of another version.*nfcore softnic remove --pin"
    with pytest.raises(HostError, match=message):
        SoftnicBackend.open(pins.folder, "softnic.pins.eth1")
    pins.remove()
    remove_bpffs(pins.folder)


# Any rules, any packets, against a model

ADDRESSES = st.integers(0, 15).map(lambda low: ipaddress.ip_address(0xC612_0100 + low))
PORTS = st.integers(0, 2)


@st.composite
def matches(draw: st.DrawFn) -> FlowMatch:
    """Matches of a small world, so that packets meet them."""
    anything = Anything(draw(st.sampled_from([0, 1, 2, 3, 7])))
    proto = 0 if anything & Anything.PROTO else draw(st.sampled_from([6, 17] if anything != 3 else [1, 6, 17]))
    bits = [draw(st.sampled_from([0, 0, 1, 2, 3, 8, 32])) for _ in range(2)]
    ends = [ipaddress.ip_address(int(draw(ADDRESSES)) >> open_bits << open_bits) for open_bits in bits]
    sport = 0 if anything & Anything.SPORT else draw(PORTS)
    dport = 0 if anything & Anything.DPORT else draw(PORTS)
    return FlowMatch(ends[0], ends[1], proto, sport, dport, Wild(bits[0], bits[1], anything))


@st.composite
def packets(draw: st.DrawFn) -> tuple[bytes, FlowMatch, bool]:
    """An IPv4 packet, its 5-tuple, and whether the NIC knows its ports."""
    src, dst, sport, dport = draw(ADDRESSES), draw(ADDRESSES), draw(PORTS), draw(PORTS)
    proto, fragment = draw(st.sampled_from([1, 6, 6, 17, 17])), draw(st.sampled_from([0, 0, 0, 0x2000, 1]))
    header = struct.pack("!BBHHHBBH", 0x45, 0, 60, 7, fragment, 64, proto, 0) + src.packed + dst.packed
    frame = bytes(12) + b"\x08\0" + header + struct.pack("!HH", sport, dport) + bytes(36)
    known = proto in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) and not fragment
    return frame, FlowMatch(src, dst, proto, sport, dport), known


def is_hit(match: FlowMatch, packet: FlowMatch, known: bool) -> bool:
    anything = match.wild.anything
    ports = (anything & Anything.SPORT or (known and match.sport == packet.sport)) and (
        anything & Anything.DPORT or (known and match.dport == packet.dport)
    )
    ends = ((match.src, packet.src, match.wild.src), (match.dst, packet.dst, match.wild.dst))
    addresses = all(int(left) >> bits == int(right) >> bits for left, right, bits in ends)
    return bool(ports and addresses and (anything & Anything.PROTO or match.proto == packet.proto))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(matches(), max_size=12, unique=True), st.lists(packets(), min_size=1, max_size=12))
def test_the_nic_matches_as_the_model(
    nic: Nic, rules: list[FlowMatch], frames: list[tuple[bytes, FlowMatch, bool]]
) -> None:
    backend, program = nic
    clear(backend)
    batch = RuleBatch.of([Rule(match, SetMark(mark), mark) for mark, match in enumerate(rules, start=1)])
    assert (backend.install(batch).status == Outcome.INSTALLED).all()
    assert sorted(RuleBatch(np.ascontiguousarray(backend.dump()["rule"])), key=str) == sorted(batch, key=str)
    hits = 0
    for frame, packet, known in frames:
        right = [mark for mark, match in enumerate(rules, start=1) if is_hit(match, packet, known)]
        exact = [mark for mark in right if rules[mark - 1].wild == Wild()]
        mark = int.from_bytes(program.test_run(frame).metadata, "little")
        assert mark in (exact or right or [0])
        hits += bool(mark)
    assert backend.dump()["packets"].sum() == hits
