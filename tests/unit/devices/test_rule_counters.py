# SPDX-License-Identifier: Apache-2.0
"""Counts of rules that come and go: whole, never less, also over a killed run."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nfcore.api.flows import ReportKind
from nfcore.api.state_file import StateFile
from nfcore.devices.rule_counters import Counts, RuleCounters
from nfcore.engine.engine import COUNTED
from tests.unit.engine.world import IDLE, IFINDEX, Nic, World

ONE = np.zeros(1, dtype=np.uint8)


def counts(*packets: int) -> Counts:
    return np.array([[each, each * 100] for each in packets], dtype=np.uint64)


class Rules(RuleBasedStateMachine):
    """Rules of two backends as a NIC would have them, and a meter that sees them now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = RuleCounters(2)
        self.shown: list[tuple[int, int, int]] = []
        """Per rule: backend, what it shows, what the meter saw."""
        self.truth = [0, 0]

    @rule(backend=st.integers(0, 1))
    def install(self, backend: int) -> None:
        self.shown.append((backend, 0, 0))

    @rule(at=st.integers(0, 1000), packets=st.integers(0, 1 << 40))
    def hit(self, at: int, packets: int) -> None:
        if self.shown:
            backend, now, seen = self.shown[at % len(self.shown)]
            self.shown[at % len(self.shown)] = backend, now + packets, seen
            self.truth[backend] += packets

    @rule()
    def dump(self) -> None:
        backends = np.array([backend for backend, _, _ in self.shown], dtype=np.uint8)
        before, now = (counts(*(each[column] for each in self.shown)).reshape(-1, 2) for column in (2, 1))
        self.meter.count(backends, before, now)
        self.shown = [(backend, shown, shown) for backend, shown, _ in self.shown]

    @rule(at=st.integers(0, 1000))
    def remove(self, at: int) -> None:
        if self.shown:
            backend, now, seen = self.shown.pop(at % len(self.shown))
            self.meter.count(np.full(1, backend, dtype=np.uint8), counts(seen), counts(now))
            self.meter.end(np.full(1, backend, dtype=np.uint8), counts(now))

    @rule(after_note=st.booleans())
    def kill(self, after_note: bool) -> None:
        """The next run finds the rules, and a note that everything was written to."""
        self.dump()
        note = json.loads(json.dumps(self.meter.note(["a", "b"])))
        self.meter = RuleCounters(2)
        self.shown = [(backend, shown, 0) for backend, shown, _ in self.shown]
        self.dump()
        self.meter.resume(["a", "b"], note)
        assert self.meter.total[:, 0].tolist() == self.truth

    @invariant()
    def what_was_seen_is_counted_once(self) -> None:
        unseen = [sum(now - seen for at, now, seen in self.shown if at == backend) for backend in (0, 1)]
        found = self.meter.total[:, 0].tolist()
        assert [have + missing for have, missing in zip(found, unseen, strict=True)] == self.truth
        assert (self.meter.total[:, 1] == self.meter.total[:, 0] * np.uint64(100)).all()


TestRules = Rules.TestCase


@given(st.lists(st.integers(0, 1 << 50), max_size=20))
def test_no_counter_makes_the_total_less(shown: list[int]) -> None:
    meter, before, last = RuleCounters(1), 0, 0
    for now in shown:
        meter.count(ONE, counts(before), counts(now))
        total = int(meter.total[0, 0])
        assert total >= max(last, now)
        before, last = now, total


def test_a_counter_that_begins_anew_keeps_what_it_had_shown() -> None:
    meter = RuleCounters(1)
    meter.count(ONE, counts(0), counts(70))
    meter.count(ONE, counts(70), counts(5))
    assert meter.total.tolist() == [[75, 7500]]
    assert meter.note(["nic"]) == {"nic": [75, 7500, 70, 7000]}


@pytest.mark.parametrize("note", [{}, {"nic": None}, {"nic": [1, 2, 3]}, {"nic": [1, 2, 3, -4]}, {"nic": ["1"] * 4}])
def test_a_note_that_cannot_be_read_counts_for_nothing(note: dict[str, object]) -> None:
    meter = RuleCounters(1)
    meter.count(ONE, counts(0), counts(3))
    meter.resume(["nic"], note)
    assert meter.total.tolist() == [[3, 300]]


def test_no_less_is_counted_than_was_noted() -> None:
    """A rule ended after the last note: what it had counted is known from what all had."""
    meter = RuleCounters(1)
    meter.count(ONE, counts(0), counts(10))
    meter.resume(["nic"], {"nic": [1000, 100_000, 200, 20_000]})
    assert meter.total.tolist() == [[1000, 100_000]]
    assert meter.note(["nic"]) == {"nic": [1000, 100_000, 990, 99_000]}


# In the engine


def in_hardware(world: World) -> int:
    return int(world.engine.state.devices[IFINDEX].rule_counters.total[:, 0].sum())


@pytest.fixture(params=["dest-id", "flow-id"])
def world(request: pytest.FixtureRequest, make: Callable[..., World]) -> World:
    made = make(request.param)
    made.nf.known_targets = [7]
    made.start()
    return made


def end(world: World, port: int) -> None:
    """Let a connection end, and with it its flow's rule."""
    batch = world.flows(port, marks=[1])
    batch.rows["kind"] = ReportKind.ENDED
    world.nf.reports.append(batch)
    world.engine.poll()


def hit(nic: Nic, packets: int) -> None:
    for cookie in nic.hits:
        nic.hits[cookie] += packets


def test_what_ended_rules_had_counted_stays(world: World) -> None:
    world.report(1001, target=7)
    hit(world.nic, 40)
    world.pass_time(IDLE / 4)
    assert in_hardware(world) == 40
    end(world, 1001)
    world.pass_time(IDLE / 4)
    assert (len(world.nic.rules), in_hardware(world)) == (0, 40)
    world.report(1001, target=7)
    hit(world.nic, 2)
    world.pass_time(IDLE / 4)
    assert in_hardware(world) == 42
    table, (slot,) = world.engine.table, world.engine.table.find(world.flows(1001, marks=[1]))
    assert (table.packets[slot], table.past_packets[slot]) == (2, 40)


def test_a_backend_tells_what_came_after_the_last_dump(world: World) -> None:
    world.nic.tells_counts = True
    world.report(1001, target=7)
    hit(world.nic, 40)
    world.pass_time(IDLE / 4)
    hit(world.nic, 15)
    end(world, 1001)
    assert in_hardware(world) == 55


def test_rules_that_vanish_keep_what_they_had_counted(world: World) -> None:
    world.report(1001, target=7)
    hit(world.nic, 40)
    world.pass_time(IDLE / 4)
    world.nic.rules.clear()
    world.pass_time(IDLE / 4)
    hit(world.nic, 3)
    world.pass_time(IDLE / 4)
    assert in_hardware(world) == 43


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "killed at once"])
def test_the_run_after_a_killed_one_goes_on_counting(make: Callable[..., World], noted: bool) -> None:
    """All that is missing is what a rule had counted that ended a moment before, and had not been noted as gone."""
    first = make("dest-id")
    first.nf.known_targets = [7]
    first.start()
    first.report(1001, 1002, target=7)
    hit(first.nic, 40)
    first.pass_time(IDLE / 4)
    end(first, 1002)
    if noted:
        first.pass_time(0.25)
    hit(first.nic, 60)
    second = make("dest-id")
    second.context.state_file = StateFile()
    second.context.state_file._values = first.context.state_file._values
    second.nf.known_targets, second.nic.rules, second.nic.hits = [7], first.nic.rules, first.nic.hits
    assert second.context.state_file.get_text(COUNTED)
    second.start()
    assert second.engine.counters.totals["adopted"] == 1
    assert in_hardware(second) == 40 + 60 + (40 if noted else 0)
