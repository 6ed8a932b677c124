# SPDX-License-Identifier: Apache-2.0
"""Batches of flower messages: columns over a template are what pyroute2 makes of each rule, and are read back."""

from __future__ import annotations

import errno
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.flows import FlowMatch
from nfcore.api.rules import Action, Drop, Rule, RuleBatch, SetMark
from nfcore.plugins.tc_offload.filters import FilterReader
from nfcore.plugins.tc_offload.messages import delete_messages, encode_dump, encode_rule, payloads, template
from nfcore.plugins.tc_offload.netlink import RTM_NEWTFILTER, NetlinkError, Run, TcSocket, _read_error, _runs
from nfcore.plugins.tc_offload.rule_index import RuleIndex, matches_of
from nfcore.plugins.tc_offload.shapes import INGRESS, Place, Shape, action_cookie, shapes_of
from nfcore.plugins.tc_offload.tcmsg.cls_flower import FilterMessage

PLACE = Place(3, INGRESS, 6000)
NOWHERE = Place(0x7FFF_FFFF, INGRESS, 6000)
PORT = st.integers(0, 0xFFFF)
MATCH = (
    st.integers(4, 6)
    .filter(lambda v: v != 5)
    .flatmap(
        lambda v: st.builds(
            FlowMatch,
            st.ip_addresses(v=v),
            st.ip_addresses(v=v),
            st.sampled_from([6, 17]),
            PORT,
            PORT,  # type: ignore[arg-type]
        )
    )
)
ACTION = st.one_of(st.builds(SetMark, st.integers(1, 2**32 - 1)), st.just(Drop()))
RULES = st.lists(st.builds(Rule, MATCH, ACTION, st.integers(0, 2**64 - 1)), min_size=1, max_size=12)
HANDLES = st.integers(1, 2**31 - 1)


def by_pyroute2(rule: Rule, handle: int, *, skip_sw: bool) -> bytes:
    match = rule.match
    shape = Shape(2 * (match.family == 6) + (match.proto == 17))
    mark = isinstance(rule.action, SetMark)
    action = {"kind": "skbedit", "mark": rule.action.mark} if mark else {"kind": "gact", "action": "drop"}  # type: ignore[union-attr]
    said = {
        "src_ip": str(match.src),
        "dst_ip": str(match.dst),
        "src_port": match.sport,
        "dst_port": match.dport,
        "skip_sw": skip_sw,
        "action": {**action, "cookie": action_cookie(rule.cookie)},
    }
    return bytes(encode_rule(PLACE, shape, said, handle).data)


@given(RULES, HANDLES, st.booleans())
def test_columns_are_byte_for_byte_what_pyroute2_encodes(rules: list[Rule], handle: int, skip_sw: bool) -> None:
    for rule in rules:
        rows = RuleBatch.of([rule, rule]).rows
        made = template(PLACE, Shape(shapes_of(rows)[0]), Action(rows["action"][0]), skip_sw)
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
    ]
    assert shapes_of(RuleBatch.of(rules).rows).tolist() == [Shape.TCP4, Shape.UDP6, -1, -1]


@pytest.mark.parametrize("shape", list(Shape))
def test_every_shape_has_a_priority_of_its_own(shape: Shape) -> None:
    assert PLACE.info(shape) >> 16 == 6000 + shape
    assert struct.pack("<H", PLACE.info(shape) & 0xFFFF) == struct.pack(">H", shape.ethertype)
