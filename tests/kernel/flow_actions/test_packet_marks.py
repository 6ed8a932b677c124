# SPDX-License-Identifier: Apache-2.0
"""Marks are hints: of both meanings, with each check, and as a mere sign that the NIC has counted."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.marks import MarkMeaning
from nfcore.plugins.flow_actions.data_plane import DataPlane
from nfcore.plugins.flow_actions.layouts import Action, Path, match_patterns

from .frames import DST, SRC, frame, ipv4, ipv6, number
from .model import FRAGMENT, TCP, UDP, Match, read, rows
from .plane import COUNT, DROP, PASS, actions, open_plane, others, packets, send, set_target
from .test_look_up import WHOLE, frames, matches

FLOW, TARGET = MarkMeaning.FLOW, MarkMeaning.TARGET
MARK, LAST_MARK = 5, 1023
KEEPS_ALL = 9


def some(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint32)


@pytest.mark.parametrize("family", [4, 6])
def test_a_shared_mark_without_a_check_is_trusted(family: int) -> None:
    with open_plane(TARGET) as plane:
        plane.publish_targets(some(MARK, LAST_MARK), some(DROP, COUNT))
        assert send(plane, frame(family), MARK).verdict.name == "XDP_DROP"
        assert send(plane, frame(family), LAST_MARK).verdict.name == "XDP_PASS"
        assert actions(plane, Path.MARK) == {"DROP": 1, "COUNT": 1}
        plane.retire(some(MARK))
        assert send(plane, frame(family), MARK).verdict.name == "XDP_PASS"
        assert others(plane) == {"MARK_UNKNOWN": 1, "NO_MATCH": 1}


@pytest.mark.parametrize("meaning", [FLOW, TARGET])
def test_a_packet_with_a_mark_of_nobody_is_looked_up_and_counted(meaning: MarkMeaning) -> None:
    with open_plane(meaning) as plane:
        plane.add(rows([replace(WHOLE[4], slot=4, target=DROP)]))
        for mark in (MARK, LAST_MARK + 1, 0xFFFF_FFFF):
            assert send(plane, frame(4), mark).verdict.name == "XDP_DROP"
        assert packets(plane, 4) == 3
        assert others(plane) == {"MARK_UNKNOWN": 3}


REQUIRED = {
    "family": Match(4),
    "source": Match(4, number("198.18.1.0"), 24),
    "destination": Match(6, dst=number("2001:db8:10::"), dst_bits=48),
    "all": replace(WHOLE[6], sport=None),
    "port": Match(4, dport=80, proto=TCP),
}


@pytest.fixture(scope="module")
def target_plane() -> Iterator[DataPlane]:
    """The same for all examples: the kernel takes a tenth of a second to load a program."""
    with open_plane(TARGET) as opened:
        yield opened


@pytest.fixture(scope="module")
def flow_plane() -> Iterator[DataPlane]:
    with open_plane(FLOW) as opened:
        yield opened


@pytest.mark.parametrize("name", REQUIRED)
@given(raw=frames())
def test_a_shared_mark_stands_only_for_packets_that_match_what_is_required(
    target_plane: DataPlane, name: str, raw: bytes
) -> None:
    required = REQUIRED[name]
    pattern = match_patterns(rows([required])["key"], np.array([required.family]))[0]
    set_target(target_plane, KEEPS_ALL, Action.DROP, family=required.family, checked=1, require=pattern)
    target_plane.publish_targets(some(MARK), some(KEEPS_ALL))
    before = others(target_plane).get("MARK_MISMATCH", 0)
    facts = read(raw)
    fits = facts is not None and required.matches(facts)
    assert send(target_plane, raw, MARK).verdict.name == ("XDP_DROP" if fits else "XDP_PASS")
    is_ip = raw[12:14] in (b"\x08\x00", b"\x86\xdd")
    assert others(target_plane).get("MARK_MISMATCH", 0) - before == (is_ip and not fits)


def test_ports_can_be_required_of_both_families() -> None:
    with open_plane(TARGET) as plane:
        pattern = match_patterns(rows([Match(4, dport=80, proto=TCP)])["key"], np.array([0]))[0]
        set_target(plane, KEEPS_ALL, Action.DROP, checked=1, require=pattern)
        plane.publish_targets(some(MARK), some(KEEPS_ALL))
        for family in (4, 6):
            assert send(plane, frame(family), MARK).verdict.name == "XDP_DROP"
            assert send(plane, frame(family, dport=81), MARK).verdict.name == "XDP_PASS"
            assert send(plane, frame(family, UDP), MARK).verdict.name == "XDP_PASS"
        assert others(plane)["MARK_MISMATCH"] == 4


@given(entry=matches(), raw=st.lists(frames(), min_size=1, max_size=6))
def test_a_mark_of_a_flow_stands_only_for_its_packets(flow_plane: DataPlane, entry: Match, raw: list[bytes]) -> None:
    entry = replace(entry, slot=7, target=DROP)
    flow_plane.publish_flows(some(MARK), rows([entry]))
    flow_plane.publish_flows(some(MARK + 1), rows([replace(entry, target=COUNT)]))
    for each in [*raw, frame(4), frame(6)]:
        facts = read(each)
        fits = facts is not None and entry.matches(facts)
        assert send(flow_plane, each, MARK).verdict.name == ("XDP_DROP" if fits else "XDP_PASS")
        assert send(flow_plane, each, MARK + 1).verdict.name == "XDP_PASS"
    assert packets(flow_plane, 7) == 0
    flow_plane.retire(some(MARK, MARK + 1))
    assert {send(flow_plane, each, MARK).verdict.name for each in raw} == {"XDP_PASS"}


@pytest.mark.parametrize("family", [4, 6])
def test_a_packet_that_its_mark_does_not_fit_is_looked_up_and_counted(family: int) -> None:
    other = replace(WHOLE[family], dport=443, slot=2, target=PASS)
    with open_plane(FLOW) as plane:
        plane.add(rows([replace(WHOLE[family], slot=1, target=DROP), other]))
        plane.publish_flows(some(MARK), rows([other]))
        assert send(plane, frame(family), MARK).verdict.name == "XDP_DROP"
        assert (packets(plane, 1), packets(plane, 2)) == (1, 0)
        assert others(plane) == {"MARK_MISMATCH": 1}
        assert send(plane, frame(family, dport=443), MARK).verdict.name == "XDP_PASS"
        assert packets(plane, 2) == 0
        assert actions(plane, Path.MARK) == {"PASS": 1}


@pytest.mark.parametrize("meaning", [FLOW, TARGET])
def test_a_mark_may_only_say_that_the_nic_has_counted(meaning: MarkMeaning) -> None:
    entry = replace(WHOLE[4], slot=1, target=DROP)
    with open_plane(meaning, MARKED_LOOK_UP=1) as plane:
        plane.add(rows([entry]))
        if meaning is FLOW:
            plane.publish_flows(some(MARK), rows([replace(entry, target=PASS)]))
        else:
            plane.publish_targets(some(MARK), some(PASS))
        assert send(plane, frame(4), MARK).verdict.name == "XDP_DROP"
        assert packets(plane, 1) == 0
        assert send(plane, frame(4, dport=443), MARK).verdict.name == "XDP_PASS"
        assert others(plane) == {"NO_MATCH": 1}
        assert send(plane, frame(4), MARK + 1).verdict.name == "XDP_DROP"
        assert packets(plane, 1) == 1


@pytest.mark.parametrize("meaning", [FLOW, TARGET])
def test_the_mark_stays_for_the_next_function_and_does_not_leave_by_another_interface(meaning: MarkMeaning) -> None:
    with open_plane(meaning) as plane:
        plane.set_link(0, 1)
        set_target(plane, KEEPS_ALL, Action.REDIRECT, argument=0)
        for target, verdict, left in (
            (COUNT, "XDP_PASS", struct.pack("=I", MARK)),
            (KEEPS_ALL, "XDP_REDIRECT", b""),
        ):
            if meaning is FLOW:
                plane.publish_flows(some(MARK), rows([replace(WHOLE[4], target=target)]))
            else:
                plane.publish_targets(some(MARK), some(target))
            run = send(plane, frame(4), MARK)
            assert (run.verdict.name, run.metadata, run.output) == (verdict, left, frame(4))


def test_marks_of_the_other_meaning_are_a_mistake() -> None:
    with open_plane(TARGET) as plane, pytest.raises(ValueError, match="meaning target, not flow"):
        plane.publish_flows(some(MARK), rows([WHOLE[4]]))
    with open_plane() as plane:
        plane.retire(some(MARK))
        with pytest.raises(ValueError, match="meaning None, not target"):
            plane.publish_targets(some(MARK), some(DROP))


def test_fragments_fit_a_flow_without_ports() -> None:
    by_source = replace(WHOLE[4], sport=None, dport=None, dst=number(DST[4]), slot=1, target=DROP)
    assert by_source.src == number(SRC[4])
    six = replace(WHOLE[6], sport=None, dport=None, target=DROP)
    with open_plane(FLOW) as plane:
        plane.publish_flows(some(MARK, MARK + 1), rows([by_source, six]))
        assert send(plane, ipv4(fragment=0x0004), MARK).verdict.name == "XDP_DROP"
        assert send(plane, ipv6(extensions=(FRAGMENT,), fragment=8), MARK + 1).verdict.name == "XDP_DROP"
