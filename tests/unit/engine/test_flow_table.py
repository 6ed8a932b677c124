# SPDX-License-Identifier: Apache-2.0
"""The flow table against a dict, whatever its hash does."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from nfcore.api.flows import FlowBatch
from nfcore.api.rules import make_cookies
from nfcore.engine.flow_index import PROCESS_HASH
from nfcore.engine.flow_state import FlowState
from nfcore.engine.flow_table import COLUMNS, FlowTable

from .test_flow_index import HASHES, flows

UNIVERSE = 31
NUMBERS = st.lists(st.integers(0, UNIVERSE - 1), unique=True, max_size=12)
TRACKED = [state for state in FlowState if state is not FlowState.FREE]
STATES = st.sampled_from(TRACKED)
BEGIN_AT_ZERO = ("mark", "backend", "reason", "attempts", "packets", "bytes", "rate", "due")


def slot_array(slots: list[int]) -> NDArray[np.int64]:
    return np.array(slots, dtype=np.int64)


@dataclass
class Tracked:
    slot: int
    state: FlowState
    since: float
    seen: float
    value: int = 0
    """In all columns that begin at 0."""


class AgainstADict(RuleBasedStateMachine):
    @initialize(capacity=st.integers(0, 20), hash_name=st.sampled_from(sorted(HASHES)))
    def start(self, capacity: int, hash_name: str) -> None:
        self.table = FlowTable(capacity, HASHES[hash_name])
        self.capacity = capacity
        self.flows: dict[int, Tracked] = {}
        self.generations: dict[int, int] = {}
        self.now = 1.0

    def there(self, numbers: list[int]) -> list[int]:
        return [number for number in numbers if number in self.flows]

    def slots_of(self, numbers: list[int]) -> NDArray[np.int64]:
        return slot_array([self.flows[number].slot for number in numbers])

    def enter(self, numbers: list[int], slots: list[int], state: FlowState) -> None:
        for number, slot in zip(numbers, slots, strict=True):
            assert slot not in {flow.slot for flow in self.flows.values()}
            self.flows[number] = Tracked(slot, state, self.now, self.now)

    @rule(numbers=NUMBERS, state=STATES)
    def insert(self, numbers: list[int], state: FlowState) -> None:
        new = [number for number in numbers if number not in self.flows]
        self.now += 1
        if new and len(new) > self.capacity - len(self.flows):
            with pytest.raises(ValueError, match="do not fit"):
                self.table.insert(flows(new), state, self.now)
            return
        slots = self.table.insert(flows(new), state, self.now).tolist()
        self.enter(new, slots, state)
        for slot in slots:
            self.generations[slot] = (self.generations.get(slot, 0) + 1) % 65_536

    @rule(numbers=NUMBERS, data=st.data(), state=STATES)
    def adopt(self, numbers: list[int], data: st.DataObject, state: FlowState) -> None:
        new = [number for number in numbers if number not in self.flows]
        distinct = st.lists(st.integers(0, 22), unique=True, min_size=len(new), max_size=len(new))
        slots = data.draw(distinct)
        generations = data.draw(st.lists(st.sampled_from([0, 7, 65_535]), min_size=len(new), max_size=len(new)))
        self.now += 1
        given = (flows(new), slot_array(slots), np.array(generations, dtype=np.uint16), state, self.now)
        used = {flow.slot for flow in self.flows.values()}
        if any(slot >= self.capacity for slot in slots):
            with pytest.raises(ValueError, match="beyond"):
                self.table.adopt(*given)
        elif used & set(slots):
            with pytest.raises(ValueError, match="in use"):
                self.table.adopt(*given)
        else:
            self.table.adopt(*given)
            self.enter(new, slots, state)
            self.generations |= zip(slots, generations, strict=True)

    @rule(numbers=NUMBERS)
    def remove(self, numbers: list[int]) -> None:
        there = self.there(numbers)
        self.table.remove(self.slots_of(there))
        for number in there:
            del self.flows[number]

    @rule(numbers=NUMBERS, state=STATES)
    def move(self, numbers: list[int], state: FlowState) -> None:
        there = self.there(numbers)
        self.now += 1
        self.table.move(self.slots_of(there), state, self.now)
        for number in there:
            self.flows[number].state, self.flows[number].since = state, self.now

    @rule(numbers=NUMBERS, value=st.integers(1, 255))
    def write_columns(self, numbers: list[int], value: int) -> None:
        there = self.there(numbers)
        for name in BEGIN_AT_ZERO:
            getattr(self.table, name)[self.slots_of(there)] = value
        for number in there:
            self.flows[number].value = value

    @rule(capacity=st.integers(0, 40))
    def change_capacity(self, capacity: int) -> None:
        self.table.capacity = self.capacity = capacity

    @rule(numbers=NUMBERS, state=STATES)
    def free_slots_are_refused(self, numbers: list[int], state: FlowState) -> None:
        free = np.flatnonzero(self.table.state == FlowState.FREE)[:1]
        slots = np.concatenate([self.slots_of(self.there(numbers)), free])
        if len(free):
            with pytest.raises(ValueError, match=f"no flow is in slot {free[0]}"):
                self.table.move(slots, state, self.now)
            with pytest.raises(ValueError, match=f"no flow is in slot {free[0]}"):
                self.table.remove(slots)

    @invariant()
    def finds_what_the_dict_has(self) -> None:
        expected = [self.flows[n].slot if n in self.flows else -1 for n in range(UNIVERSE)]
        assert self.table.find(flows(list(range(UNIVERSE)))).tolist() == expected
        assert len(self.table) == len(self.flows)
        assert self.table.room == self.capacity - len(self.flows)

    @invariant()
    def columns_are_those_of_their_flows(self) -> None:
        table, slots = self.table, self.slots_of(list(self.flows))
        assert {len(getattr(table, name)) for name in COLUMNS} == {len(table.state)}
        assert table.batch(slots).rows["target"].tolist() == list(self.flows)
        tracked = list(self.flows.values())
        assert table.state[slots].tolist() == [flow.state for flow in tracked]
        assert table.since[slots].tolist() == [flow.since for flow in tracked]
        assert table.seen[slots].tolist() == [flow.seen for flow in tracked]
        for name in BEGIN_AT_ZERO:
            assert getattr(table, name)[slots].tolist() == [flow.value for flow in tracked]
        assert table.generation[slots].tolist() == [self.generations[flow.slot] for flow in tracked]

    @invariant()
    def counts_are_those_of_the_states(self) -> None:
        for state in FlowState:
            assert self.table.count(state) == np.count_nonzero(self.table.state == state)
        for states in ([state] for state in TRACKED), [TRACKED[:2], TRACKED[2:], TRACKED]:
            for some in states:
                expected = sorted(flow.slot for flow in self.flows.values() if flow.state in some)
                assert self.table.slots_in(*some).tolist() == expected
                assert self.table.count(*some) == len(expected)


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_growth_keeps_what_is_tracked() -> None:
    table = FlowTable(5_000)
    places: list[int] = []
    for start in range(0, 5_000, 500):
        numbers = list(range(start, start + 500))
        slots = table.insert(flows(numbers), FlowState.PENDING, 1.0)
        table.packets[slots] = numbers
        places += slots.tolist()
    assert sorted(places) == list(range(5_000))
    assert table.room == 0
    assert table.find(flows(list(range(5_000)))).tolist() == places
    assert table.packets[places].tolist() == list(range(5_000))
    assert len(table.state) == 5_000


def test_a_table_starts_small() -> None:
    assert FlowTable(1_000_000).nbytes < 200_000


def test_one_batch_may_be_larger_than_the_first_columns() -> None:
    table = FlowTable(20_000)
    slots = table.insert(flows(list(range(17_000))), FlowState.PENDING, 1.0)
    assert len(set(slots.tolist())) == 17_000


def test_a_reused_slot_starts_anew() -> None:
    table = FlowTable(1)
    slots = table.insert(flows([1]), FlowState.PENDING, 1.0)
    table.packets[slots], table.mark[slots] = 99, 7
    table.move(slots, FlowState.INSTALLED, 2.0)
    table.remove(slots)
    assert table.find(flows([1])).tolist() == [-1]
    (slot,) = table.insert(flows([2]), FlowState.WAITING, 3.0).tolist()
    now = (table.packets[slot], table.state[slot], table.mark[slot], table.generation[slot], table.since[slot])
    assert now == (0, FlowState.WAITING, 0, 2, 3.0)


def test_each_use_of_a_slot_has_its_own_cookie_until_the_generation_wraps() -> None:
    table = FlowTable(1)
    table.adopt(flows([1]), slot_array([0]), np.array([65_500], dtype=np.uint16), FlowState.INSTALLED, 1.0)
    cookies, generations = [], []
    for number in range(50):
        table.remove(slot_array([0]))
        slots = table.insert(flows([number]), FlowState.PENDING, 1.0)
        cookies += make_cookies(slots, table.generation[slots]).tolist()
        generations += table.generation[slots].tolist()
    assert len(set(cookies)) == 50
    assert generations == [*range(65_501, 65_536), *range(15)]


def test_an_adopted_slot_is_not_given_again_and_its_generation_goes_on() -> None:
    table = FlowTable(5_000)
    adopted = slot_array([0, 2, 4_999])
    table.adopt(flows([1, 2, 3]), adopted, np.array([9, 9, 9], dtype=np.uint16), FlowState.INSTALLED, 1.0)
    slots = table.insert(flows(list(range(10, 5_007))), FlowState.PENDING, 2.0)
    assert not set(slots.tolist()) & {0, 2, 4_999}
    assert table.room == 0
    table.remove(adopted[:1])
    again = table.insert(flows([1]), FlowState.PENDING, 3.0)
    assert (again.tolist(), table.generation[again].tolist()) == ([0], [10])


def test_no_flow_becomes_free_by_a_move() -> None:
    table = FlowTable(1)
    slots = table.insert(flows([1]), FlowState.PENDING, 1.0)
    with pytest.raises(ValueError, match="removed"):
        table.move(slots, FlowState.FREE, 2.0)
    assert table.count(FlowState.PENDING) == 1


def test_a_batch_is_a_copy() -> None:
    table = FlowTable(10)
    slots = table.insert(flows([1, 2, 3]), FlowState.PENDING, 1.0)
    batch = table.batch(slots[::-1])
    assert batch.rows.flags.c_contiguous
    assert (batch.rows == flows([3, 2, 1]).rows).all()
    batch.rows["key"]["sport"] = 0
    assert (table.find(flows([1, 2, 3])) == slots).all()


def test_rows_need_not_be_contiguous() -> None:
    table = FlowTable(10)
    every_other = FlowBatch(flows(list(range(10))).rows[::2])
    slots = table.insert(every_other, FlowState.PENDING, 1.0)
    assert (table.find(every_other) == slots).all()
    assert table.batch(slots).rows["target"].tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("hash_name", sorted(HASHES))
def test_churn_beyond_the_first_size_of_the_index(hash_name: str) -> None:
    """Batches at random come and go for long; a dict says what is there."""
    random, universe = np.random.default_rng(5), 3_000
    table = FlowTable(1_200, HASHES[hash_name])
    slots: dict[int, int] = {}
    everything = flows(list(range(universe)))
    for _ in range(12):
        some = random.choice(universe, 400, replace=False).tolist()
        gone = [number for number in some if number in slots]
        table.remove(slot_array([slots.pop(number) for number in gone]))
        new = [number for number in some if number not in gone][: table.room]
        slots |= zip(new, table.insert(flows(new), FlowState.PENDING, 1.0).tolist(), strict=True)
        assert table.find(everything).tolist() == [slots.get(number, -1) for number in range(universe)]
    assert len(slots) > 600
    table.remove(slot_array(list(slots.values())))
    assert (table.find(everything) == -1).all()


def test_a_million_flows_fit() -> None:
    million, step = 1_000_000, 16_384
    table = FlowTable(million, PROCESS_HASH)
    batch = FlowBatch.empty(million)
    batch.rows["key"]["sport"], batch.rows["nf"] = np.arange(million) % 60_000, np.arange(million) // 60_000
    gc.collect()
    objects = sys.getallocatedblocks()
    for start in range(0, million, step):
        table.insert(batch[start : start + step], FlowState.PENDING, 1.0)
    assert sys.getallocatedblocks() - objects < 10_000
    assert table.room == 0
    assert table.nbytes / len(table) < 220
    sample = np.random.default_rng(6).choice(million, 50_000, replace=False)
    slots = table.find(batch[sample])
    assert (table.batch(slots).rows == batch[sample].rows).all()
    table.remove(slots)
    assert (table.find(batch[sample]) == -1).all()
    assert np.count_nonzero(table.find(batch) >= 0) == million - len(sample)
