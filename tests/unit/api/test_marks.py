# SPDX-License-Identifier: Apache-2.0
"""Marks: one meaning at a time, and no second one before the quarantine is over."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nfcore.api.mark_pools import CpuPools
from nfcore.api.marks import MarkAllocator, MarkState

QUARANTINE = 5.0
WIDTH = 6
SLOTS = 8
CPUS = [0, 2]
POOL = np.dtype([("taken", "<u4"), ("filled", "<u4"), ("slots", "<u4", (SLOTS,))])
COUNTS_BEFORE_WRAP = 2**32 - 3


def marks_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint32)


class Xdp:
    """XDP's side of the pools: the same as `take_mark` and `give_back_mark` of bpf/balancer/mark_pool.h."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def take(self, cpu: int) -> int:
        row = self._rows[cpu]
        if self.ahead(cpu) <= 0:
            return 0
        mark = int(row["slots"][int(row["taken"]) % SLOTS])
        self._rows["taken"][cpu] = (int(row["taken"]) + 1) % 2**32
        return mark

    def ahead(self, cpu: int) -> int:
        """`filled` less `taken` as the signed number that the C code sees."""
        return (int(self._rows[cpu]["filled"]) - int(self._rows[cpu]["taken"]) + 2**31) % 2**32 - 2**31

    def give_back(self, cpu: int) -> None:
        self._rows["taken"][cpu] = (int(self._rows["taken"][cpu]) - 1) % 2**32


class LivesOfMarks(RuleBasedStateMachine):
    """Compares MarkAllocator and CpuPools with sets of marks and the times of their release."""

    @initialize()
    def start(self) -> None:
        self.now = 100.0
        self.allocator = MarkAllocator(WIDTH, QUARANTINE, lambda: self.now)
        self.rows = np.zeros(3, dtype=POOL)
        self.rows["taken"] = self.rows["filled"] = COUNTS_BEFORE_WRAP
        self.pools = CpuPools(self.rows, CPUS)
        self.xdp = Xdp(self.rows)
        self.pooled: dict[int, list[int]] = {cpu: [] for cpu in CPUS}
        self.reported: set[int] = set()
        self.live: set[int] = set()
        self.released: dict[int, float] = {}

    def _check_new(self, marks: list[int]) -> None:
        assert len(set(marks)) == len(marks)
        assert not self._held() & set(marks)
        for mark in marks:
            assert 1 <= mark < 1 << WIDTH
            assert self.now - self.released.pop(mark, -QUARANTINE) >= QUARANTINE

    @rule(seconds=st.sampled_from([0.5, 2.0, QUARANTINE, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(wanted=st.integers(0, 12))
    def take(self, wanted: int) -> None:
        free = (1 << WIDTH) - 1 - self._busy()
        marks = self.allocator.take(wanted).tolist()
        assert len(marks) == min(wanted, free)
        self._check_new(marks)
        self.live |= set(marks)

    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        """Claims particular marks: gets those that are free and out of quarantine, each once."""
        any_mark = st.one_of(st.integers(0, (1 << WIDTH) + 1), st.just(2**32 - 1))
        marks = data.draw(st.lists(any_mark, max_size=12))
        unavailable = self._held() | {mark for mark, since in self.released.items() if self.now - since < QUARANTINE}
        free = [0 < mark < 1 << WIDTH and mark not in unavailable for mark in marks]
        assert self.allocator.free(marks_of(*marks)).tolist() == free
        expected = [free[number] and mark not in marks[:number] for number, mark in enumerate(marks)]
        given = self.allocator.claim(marks_of(*marks))
        assert given.tolist() == expected
        claimed = marks_of(*marks)[given].tolist()
        self._check_new(claimed)
        self.live |= set(claimed)

    def _held(self) -> set[int]:
        return {mark for pool in self.pooled.values() for mark in pool} | self.reported | self.live

    def _busy(self) -> int:
        quarantined = sum(self.now - since < QUARANTINE for since in self.released.values())
        return sum(map(len, self.pooled.values())) + len(self.reported) + len(self.live) + quarantined

    @rule(chunk=st.integers(2, 2 * SLOTS))
    def lease(self, chunk: int) -> None:
        if (1 << WIDTH) - 1 - self._busy() < len(CPUS) * min(chunk, SLOTS - 1):
            return  # then marks are reclaimed from other CPUs, which PoolsUnderReclaim tests
        before = {cpu: self.pools.stock(cpu) for cpu in CPUS}
        leased = self.pools.lease(self.allocator, chunk)
        added: dict[int, list[int]] = {}
        for cpu in CPUS:
            first, stock = int(self.rows[cpu]["taken"]) + before[cpu], self.pools.stock(cpu)
            added[cpu] = [int(self.rows[cpu]["slots"][(first + n) % SLOTS]) for n in range(stock - before[cpu])]
            assert stock <= SLOTS - 1 or not added[cpu]
        new = [mark for marks in added.values() for mark in marks]
        assert leased == len(new)
        self._check_new(new)
        for cpu in CPUS:
            self.pooled[cpu] += added[cpu]

    @rule(cpu=st.sampled_from(CPUS))
    def xdp_reports(self, cpu: int) -> None:
        mark = self.xdp.take(cpu)
        assert mark == (self.pooled[cpu].pop(0) if self.pooled[cpu] else 0)
        if mark:
            self.reported.add(mark)

    @rule(cpu=st.sampled_from(CPUS), chunk=st.integers(2, SLOTS))
    def xdp_gives_back_after_a_lease(self, cpu: int, chunk: int) -> None:
        mark = self.xdp.take(cpu)
        if not mark:
            return
        assert self.pooled[cpu].pop(0) == mark
        self.reported.add(mark)  # XDP has it while user space fills the pools
        self.lease(chunk)
        self.reported.discard(mark)
        self.xdp.give_back(cpu)
        self.pooled[cpu].insert(0, mark)

    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        foreign = st.sampled_from([0, 1 << WIDTH, 2**32 - 1, *sorted(self.live), *sorted(self.released)])
        known = st.sampled_from(sorted(self.reported)) if self.reported else foreign
        marks = data.draw(st.lists(st.one_of(known, foreign), max_size=8))
        first = [mark in self.reported and mark not in marks[:number] for number, mark in enumerate(marks)]
        assert self.allocator.confirm(marks_of(*marks)).tolist() == first
        self.live |= self.reported & set(marks)
        self.reported -= set(marks)

    @rule(data=st.data())
    @precondition(lambda self: self.live | self.reported)
    def release(self, data: st.DataObject) -> None:
        marks = data.draw(st.lists(st.sampled_from(sorted(self.live | self.reported)), min_size=1, max_size=8))
        self.allocator.release(marks_of(0, *marks))
        self.live -= set(marks)
        self.reported -= set(marks)
        self.released |= dict.fromkeys(marks, self.now)

    @rule(data=st.data())
    def wrong_release_changes_nothing(self, data: st.DataObject) -> None:
        others = sorted({1 << WIDTH, *range(1, 1 << WIDTH)} - self._held())
        wrong = data.draw(st.sampled_from(others or [1 << WIDTH]))
        good = sorted(self.live)[:1]
        before = self.allocator.state.copy()
        with pytest.raises(ValueError, match=f"mark {wrong} cannot be released"):
            self.allocator.release(marks_of(wrong, *good))
        assert (self.allocator.state == before).all()

    @invariant()
    def each_mark_is_in_one_state(self) -> None:
        states = self.allocator.state
        leased = {mark for pool in self.pooled.values() for mark in pool} | self.reported
        assert set(np.flatnonzero(states == MarkState.LIVE).tolist()) == self.live
        assert set(np.flatnonzero(states == MarkState.LEASED).tolist()) == leased
        quarantined = set(np.flatnonzero(states == MarkState.QUARANTINED).tolist())
        assert quarantined <= self.released.keys()
        assert {mark for mark, since in self.released.items() if self.now - since < QUARANTINE} <= quarantined
        assert sum(self.allocator.count(state) for state in MarkState) == (1 << WIDTH) - 1

    @invariant()
    def stock_is_the_length_of_the_pool(self) -> None:
        for cpu in CPUS:
            assert self.pools.stock(cpu) == len(self.pooled[cpu]) <= SLOTS
        assert self.pools.stock(1) == 0


TestLivesOfMarks = LivesOfMarks.TestCase
TestLivesOfMarks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class PoolsUnderReclaim(RuleBasedStateMachine):
    """Few marks, CPUs that need different numbers of them, and programs that read a count before it changed.

    XDP takes a mark in two steps, and user space may run between them: it reads `filled`, and then takes a mark (and
    may give it back) if there is one. No such program runs for longer than `CpuPools.SETTLED`.
    """

    @initialize(width=st.integers(3, 6), wrap=st.booleans())
    def begin(self, width: int, wrap: bool) -> None:
        self.now = 100.0
        self.allocator = MarkAllocator(width, QUARANTINE, lambda: self.now)
        self.rows = np.zeros(3, dtype=POOL)
        self.rows["taken"] = self.rows["filled"] = COUNTS_BEFORE_WRAP if wrap else 0
        self.pools = CpuPools(self.rows, CPUS, lambda: self.now)
        self.xdp = Xdp(self.rows)
        self.looked: dict[int, bool] = {}
        """CPU that runs a program → whether the program saw a mark."""
        self.reported_by: dict[int, int] = {}
        """Reported mark → the CPU that took it."""

    def _may_run_on(self, seconds: float) -> None:
        if seconds >= CpuPools.SETTLED:
            for cpu in CPUS:
                self.finish(cpu, give_back=False)
        self.now += seconds

    @rule(seconds=st.sampled_from([0.001, CpuPools.SETTLED, 1.0, QUARANTINE]))
    def time_passes(self, seconds: float) -> None:
        self._may_run_on(seconds)

    @rule(chunk=st.integers(2, SLOTS))
    def lease(self, chunk: int) -> None:
        self.pools.lease(self.allocator, chunk)

    @rule(cpu=st.sampled_from(CPUS))
    def look(self, cpu: int) -> None:
        self.finish(cpu, give_back=False)
        self.looked[cpu] = self.xdp.ahead(cpu) > 0

    @rule(cpu=st.sampled_from(CPUS), give_back=st.booleans())
    def finish(self, cpu: int, give_back: bool) -> None:
        if not self.looked.pop(cpu, False):
            return
        taken = int(self.rows[cpu]["taken"])
        mark = int(self.rows[cpu]["slots"][taken % SLOTS])
        self.rows["taken"][cpu] = (taken + 1) % 2**32
        assert mark not in self.reported_by, "a mark was taken twice"
        assert self.allocator.state[mark] == MarkState.LEASED, "a mark was taken that is not leased"
        if give_back:
            self.xdp.give_back(cpu)
        else:
            self.reported_by[mark] = cpu

    @rule(cpu=st.sampled_from(CPUS), times=st.integers(1, SLOTS))
    def take_many(self, cpu: int, times: int) -> None:
        for _ in range(times):
            self.look(cpu)
            self.finish(cpu, give_back=False)

    @rule(live=st.booleans())
    def read_the_reports(self, live: bool) -> None:
        marks = marks_of(*sorted(self.reported_by))
        if live:
            assert self.allocator.confirm(marks).all()
        self.allocator.release(marks)
        self.reported_by.clear()

    @rule(cpu=st.sampled_from(CPUS))
    def each_cpu_gets_marks_in_the_end(self, cpu: int) -> None:
        """However the marks are distributed, each CPU gets some after several leases."""
        for _ in range(8):
            self._may_run_on(QUARANTINE)
            self.read_the_reports(live=False)
            self.pools.lease(self.allocator, 4)
        assert self.pools.stock(cpu) > 0

    @invariant()
    def no_mark_is_lost(self) -> None:
        on_lease = int(np.count_nonzero(self.allocator.state == MarkState.LEASED))
        held = [self.xdp.ahead(cpu) for cpu in CPUS]
        hidden = 0
        if self.pools._reclaiming is not None:
            _, _, filled, reduced = self.pools._reclaiming
            hidden = (filled - reduced) % 2**32
        assert sum(held) + hidden + len(self.reported_by) == on_lease
        marks = [
            int(self.rows[cpu]["slots"][(int(self.rows[cpu]["taken"]) + n) % SLOTS])
            for cpu in CPUS
            for n in range(max(0, self.xdp.ahead(cpu)))
        ]
        assert len(set(marks) | set(self.reported_by)) == len(marks) + len(self.reported_by), "a mark is in two pools"


TestPoolsUnderReclaim = PoolsUnderReclaim.TestCase
TestPoolsUnderReclaim.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_mark_that_is_free_longest_is_taken_first() -> None:
    allocator = MarkAllocator(3, 0.0, lambda: 0.0)
    assert allocator.take(3).tolist() == [1, 2, 3]
    allocator.release(marks_of(2))
    assert allocator.take(9).tolist() == [4, 5, 6, 7, 2]
    assert allocator.generation[[1, 2]].tolist() == [0, 1]


def test_claimed_marks_are_not_taken() -> None:
    allocator = MarkAllocator(3, 0.0, lambda: 0.0)
    assert allocator.claim(marks_of(5, 2, 5)).tolist() == [True, True, False]
    allocator.release(marks_of(5))
    assert allocator.take(9).tolist() == [1, 3, 4, 6, 7, 5]
    assert allocator.claim(marks_of(1, 2, 5)).tolist() == [False, False, False]


def test_a_lease_fills_only_pools_below_half_a_chunk() -> None:
    rows = np.zeros(2, dtype=POOL)
    pools, allocator, xdp = CpuPools(rows, [0, 1]), MarkAllocator(8, 0.0), Xdp(rows)
    assert pools.lease(allocator, 4) == 8
    xdp.take(0)
    assert pools.lease(allocator, 4) == 0
    xdp.take(0)
    xdp.take(0)
    assert pools.lease(allocator, 4) == 3
    assert [pools.stock(0), pools.stock(1)] == [4, 4]


def test_an_exhausted_allocator_leases_what_it_has() -> None:
    rows = np.zeros(2, dtype=POOL)
    pools = CpuPools(rows, [0, 1])
    assert pools.lease(MarkAllocator(2, 0.0), 4) == 3
    # The second CPU gets none now; half of the first pool is being reclaimed.
    assert [pools.stock(0), pools.stock(1)] == [2, 0]


def test_a_cpu_without_marks_is_served_before_one_that_has_some() -> None:
    rows = np.zeros(2, dtype=POOL)
    pools, allocator, xdp = CpuPools(rows, [0, 1]), MarkAllocator(4, 0.0), Xdp(rows)
    assert pools.lease(allocator, 6) == 12
    rest = allocator.take(9)
    for cpu, taken in ((0, 4), (1, 6)):
        for _ in range(taken):
            assert xdp.take(cpu)
    allocator.release(rest)
    assert (len(rest), pools.lease(allocator, 6)) == (3, 3)
    assert [pools.stock(0), pools.stock(1)] == [2, 3]


@pytest.mark.parametrize("width", [0, 25, -1])
def test_width_out_of_range(width: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 24"):
        MarkAllocator(width, 1.0)
