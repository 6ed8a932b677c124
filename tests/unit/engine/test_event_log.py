# SPDX-License-Identifier: Apache-2.0
"""The ring of events: what is kept, in which order, and what is known of what is not."""

from __future__ import annotations

import gc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.flows import FLOW_ROW, WHOLE_FLOW
from nfcore.api.reasons import Reason
from nfcore.engine.event_kind import EventKind
from nfcore.engine.event_log import NO_BACKEND, NOTES_KEPT, TEXTS_KEPT, EventLog


def flows(numbers: list[int]) -> np.ndarray:
    rows = np.zeros(len(numbers), dtype=FLOW_ROW)
    rows["target"] = numbers
    return rows


BATCHES = st.lists(st.one_of(st.integers(0, 25), st.none()), max_size=30)
"""Sizes of batches; None: a note."""


@given(capacity=st.integers(1, 20), batches=BATCHES, since=st.integers(0, 400), opaque=st.booleans())
def test_the_last_events_are_kept_in_order(capacity: int, batches: list[int | None], since: int, opaque: bool) -> None:
    log, of_flows, notes, number = EventLog(capacity, lambda: 5.0), [], [], 0
    for size in batches:
        if size is None:
            log.note(EventKind.RELOAD, f"note {number}")
            notes.append(number)
            number += 1
            continue
        numbers = list(range(number, number + size))
        rows = flows(numbers)
        marks = np.array(numbers, dtype=np.uint32) * 2
        log.record(EventKind.INSTALLED, rows.view(WHOLE_FLOW) if opaque else rows, mark=marks, reason=3)
        of_flows += numbers
        number += size
    assert log.next == number
    records, kept = log.since(since)
    wanted = [each for each in of_flows[-capacity:] if each >= since]
    assert records["seq"].tolist() == records.flows["target"].tolist() == wanted
    assert (records["mark"] == records["seq"] * 2).all() and (records["reason"] == 3).all()
    assert [note.seq for note in kept] == [each for each in notes if each >= since]
    some = records.only(records["seq"] % 2 == 0)
    assert some.flows["target"].tolist() == [each for each in wanted if each % 2 == 0]


def test_notes_survive_a_flood_of_flows() -> None:
    log = EventLog(1000)
    log.note(EventKind.LINK, "down", "eth1")
    for _ in range(50):
        log.record(EventKind.REFUSED, flows(list(range(1000))), reason=Reason.EXCLUDED)
    records, (note,) = log.since(0)
    assert (len(records), note.message, note.interface) == (1000, "down", "eth1")


def test_ends_are_told_apart_by_their_reasons() -> None:
    log = EventLog(100)
    reasons = np.array([Reason.IDLE, Reason.REPLACED, Reason.ENDED, Reason.MOVED, Reason.IDLE], dtype=np.uint8)
    numbers = np.arange(5, dtype=np.uint64)
    log.ended(
        flows([0, 1, 2, 3, 4]),
        reasons,
        mark=numbers.astype(np.uint32),
        backend=numbers.astype(np.uint8),
        packets=numbers,
        bytes_=numbers * 100,
    )
    records, _ = log.since(0)
    told = dict(zip(records.flows["target"].tolist(), records["kind"].tolist(), strict=True))
    aged, replaced, ended = EventKind.AGED, EventKind.REPLACED, EventKind.ENDED
    assert told == {0: aged, 1: replaced, 2: ended, 3: ended, 4: aged}
    assert (records["bytes"] == records["packets"] * 100).all()
    assert (records["packets"] == records.flows["target"]).all() and (records["backend"] != NO_BACKEND).all()


def test_texts_are_kept_once_and_not_without_end() -> None:
    log = EventLog(10)
    first = log.text_number("no space left")
    assert log.text_number("no space left") == first != 0
    for number in range(TEXTS_KEPT):
        log.text_number(f"words {number}")
    assert log.text_of(first) is None and log.text_of(0) is None
    assert log.text_of(log.text_number("words 1023")) == "words 1023"


def test_notes_do_not_grow_without_end() -> None:
    log = EventLog(10)
    for number in range(NOTES_KEPT + 5):
        log.note(EventKind.NIC, str(number))
    assert len(log.since(0)[1]) == NOTES_KEPT


def test_a_million_flows_make_no_objects() -> None:
    log, rows = EventLog(65_536), flows(list(range(10_000)))
    gc.collect()
    before = len(gc.get_objects())
    size = log.nbytes
    for _ in range(100):
        log.record(EventKind.REFUSED, rows, reason=Reason.SHARE)
    assert len(gc.get_objects()) - before < 100
    assert log.next == 1_000_000 and log.nbytes == size
