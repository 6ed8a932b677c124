# SPDX-License-Identifier: Apache-2.0
"""The flow table against a dict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nfcore.flows import FlowBatch
from nfcore.flowtable import FlowState, FlowTable
from nfcore.rules import make_cookies

NUMBERS = st.lists(st.integers(0, 30), unique=True, max_size=12)


def flows(numbers: list[int]) -> FlowBatch:
    batch = FlowBatch.empty(len(numbers))
    batch.rows["key"]["sport"] = numbers
    batch.rows["family"] = 4
    batch.rows["target"] = numbers
    return batch


class AgainstADict(RuleBasedStateMachine):
    @initialize(capacity=st.integers(1, 20))
    def start(self, capacity: int) -> None:
        self.capacity = capacity
        self.table = FlowTable(capacity)
        self.slots: dict[int, int] = {}
        self.states: dict[int, FlowState] = {}
        self.cookies: set[int] = set()

    @rule(numbers=NUMBERS)
    def insert(self, numbers: list[int]) -> None:
        new = [number for number in numbers if number not in self.slots]
        batch = flows(new)
        if len(new) > self.capacity - len(self.slots):
            with pytest.raises(ValueError, match="do not fit"):
                self.table.insert(batch, batch.identities(), np.ones(len(new), dtype=np.uint32))
            return
        slots = self.table.insert(batch, batch.identities(), np.array(new, dtype=np.uint32) + 1)
        cookies = set(make_cookies(slots, self.table.rows["generation"][slots]).tolist())
        assert not cookies & self.cookies
        self.cookies |= cookies
        self.slots |= zip(new, slots.tolist(), strict=True)
        self.states |= dict.fromkeys(new, FlowState.PENDING)

    @rule(numbers=NUMBERS)
    def remove(self, numbers: list[int]) -> None:
        there = [number for number in numbers if number in self.slots]
        self.table.remove(np.array([self.slots.pop(number) for number in there], dtype=np.int64))
        for number in there:
            del self.states[number]

    @rule(numbers=NUMBERS, state=st.sampled_from([FlowState.INSTALLED, FlowState.DRAINING]))
    def move(self, numbers: list[int], state: FlowState) -> None:
        there = [number for number in numbers if number in self.slots]
        self.table.rows["state"][[self.slots[number] for number in there]] = state
        self.states |= dict.fromkeys(there, state)

    @invariant()
    def finds_what_the_dict_has(self) -> None:
        everything = list(range(31))
        assert self.table.find(flows(everything).identities()).tolist() == [self.slots.get(n, -1) for n in everything]
        assert len(self.table) == len(self.slots)
        assert self.table.room == self.capacity - len(self.slots)

    @invariant()
    def rows_are_those_of_their_flows(self) -> None:
        tracked = np.array(list(self.slots.values()), dtype=np.int64)
        assert self.table.batch(tracked).rows["target"].tolist() == list(self.slots)
        assert self.table.rows["mark"][tracked].tolist() == [number + 1 for number in self.slots]
        for state in (FlowState.PENDING, FlowState.INSTALLED, FlowState.DRAINING):
            expected = {self.slots[number] for number, its in self.states.items() if its is state}
            assert set(self.table.slots_in(state).tolist()) == expected
            assert self.table.count(state) == len(expected)


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_growth_keeps_what_is_tracked() -> None:
    table = FlowTable(5_000)
    places: list[int] = []
    for start in range(0, 5_000, 500):
        batch = flows(list(range(start, start + 500)))
        places += table.insert(batch, batch.identities(), np.ones(500, dtype=np.uint32)).tolist()
    assert sorted(places) == list(range(5_000))
    assert table.room == 0
    assert table.find(flows(list(range(5_000))).identities()).tolist() == places
    assert len(table.rows) == 5_000


def test_one_batch_may_be_larger_than_the_first_rows() -> None:
    table = FlowTable(20_000)
    batch = flows(list(range(17_000)))
    slots = table.insert(batch, batch.identities(), np.ones(17_000, dtype=np.uint32))
    assert len(set(slots.tolist())) == 17_000


def test_a_reused_slot_starts_anew() -> None:
    table = FlowTable(1)
    first = flows([1])
    slots = table.insert(first, first.identities(), np.array([7], dtype=np.uint32))
    table.rows["packets"][slots], table.rows["state"][slots] = 99, FlowState.INSTALLED
    table.remove(slots)
    assert table.find(first.identities()).tolist() == [-1]
    again = flows([2])
    (slot,) = table.insert(again, again.identities(), np.array([8], dtype=np.uint32)).tolist()
    row = table.rows[slot]
    assert (row["packets"], row["state"], row["mark"], row["generation"]) == (0, FlowState.PENDING, 8, 2)
