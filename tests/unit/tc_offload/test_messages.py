# SPDX-License-Identifier: Apache-2.0
"""Batches of flower messages: columns over a template are what pyroute2 makes of each rule, and are read back."""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.flows import EXACT, NO_TAGS, SERVICE_TAG, VLAN_ID, Anything, FlowMatch, Wild
from nfcore.api.rules import Drop, Rule, RuleBatch, SetMark
from nfcore.plugins.tc_offload.filters import FilterReader, Filters
from nfcore.plugins.tc_offload.messages import delete_messages, encode_dump, encode_rule, payloads, template
from nfcore.plugins.tc_offload.netlink import RTM_NEWTFILTER, NetlinkError, Run, TcSocket, _read_error, _runs
from nfcore.plugins.tc_offload.rule_index import RuleIndex, matches_of
from nfcore.plugins.tc_offload.shapes import INGRESS, Kind, Place, Shape, action_cookie, kinds_of, shapes_of
from nfcore.plugins.tc_offload.tcmsg.cls_flower import FilterMessage

PLACE = Place(3, INGRESS, 6000)
NOWHERE = Place(0x7FFF_FFFF, INGRESS, 6000)
PORT = st.integers(0, 0xFFFF)


@st.composite
def matches(draw: st.DrawFn) -> FlowMatch:
    """Any match that a rule can have: exact, or with prefixes, open ports, an open protocol."""
    version = draw(st.sampled_from([4, 6]))
    bits = 32 if version == 4 else 128
    anything = draw(st.sampled_from([0, 0, 1, 2, 3, 7]))
    proto = 0 if anything == 7 else draw(st.integers(0, 255) if anything == 3 else st.sampled_from([6, 17]))
    opened = [draw(st.one_of(st.just(0), st.integers(0, bits))) for _ in range(2)]
    ends = [draw(st.integers(0, 2**bits - 1)) >> open_bits << open_bits for open_bits in opened]
    kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    ports = [0 if anything & flag else draw(PORT) for flag in (Anything.SPORT, Anything.DPORT)]
    return FlowMatch(kind(ends[0]), kind(ends[1]), proto, ports[0], ports[1], Wild(opened[0], opened[1], anything))


MATCH = matches()
ACTION = st.one_of(st.builds(SetMark, st.integers(1, 2**32 - 1)), st.just(Drop()))
TAG = st.builds(int.__or__, st.integers(1, 4094), st.sampled_from([0, SERVICE_TAG]))
TAGS = st.one_of(st.tuples(TAG, st.just(0)), st.tuples(TAG, TAG))


@st.composite
def any_rules(draw: st.DrawFn) -> Rule:
    match = draw(MATCH)
    vlans = draw(st.one_of(st.just(NO_TAGS), TAGS)) if match.wild == EXACT else NO_TAGS
    return Rule(match, draw(ACTION), draw(st.integers(0, 2**64 - 1)), vlans)


RULES = st.lists(any_rules(), min_size=1, max_size=12)
HANDLES = st.integers(1, 2**31 - 1)


def shape_of(rule: Rule) -> Shape:
    match = rule.match
    if rule.vlans != NO_TAGS:
        return Shape.SERVICE_TAGGED if rule.vlans[0] & SERVICE_TAG else Shape.TAGGED
    if match.wild != EXACT:
        return Shape.MASKED6 if match.family == 6 else Shape.MASKED4
    return Shape(2 * (match.family == 6) + (match.proto == 17))


def by_pyroute2(rule: Rule, handle: int, *, skip_sw: bool) -> bytes:
    match, bits = rule.match, rule.match.src.max_prefixlen
    mark = isinstance(rule.action, SetMark)
    action = {"kind": "skbedit", "mark": rule.action.mark} if mark else {"kind": "gact", "action": "drop"}  # type: ignore[union-attr]
    said = {
        "ip_proto": None if match.wild.anything & Anything.PROTO else match.proto,
        "src_ip": None if match.wild.src == bits else f"{match.src}/{bits - match.wild.src}",
        "dst_ip": None if match.wild.dst == bits else f"{match.dst}/{bits - match.wild.dst}",
        "src_port": None if match.wild.anything & Anything.SPORT else match.sport,
        "dst_port": None if match.wild.anything & Anything.DPORT else match.dport,
        "skip_sw": skip_sw,
        "action": {**action, "cookie": action_cookie(rule.cookie)},
        **tags_in_words(rule.vlans, match.family),
    }
    return bytes(encode_rule(PLACE, shape_of(rule), said, handle).data)


def tags_in_words(vlans: tuple[int, int], family: int) -> dict[str, Any]:
    """What `tc` calls the tags of a rule."""
    outer, inner = vlans
    said: dict[str, Any] = {}
    if outer:
        behind = ("802.1ad" if inner & SERVICE_TAG else "802.1q") if inner else f"ipv{family}"
        said |= {"vlan_id": outer & VLAN_ID, "vlan_ethtype": behind}
    if inner:
        said |= {"cvlan_id": inner & VLAN_ID, "cvlan_ethtype": f"ipv{family}"}
    return said


@given(RULES, HANDLES, st.booleans())
def test_columns_are_byte_for_byte_what_pyroute2_encodes(rules: list[Rule], handle: int, skip_sw: bool) -> None:
    for rule in rules:
        rows = RuleBatch.of([rule, rule]).rows
        shapes = shapes_of(rows)
        assert shapes.tolist() == [shape_of(rule)] * 2
        made = template(PLACE, Kind.of(int(kinds_of(rows, shapes)[0])), skip_sw)
        filled = made.fill(rows, np.array([handle, handle], dtype=np.uint32))
        assert filled.shape[0] == 2
        assert filled[0].tobytes() == filled[1].tobytes() == by_pyroute2(rule, handle, skip_sw=skip_sw)


@given(RULES)
def test_messages_are_read_back_in_columns(rules: list[Rule]) -> None:
    messages = [by_pyroute2(rule, number, skip_sw=True) for number, rule in enumerate(rules, start=1)]
    block = np.frombuffer(b"".join(messages), dtype=np.uint8)
    found = FilterReader().read(_runs(block))
    assert sorted(found.handle.tolist()) == list(range(1, len(rules) + 1))
    order = np.argsort(found.handle)
    assert found.ours.all()
    assert found.complete.all()
    assert (found.flags == 2).all()
    assert list(RuleBatch(found.installed["rule"].take(order))) == rules


# What the kernel adds: the mask of whole fields. It leaves out fields of which nothing is matched.
WHOLE = [
    {"src_ip": "198.18.1.2", "dst_ip": "198.18.10.1", "src_port": (1, 0xFFFF), "dst_port": (80, 0xFFFF)},
    {"src_ip": "198.18.1.0/24", "dst_port": (80, 0xFFFF)},
]
# Filters with nfcore's cookie that no rule of nfcore can be.
NO_RULES = [
    {"src_port": (1, 0xFF00)},
    {"dst_port": (80, 0)},
    {"ip_flags": "nofrag"},
    {"indev": "eth7"},
    {"src_mac": "02:00:00:00:00:01"},
    {"eth_type": 0x0806},
    {"action": {"kind": "skbedit", "queue": 3}},
    {"vlan_id": 5, "vlan_ethtype": "ipv4"},
]
EXACT_MATCH = {"src_ip": "198.18.1.2", "dst_ip": "198.18.10.1", "src_port": 1, "dst_port": 80}
# The same behind a VLAN tag.
NO_TAGGED_RULES = [
    {},
    {"vlan_ethtype": "ipv4"},
    {"vlan_id": 0, "vlan_ethtype": "ipv4"},
    {"vlan_id": 5, "vlan_prio": 2, "vlan_ethtype": "ipv4"},
    {"vlan_id": 5, "vlan_ethtype": "802.1q"},
    {"vlan_id": 5, "vlan_ethtype": "802.1q", "cvlan_ethtype": "ipv4"},
    {"vlan_id": 5, "vlan_ethtype": "802.1q", "cvlan_id": 6, "cvlan_ethtype": "802.1q"},
    {"vlan_id": 5, "vlan_ethtype": "ipv4", "src_ip": "198.18.1.0/24"},
]


def read_one(said: Mapping[str, Any], shape: Shape = Shape.MASKED4) -> Filters:
    drop = {"kind": "gact", "action": "drop", "cookie": action_cookie(5)}
    given = {"ip_proto": "tcp", "src_ip": "198.18.1.0/24", "action": drop, **said}
    message = bytes(encode_rule(PLACE, shape, given, 1).data)
    found = FilterReader().read(_runs(np.frombuffer(message, dtype=np.uint8)))
    assert len(found) == 1
    return found


def test_masks_of_whole_fields_are_none() -> None:
    exact, masked = (read_one(said) for said in WHOLE)
    (rule,) = RuleBatch(exact.installed["rule"])
    assert str(rule.match) == "198.18.1.2:1 > 198.18.10.1:80/tcp"
    (rule,) = RuleBatch(masked.installed["rule"])
    assert str(rule.match) == "198.18.1.0/24:* > 0.0.0.0/0:80/tcp"
    assert exact.complete.all() and masked.complete.all()


@pytest.mark.parametrize("said", NO_RULES, ids=str)
def test_a_filter_that_no_rule_can_be_is_not_read_as_one(said: Mapping[str, Any]) -> None:
    found = read_one({**said, "action": {**said["action"], "cookie": action_cookie(5)}} if "action" in said else said)
    assert (found.ours.tolist(), found.complete.tolist()) == ([True], [False])


@pytest.mark.parametrize("said", NO_TAGGED_RULES, ids=str)
def test_a_filter_with_tags_that_no_rule_can_be_is_not_read_as_one(said: Mapping[str, Any]) -> None:
    whole = {"vlan_id": 5, "vlan_ethtype": "802.1q", "cvlan_id": 6, "cvlan_ethtype": "ipv4"}
    assert read_one({**EXACT_MATCH, **whole}, Shape.SERVICE_TAGGED).complete.all()
    found = read_one({**EXACT_MATCH, **said}, Shape.SERVICE_TAGGED)
    assert (found.ours.tolist(), found.complete.tolist()) == ([True], [False])


@given(st.integers(0, 0xFFFF_FFFF))
def test_a_mask_is_a_prefix_or_no_rules(bits: int) -> None:
    raw = bytearray(
        by_pyroute2(Rule(FlowMatch.parse("198.18.0.0/16:* > 198.18.10.1:80/tcp"), Drop(), 5), 1, skip_sw=True)
    )
    at, _ = payloads(_decoded(bytes(raw)))["TCA_FLOWER_KEY_IPV4_SRC_MASK"]
    raw[at : at + 4] = bits.to_bytes(4, "big")
    found = FilterReader().read(_runs(np.frombuffer(bytes(raw), dtype=np.uint8)))
    is_prefix = "01" not in f"{bits:032b}"
    assert found.complete.tolist() == [is_prefix]
    if is_prefix:
        assert found.installed["rule"]["key"]["wild"].tolist() == [[32 - bits.bit_count(), 0, Anything.SPORT]]


def test_a_driver_that_gave_counters_is_told_from_one_that_did_not() -> None:
    rule = Rule(FlowMatch.parse("198.18.1.2:1 > 198.18.10.1:80/tcp"), Drop(), 5)
    silent = by_pyroute2(rule, 1, skip_sw=True)
    # TCA_ACT_USED_HW_STATS: it comes last, within the action, the chain, the options and the message.
    attribute = struct.pack("=HHII", 12, 9, 1, 1)
    answered = bytearray(silent + attribute)
    columns = payloads(_decoded(silent))
    for name in ("TCA_OPTIONS", "TCA_FLOWER_ACT", "TCA_ACT_PRIO_1"):
        at = columns[name][0] - 4
        struct.pack_into("=H", answered, at, struct.unpack_from("=H", answered, at)[0] + len(attribute))
    struct.pack_into("=I", answered, 0, len(answered))
    struct.pack_into("=I", answered, 24, 2)
    found = FilterReader().read(_runs(np.frombuffer(silent + bytes(answered) + silent, dtype=np.uint8)))
    told = sorted(zip(found.handle.tolist(), found.driver_counted.tolist(), strict=True))
    assert told == [(1, False), (1, False), (2, True)]
    assert found.complete.all()


def _decoded(raw: bytes) -> FilterMessage:
    message = FilterMessage(bytearray(raw))
    message.decode()
    return message


def test_filters_of_others_are_not_ours() -> None:
    rule = Rule(FlowMatch.parse("198.18.1.2:1 > 198.18.10.1:80/tcp"), Drop(), 5)
    ours = by_pyroute2(rule, 1, skip_sw=False)
    said = {"dst_ip": "198.18.10.0/24", "action": {"kind": "gact", "action": "drop", "cookie": bytes(16)}}
    theirs = bytes(encode_rule(PLACE, Shape.TCP4, said, 2).data)
    found = FilterReader().read(_runs(np.frombuffer(ours + theirs + ours, dtype=np.uint8)))
    assert sorted(zip(found.handle.tolist(), found.ours.tolist(), strict=True)) == [(1, True), (1, True), (2, False)]


@given(st.lists(st.integers(16, 90), min_size=1, max_size=30))
def test_runs_are_the_messages_whatever_their_lengths(lengths: list[int]) -> None:
    parts = [struct.pack("=IHHII", length, RTM_NEWTFILTER, 2, 1, 0).ljust(length, b"\x05") for length in lengths]
    block = b"".join(part.ljust((len(part) + 3) & ~3, b"\0") for part in parts)
    found = [row.tobytes() for run in _runs(np.frombuffer(block, dtype=np.uint8)) for row in run.rows]
    assert sorted(found) == sorted(parts)


def test_deletions_name_shape_and_handle() -> None:
    shapes, handles = np.array([0, 3, 2]), np.array([1, 0xFFFF, 7], dtype=np.uint32)
    rows = delete_messages(PLACE, shapes, handles)
    fields = [struct.unpack_from("=iIII", row.tobytes(), 20) for row in rows]
    assert fields == [
        (3, 1, INGRESS, PLACE.info(Shape.TCP4)),
        (3, 0xFFFF, INGRESS, PLACE.info(Shape.UDP6)),
        (3, 7, INGRESS, PLACE.info(Shape.TCP6)),
    ]


@given(st.integers(1, 133), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
def test_refusals_carry_errno_and_words(number: int, text: str) -> None:
    words = text.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(words), 1) + words
    raw = bytearray(struct.pack("=IHHIIi", 36 + len(attribute), 2, 0x300, 9, 0, -number) + bytes(16) + attribute)
    error = _read_error(raw, 0, len(raw))
    assert error is not None
    assert (error.number, error.text) == (number, text)


def test_an_acknowledgement_is_no_refusal() -> None:
    assert _read_error(bytearray(struct.pack("=IHHIIi", 36, 2, 0x100, 9, 0, 0) + bytes(16)), 0, 36) is None


def test_words_and_errno_make_one_sentence() -> None:
    assert str(NetlinkError(errno.ENOSPC, "Table full.")) == "Table full: No space left on device (ENOSPC)"
    assert str(NetlinkError(errno.EPERM)) == "Operation not permitted (EPERM)"


def test_the_kernel_answers_every_message_that_fails() -> None:
    socket = TcSocket(send_bytes=48 * 7)
    handles = np.arange(1, 31, dtype=np.uint32)
    replies = socket.execute(delete_messages(NOWHERE, np.zeros(30, dtype=np.int64), handles))
    socket.close()
    assert sorted(replies.errors) == list(range(30))
    # Who may, learns that there is no such device; who may not, that.
    assert {error.number for error in replies.errors.values()} <= {errno.ENODEV, errno.EPERM}
    assert not replies.unanswered


def test_answers_that_find_no_room_are_known_to_be_missing() -> None:
    socket = TcSocket(buffer=2304, send_bytes=1 << 17)
    count = 2000
    replies = socket.execute(delete_messages(NOWHERE, np.zeros(count, dtype=np.int64), np.ones(count, dtype=np.uint32)))
    assert replies.unanswered == set(range(count))
    assert len(replies.errors) < count
    # The socket is none the worse for it.
    again = socket.execute(delete_messages(NOWHERE, np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.uint32)))
    socket.close()
    assert list(again.errors) == [0]


def test_a_dump_of_nothing_ends() -> None:
    socket = TcSocket()
    assert FilterReader().read(socket.dump(encode_dump(NOWHERE, 0, terse=False))).handle.tolist() == []
    assert len(FilterReader().read([Run(np.zeros((0, 36), dtype=np.uint8), RTM_NEWTFILTER)])) == 0
    socket.close()


class TestIndex:
    """Handles of rules."""

    @staticmethod
    def rows(count: int, first: int = 0) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        matches = [
            FlowMatch.parse(f"198.18.1.2:{number} > 198.18.10.1:80/tcp") for number in range(first, first + count)
        ]
        return RuleBatch.of([Rule(match, Drop(), 1000 + match.sport) for match in matches]).rows

    def test_finds_what_it_was_given(self) -> None:
        index, rows = RuleIndex(), self.rows(3000)
        handles = index.add(rows, matches_of(rows))
        assert sorted(handles.tolist()) == list(range(1, 3001))
        assert (index.find(matches_of(rows)) == handles).all()
        assert index.holds(handles, rows["cookie"]).all()
        assert not index.holds(handles, rows["cookie"] + np.uint64(1)).any()

    def test_gives_handles_again(self) -> None:
        index, rows = RuleIndex(), self.rows(10)
        handles = index.add(rows, matches_of(rows))
        index.add_earlier(handles, np.full(10, 5, np.uint64), np.full(10, 500, np.uint64))
        assert index.earlier(handles).tolist() == [[5, 500]] * 10
        index.forget(handles[::2])
        assert len(index) == 5
        again = index.add(self.rows(5, 100), matches_of(self.rows(5, 100)))
        assert set(again.tolist()) == set(handles[::2].tolist())
        assert index.earlier(again).tolist() == [[0, 0]] * 5

    @given(st.sets(st.integers(1, 5000), min_size=1, max_size=40))
    def test_adopted_handles_are_not_given(self, taken: set[int]) -> None:
        index, rows = RuleIndex(), self.rows(len(taken))
        index.adopt(rows, np.array(sorted(taken), dtype=np.uint32))
        new = self.rows(60, 1000)
        given_now = set(index.add(new, matches_of(new)).tolist())
        assert len(given_now) == 60
        assert not given_now & taken
        assert 0 not in given_now

    def test_adopts_over_what_it_believed(self) -> None:
        index, rows = RuleIndex(), self.rows(4)
        handles = index.add(rows, matches_of(rows))
        other = self.rows(2, 50)
        index.adopt(other, handles[:2])
        assert len(index) == 4
        assert index.find(matches_of(rows))[:2].tolist() == [0, 0]
        assert (index.find(matches_of(other)) == handles[:2]).all()


def test_shapes() -> None:
    rules = [
        Rule(FlowMatch.parse("198.18.1.2:1 > 198.18.10.1:80/tcp"), Drop(), 1),
        Rule(FlowMatch.parse("[2001:db8::1]:1 > [2001:db8::2]:80/udp"), SetMark(1), 1),
        Rule(FlowMatch.parse("198.18.1.2:1 > 198.18.10.1:80/132"), Drop(), 1),
        Rule(FlowMatch.parse("198.18.1.2:1 > 198.18.10.1:80/udp"), SetMark(0), 1),
        Rule(FlowMatch.parse("198.18.1.0/24:* > 198.18.10.1:80/udp"), Drop(), 1),
        Rule(FlowMatch.parse("[2001:db8::1]:* > [2001:db8::2]:*/132"), SetMark(1), 1),
        Rule(FlowMatch.parse("198.18.1.0/24:* > 198.18.10.1:80/132"), Drop(), 1),
        Rule(FlowMatch.parse("198.18.1.0/24:* > 198.18.10.1:80/*"), Drop(), 1),
        Rule(replace(FlowMatch.parse("198.18.1.0/24:1 > 198.18.10.1:80/tcp"), wild=Wild(0, 33)), Drop(), 1),
        Rule(replace(FlowMatch.parse("198.18.1.0/24:1 > 198.18.10.1:80/tcp"), wild=Wild(0, 0, 8)), Drop(), 1),
    ]
    expected = [Shape.TCP4, Shape.UDP6, -1, -1, Shape.MASKED4, Shape.MASKED6, -1, -1, -1, -1]
    assert shapes_of(RuleBatch.of(rules).rows).tolist() == expected
    tags = [(5, 0), (SERVICE_TAG | 5, 6), (0, 6), (SERVICE_TAG, 0), (5, SERVICE_TAG), (0x2005, 0), (5, SERVICE_TAG | 6)]
    tagged = [replace(rules[0], vlans=vlans) for vlans in tags] + [replace(rules[4], vlans=(5, 0))]
    expected = [Shape.TAGGED, Shape.SERVICE_TAGGED, -1, -1, -1, -1, Shape.TAGGED, -1]
    assert shapes_of(RuleBatch.of([*tagged, rules[1]]).rows).tolist() == [*expected, Shape.UDP6]


@pytest.mark.parametrize("shape", list(Shape))
def test_every_shape_has_a_priority_of_its_own(shape: Shape) -> None:
    assert PLACE.info(shape) >> 16 == 6000 + shape
    assert struct.pack("<H", PLACE.info(shape) & 0xFFFF) == struct.pack(">H", shape.ethertype)
