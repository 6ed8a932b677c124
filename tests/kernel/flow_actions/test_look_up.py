# SPDX-License-Identifier: Apache-2.0
"""Which entry a packet has: against a model that reads the bytes and walks all entries."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.plugins.flow_actions.data_plane import DataPlane

from .frames import DST, ICMP, PROTOCOLS, SRC, frame, fuzzed, ipv4, ipv6, layer4, number
from .model import FRAGMENT, HOP_BY_HOP, OPTIONS, ROUTING, TCP, UDP, Match, find, read, rows
from .plane import COUNT, DROP, PASS, open_plane, others, packets, send

FEW_FRAMES = 20_000


@pytest.fixture(scope="module")
def plane() -> Iterator[DataPlane]:
    """One for all tests: each removes its entries."""
    with open_plane() as opened:
        yield opened


# Few values, so that entries and packets meet.
HOSTS = {
    4: [number(text) for text in ("198.18.1.2", "198.18.1.3", "198.18.9.2", "198.19.1.2", "10.0.0.1")],
    6: [
        number(text)
        for text in (
            "2001:db8:1::2",
            "2001:db8:1::3",
            "2001:db8:1:1::2",
            "2001:db8:9::2",
            "fe80::1",
            "2001:db8:1:0:1::2",
        )
    ],
}
PREFIXES = {4: [0, 8, 14, 20, 24, 28, 31, 32], 6: [0, 32, 44, 48, 56, 64, 120, 128]}
PORTS = [80, 443, 40000]


@st.composite
def matches(draw: st.DrawFn) -> Match:
    """An entry of either family."""
    family = draw(st.sampled_from([4, 6]))
    host, bits = st.sampled_from(HOSTS[family]), st.sampled_from(PREFIXES[family])
    width = 32 if family == 4 else 128
    src_bits, dst_bits = draw(bits), draw(bits)
    proto = draw(st.sampled_from([None, *PROTOCOLS]))
    ports = st.sampled_from([None, *PORTS]) if proto in (TCP, UDP) else st.none()
    return Match(
        family,
        draw(host) >> (width - src_bits) << (width - src_bits),
        src_bits,
        draw(host) >> (width - dst_bits) << (width - dst_bits),
        dst_bits,
        draw(ports),
        draw(ports),
        proto,
        draw(st.integers(0, 2)),
    )


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame of any kind, perhaps cut or with a changed byte."""
    proto = draw(st.sampled_from(PROTOCOLS))
    payload = layer4(proto, draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS)))
    family = draw(st.sampled_from([4, 6]))
    src, dst = (draw(st.sampled_from(HOSTS[family])) for _ in range(2))
    if family == 4:
        fragment = draw(st.sampled_from([0, 0, 0x4000, 0x2000, 0x2010, 0x0010]))
        options = bytes(draw(st.sampled_from([0, 0, 4, 40])))
        raw = ipv4(_text(src, 4), _text(dst, 4), proto, payload, fragment=fragment, options=options)
    else:
        kinds = draw(st.lists(st.sampled_from([HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS]), max_size=6))
        fragment = draw(st.sampled_from([0, 1, 8, 9, 0xFFF8]))
        units = draw(st.sampled_from([0, 1, 3]))
        raw = ipv6(
            _text(src, 6), _text(dst, 6), proto, payload, extensions=tuple(kinds), fragment=fragment, units=units
        )
    if draw(st.booleans()):
        raw = raw[: draw(st.integers(14, len(raw)))]
    elif draw(st.booleans()):
        place = draw(st.integers(12, min(len(raw), 60) - 1))
        raw = raw[:place] + bytes([draw(st.integers(0, 255))]) + raw[place + 1 :]
    return raw


def _text(address: int, family: int) -> str:
    return str(ipaddress.IPv4Address(address) if family == 4 else ipaddress.IPv6Address(address))


def numbered(entries: list[Match]) -> list[Match]:
    """Entries with a slot each and targets in turn, without equal keys."""
    distinct = {match.row()["key"].tobytes() + bytes([match.family]): match for match in entries}
    return [replace(match, slot=slot, target=1 + slot % 3) for slot, match in enumerate(distinct.values())]


def verdict_of(winner: Match | None) -> str:
    return "XDP_DROP" if winner is not None and winner.target == DROP else "XDP_PASS"


def check(plane: DataPlane, entries: list[Match], raw: bytes) -> None:
    """One frame: its verdict, and which entry has counted it."""
    possible = find(entries, read(raw))
    before = plane.counts([match.slot for match in possible])["packets"]
    run = send(plane, raw)
    grown = plane.counts([match.slot for match in possible])["packets"] - before
    assert int(grown.sum()) == bool(possible), (possible, raw.hex())
    winner = possible[int(grown.argmax())] if possible else None
    assert run.verdict.name == verdict_of(winner)
    assert run.output == raw


def without_entry(plane: DataPlane) -> int:
    counted = others(plane)
    return counted.get("NO_MATCH", 0) + counted.get("NOT_IP", 0)


@given(entries=st.lists(matches(), max_size=24), raw=st.lists(frames(), min_size=1, max_size=12))
def test_every_packet_has_the_entry_of_the_model(plane: DataPlane, entries: list[Match], raw: list[bytes]) -> None:
    entries = numbered(entries)
    plane.add(rows(entries))
    try:
        for each in raw:
            check(plane, entries, each)
    finally:
        plane.remove(rows(entries))
    before = without_entry(plane)
    for each in raw:
        assert send(plane, each).verdict.name == "XDP_PASS"
    assert without_entry(plane) == before + len(raw)


WHOLE = {
    family: Match(
        family,
        number(SRC[family]),
        32 if family == 4 else 128,
        number(DST[family]),
        32 if family == 4 else 128,
        40000,
        80,
        TCP,
    )
    for family in (4, 6)
}


@pytest.mark.parametrize("family", [4, 6])
def test_an_exact_entry_wins_over_any_priority(plane: DataPlane, family: int) -> None:
    exact = replace(WHOLE[family], slot=1, target=PASS)
    masked = replace(exact, sport=None, priority=65_535, slot=2, target=DROP)
    plane.add(rows([exact, masked]))
    assert send(plane, frame(family)).verdict.name == "XDP_PASS"
    assert send(plane, frame(family, sport=1)).verdict.name == "XDP_DROP"
    plane.remove(rows([exact]))
    assert send(plane, frame(family)).verdict.name == "XDP_DROP"
    plane.remove(rows([masked]))
    assert send(plane, frame(family)).verdict.name == "XDP_PASS"


@pytest.mark.parametrize("family", [4, 6])
def test_the_more_specific_one_wins_and_priority_decides_between_equals(plane: DataPlane, family: int) -> None:
    source = replace(WHOLE[family], dst=0, dst_bits=0, sport=None, dport=None, proto=None)
    target = replace(source, src=0, src_bits=0, dst=WHOLE[family].dst, dst_bits=WHOLE[family].dst_bits)
    for drop_priority, expected in ((1, "XDP_DROP"), (3, "XDP_DROP"), (0, "XDP_PASS")):
        both = [
            replace(source, slot=1, target=DROP, priority=drop_priority),
            replace(target, slot=2, target=PASS, priority=0 if drop_priority else 1),
        ]
        plane.add(rows(both))
        assert send(plane, frame(family)).verdict.name == expected
        plane.remove(rows(both))
    wide = replace(target, slot=2, target=PASS, priority=65_535, dst_bits=target.dst_bits - 1)
    wide = replace(wide, dst=wide.dst >> 1 << 1)
    plane.add(rows([replace(source, slot=1, target=DROP), wide]))
    assert send(plane, frame(family)).verdict.name == "XDP_DROP"
    plane.remove(rows([source, wide]))


def test_fragments_have_no_ports(plane: DataPlane) -> None:
    by_port = [replace(WHOLE[family], src=0, src_bits=0, sport=None, slot=family, target=DROP) for family in (4, 6)]
    plane.add(rows(by_port))
    for fragment in (0x2000, 0x2004, 0x0004):
        assert send(plane, ipv4(fragment=fragment)).verdict.name == "XDP_PASS"
    for fragment in (1, 8, 9):
        assert send(plane, ipv6(extensions=(FRAGMENT,), fragment=fragment)).verdict.name == "XDP_PASS"
    assert send(plane, ipv4(fragment=0x4000)).verdict.name == "XDP_DROP"
    assert send(plane, ipv6(extensions=(FRAGMENT,), fragment=0)).verdict.name == "XDP_DROP"
    plane.remove(rows(by_port))
    by_protocol = [replace(match, dport=None) for match in by_port]
    plane.add(rows(by_protocol))
    assert send(plane, ipv4(fragment=0x0004)).verdict.name == "XDP_DROP"
    assert send(plane, ipv6(extensions=(HOP_BY_HOP, FRAGMENT), fragment=8)).verdict.name == "XDP_DROP"
    plane.remove(rows(by_protocol))


def test_ports_behind_options_and_four_extension_headers(plane: DataPlane) -> None:
    by_port = [replace(WHOLE[family], src=0, src_bits=0, sport=None, slot=family, target=DROP) for family in (4, 6)]
    by_source = replace(WHOLE[6], dst=0, dst_bits=0, sport=None, dport=None, proto=None, slot=1, target=COUNT)
    plane.add(rows([*by_port, by_source]))
    before = packets(plane, 1)
    for size in (4, 20, 40):
        assert send(plane, ipv4(options=bytes(size))).verdict.name == "XDP_DROP"
    four = (HOP_BY_HOP, ROUTING, OPTIONS, OPTIONS)
    for count in range(5):
        assert send(plane, ipv6(extensions=four[:count], units=2)).verdict.name == "XDP_DROP"
    assert packets(plane, 1) == before
    # Behind a fifth the protocol is unknown, and only the entry for any protocol matches.
    assert send(plane, ipv6(extensions=(*four, OPTIONS))).verdict.name == "XDP_PASS"
    assert packets(plane, 1) == before + 1
    plane.remove(rows([*by_port, by_source]))


def test_what_is_no_plain_ip_is_let_pass(plane: DataPlane) -> None:
    everything = [Match(4, slot=4, target=DROP), Match(6, slot=6, target=DROP)]
    plane.add(rows(everything))
    whole = ipv4()
    tagged = whole[:12] + b"\x81\x00\x00\x07" + whole[12:]
    arp = whole[:12] + b"\x08\x06" + bytes(28)
    for raw in (tagged, arp, whole[:33], ipv6()[:53], whole[:14]):
        assert send(plane, raw).verdict.name == "XDP_PASS"
    # By its addresses, though: an IPv4 header that says that it is shorter than it can be, and a cut one of TCP.
    for raw in (whole[:14] + b"\x44" + whole[15:], whole[:36], ipv6(extensions=(OPTIONS,))[:58]):
        assert send(plane, raw).verdict.name == "XDP_DROP"
    plane.remove(rows(everything))


def fuzz(plane: DataPlane, count: int, model_every: int) -> None:
    generator = random.Random(20_19)
    entries = numbered(
        [
            *WHOLE.values(),
            *(replace(match, sport=None, src_bits=match.width // 2) for match in WHOLE.values()),
            *(replace(match, sport=None, dport=None, proto=None, dst=0, dst_bits=0) for match in WHOLE.values()),
            *(Match(family, proto=proto) for family in (4, 6) for proto in (UDP, ICMP)),
        ]
    )
    plane.add(rows(entries))
    run = plane.program.test_run
    for turn in range(count):
        raw = fuzzed(generator)
        if turn % model_every:
            assert run(raw).verdict, raw.hex()  # not XDP_ABORTED, which is 0
        else:
            check(plane, entries, raw)
    plane.remove(rows(entries))


def test_no_frame_is_aborted(plane: DataPlane) -> None:
    fuzz(plane, FEW_FRAMES, 4)
