# SPDX-License-Identifier: Apache-2.0
"""Records from real programs through ring and perf buffers, in bulk."""

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from nfcore.kernel import (
    EventReader,
    Map,
    MapSpec,
    MapType,
    PerfReader,
    Program,
    RingBufferReader,
    XdpAction,
    compile_program,
    possible_cpus,
)
from tests.isolation import on_one_cpu
from tests.paths import PROGRAMS

U32 = np.dtype(np.uint32)
RECORD = np.dtype([("sequence", np.uint32), ("words", np.uint32, (4,))])
FRAME = bytes(64)
NEVER = 1 << 30
PAGE = mmap.PAGESIZE
RING = 8 * PAGE
SLOT = 8 + 24
"""Bytes of a 20-byte record in the ring: header, record, padding."""


@pytest.fixture(autouse=True)
def one_cpu() -> Iterator[None]:
    # A test packet runs on the CPU of its caller, and perf records are in order per CPU.
    with on_one_cpu():
        yield


@contextmanager
def source(
    function: str, events: MapSpec, discard: int = NEVER, odd: int = NEVER, odd_words: int = 3
) -> Iterator[tuple[Program, Map, Map]]:
    """The program, the event map and the counter whose element 0 is the next record's number."""
    with (
        Map.create(events) as event_map,
        Map.create(MapSpec("numbers", MapType.ARRAY, U32, U32, 1)) as numbers,
        compile_program(
            PROGRAMS / f"{function}.c",
            function,
            defines={"DISCARD": discard, "ODD": odd, "ODD_WORDS": odd_words},
            maps={"events": event_map, "numbers": numbers},
        ) as program,
    ):
        yield program, event_map, numbers


def ring_spec(size: int = RING) -> MapSpec:
    return MapSpec("events", MapType.RINGBUF, None, None, size)


def perf_spec() -> MapSpec:
    return MapSpec("events", MapType.PERF_EVENT_ARRAY, U32, U32, possible_cpus())


def check(records: np.ndarray, sequence: np.ndarray) -> None:
    """The records are those with these numbers, in this order, with every word as it was written."""
    assert records.dtype == RECORD
    assert np.array_equal(records["sequence"], sequence)
    number = sequence.astype(np.uint32)
    expected = [number * np.uint32(3), ~number, np.full_like(number, 0xFEEDBEEF), number >> np.uint32(3)]
    assert np.array_equal(records["words"], np.stack(expected, axis=1))


# -- ring buffer ------------------------------------------------------------------------------------


def test_ring_wraps_around() -> None:
    # 7 bursts of 900 records go around a ring of 1,024 slots six times.
    with source("ring", ring_spec()) as (program, events, _), RingBufferReader(events, RECORD) as reader:
        for burst in range(7):
            program.test_run(FRAME, repeat=900)
            assert reader.pending_bytes == 900 * SLOT
            check(reader.read(), np.arange(burst * 900, burst * 900 + 900))
            assert reader.pending_bytes == 0
            assert len(reader.read()) == 0


def test_ring_with_discarded_records() -> None:
    with (
        source("ring", ring_spec(), discard=7) as (program, events, _),
        RingBufferReader(events, RECORD) as reader,
    ):
        for burst in range(5):
            program.test_run(FRAME, repeat=1000)
            numbers = np.arange(burst * 1000, burst * 1000 + 1000)
            check(reader.read(), numbers[numbers % 7 != 6])
        assert reader.pending_bytes == 0


def test_ring_of_discarded_records_only() -> None:
    with (
        source("ring", ring_spec(), discard=1) as (program, events, _),
        RingBufferReader(events, RECORD) as reader,
    ):
        program.test_run(FRAME, repeat=100)
        assert len(reader.read()) == 0
        assert reader.pending_bytes == 0


def test_ring_read_in_portions() -> None:
    with source("ring", ring_spec()) as (program, events, _), RingBufferReader(events, RECORD) as reader:
        program.test_run(FRAME, repeat=250)
        portions = [reader.read(100) for _ in range(4)]
        assert [len(portion) for portion in portions] == [100, 100, 50, 0]
        check(np.concatenate(portions), np.arange(250))


@pytest.mark.parametrize("odd_words", [1, 3, 30])
def test_ring_passes_over_records_of_another_size(odd_words: int) -> None:
    with (
        source("ring", ring_spec(), odd=10, odd_words=odd_words) as (program, events, _),
        RingBufferReader(events, RECORD) as reader,
    ):
        for burst in range(8):
            program.test_run(FRAME, repeat=300)
            numbers = np.arange(burst * 300, burst * 300 + 300)
            check(reader.read(), numbers[numbers % 10 != 9])
        assert reader.odd == 8 * 30
        assert reader.pending_bytes == 0


def test_full_ring_refuses_and_recovers() -> None:
    with (
        source("ring", ring_spec()) as (program, events, numbers),
        RingBufferReader(events, RECORD) as reader,
    ):
        assert program.test_run(FRAME, repeat=2000).verdict is XdpAction.DROP
        fitted = int(numbers.lookup(0))
        assert RING - SLOT <= reader.pending_bytes < RING
        check(reader.read(), np.arange(fitted))
        assert program.test_run(FRAME).verdict is XdpAction.PASS
        check(reader.read(), np.array([fitted]))
        assert reader.lost == 0


def test_records_outlive_the_ring() -> None:
    with source("ring", ring_spec()) as (program, events, _):
        reader = RingBufferReader(events, RECORD)
        program.test_run(FRAME, repeat=10)
        records = reader.read()
        program.test_run(FRAME, repeat=1010)
        reader.close()
        reader.close()
        with pytest.raises(ValueError, match="the reader of events is closed"):
            reader.read()
    check(records, np.arange(10))


def test_second_reader_goes_on_where_the_first_stopped() -> None:
    with source("ring", ring_spec()) as (program, events, _):
        program.test_run(FRAME, repeat=20)
        with RingBufferReader(events, RECORD) as reader:
            check(reader.read(5), np.arange(5))
        with RingBufferReader(events, RECORD) as reader:
            check(reader.read(), np.arange(5, 20))


def test_ring_stops_at_a_record_that_is_being_written() -> None:
    # No program can be held between reserving and submitting: a file laid out like a ring shows the
    # states that the kernel's code goes through.
    length = RECORD.itemsize
    memory = os.memfd_create("ring")
    os.ftruncate(memory, 2 * PAGE + 2 * RING)
    headers = {0: length, 1: length, 2: length | 1 << 31, 3: length}
    for slot, header in headers.items():
        payload = struct.pack("=5I", slot, slot * 3, ~slot & 0xFFFFFFFF, 0xFEEDBEEF, slot >> 3)
        os.pwrite(memory, struct.pack("=II", header, 0) + payload, 2 * PAGE + slot * SLOT)
    os.pwrite(memory, struct.pack("=Q", 4 * SLOT), PAGE)
    with Map(memory, ring_spec()) as events, RingBufferReader(events, RECORD) as reader:
        check(reader.read(), np.arange(2))
        assert reader.pending_bytes == 2 * SLOT
        assert len(reader.read()) == 0
        os.pwrite(memory, struct.pack("=I", length), 2 * PAGE + 2 * SLOT)
        check(reader.read(), np.arange(2, 4))


def test_ring_reader_wants_a_ring() -> None:
    with Map.create(perf_spec()) as events, pytest.raises(TypeError, match="events is a PERF_EVENT_ARRAY"):
        RingBufferReader(events, RECORD)


# -- perf buffers -----------------------------------------------------------------------------------


def test_perf_wraps_around() -> None:
    # 700 records of 32 bytes wrap an 8-page buffer every other burst, mostly in the middle of one.
    with source("perf", perf_spec()) as (program, events, _), PerfReader(events, RECORD, pages=8) as reader:
        for burst in range(9):
            assert program.test_run(FRAME, repeat=700).verdict is XdpAction.PASS
            assert reader.pending_bytes == 700 * 32
            check(reader.read(), np.arange(burst * 700, burst * 700 + 700))
        assert reader.lost == 0
        assert len(reader.read()) == 0


def test_perf_read_in_portions() -> None:
    with source("perf", perf_spec()) as (program, events, _), PerfReader(events, RECORD) as reader:
        program.test_run(FRAME, repeat=250)
        portions = [reader.read(100) for _ in range(4)]
        assert [len(portion) for portion in portions] == [100, 100, 50, 0]
        check(np.concatenate(portions), np.arange(250))


@pytest.mark.parametrize("odd_words", [1, 3, 30])
def test_perf_passes_over_records_of_another_size(odd_words: int) -> None:
    with (
        source("perf", perf_spec(), odd=10, odd_words=odd_words) as (program, events, _),
        PerfReader(events, RECORD, pages=8) as reader,
    ):
        for burst in range(8):
            program.test_run(FRAME, repeat=300)
            numbers = np.arange(burst * 300, burst * 300 + 300)
            check(reader.read(), numbers[numbers % 10 != 9])
        assert reader.odd == 8 * 30


def test_perf_counts_what_was_lost() -> None:
    with (
        source("perf", perf_spec()) as (program, events, _),
        PerfReader(events, RECORD, pages=1) as reader,
    ):
        program.test_run(FRAME, repeat=1000)
        first = reader.read()
        check(first, np.arange(len(first)))
        assert 0 < len(first) < 1000
        # The kernel tells the loss in front of the next record that fits.
        program.test_run(FRAME, repeat=10)
        check(reader.read(), np.arange(1000, 1010))
        assert reader.lost == 1000 - len(first)


def test_perf_uses_the_buffer_of_the_cpu_that_ran() -> None:
    cpus = sorted(range(possible_cpus()))
    with source("perf", perf_spec()) as (program, events, _), PerfReader(events, RECORD) as reader:
        assert len(reader.fds) == len(cpus)
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            program.test_run(FRAME, repeat=10)
        records = reader.read()
        check(np.sort(records, order="sequence"), np.arange(10 * len(cpus)))


def test_perf_on_chosen_cpus() -> None:
    (here,) = os.sched_getaffinity(0)
    with source("perf", perf_spec()) as (program, events, _):
        with PerfReader(events, RECORD, cpus=[here]) as reader:
            program.test_run(FRAME)
            check(reader.read(), np.array([0]))
        # A closed reader has left the map.
        assert program.test_run(FRAME).verdict is XdpAction.DROP
        others = [cpu for cpu in range(possible_cpus()) if cpu != here]
        with PerfReader(events, RECORD, cpus=others) as reader:
            assert program.test_run(FRAME).verdict is XdpAction.DROP
            assert len(reader.read()) == 0


def test_perf_reader_wants_sound_arguments() -> None:
    with Map.create(ring_spec()) as ring, pytest.raises(TypeError, match="events is a RINGBUF"):
        PerfReader(ring, RECORD)
    with Map.create(perf_spec()) as events, pytest.raises(ValueError, match="3 pages"):
        PerfReader(events, RECORD, pages=3)


def test_both_are_event_readers() -> None:
    def drain(reader: EventReader) -> int:
        count = len(reader.read())
        reader.close()
        return count + reader.lost

    with source("perf", perf_spec()) as (program, events, _):
        reader = PerfReader(events, RECORD)
        program.test_run(FRAME, repeat=3)
        assert drain(reader) == 3
    with source("ring", ring_spec()) as (program, events, _):
        program.test_run(FRAME, repeat=3)
        assert drain(RingBufferReader(events, RECORD)) == 3
