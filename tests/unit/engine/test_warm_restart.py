# SPDX-License-Identifier: Apache-2.0
"""The run after a killed one: what it takes over and what it removes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nfcore.api.config import ConfigTable
from nfcore.api.flows import SERVICE_TAG
from nfcore.api.rules import SetMark
from nfcore.devices.worker import Job
from nfcore.engine.engine import Engine
from nfcore.engine.flow_state import FlowState

from .world import GRACE, IDLE, IFINDEX, LAG, World


def killed_and_restarted(make: Callable[..., World], first: World, strategy: str) -> World:
    """Another run over the NIC, the notes and the entries that the first one left."""
    second = make(strategy)
    second.plugins._manager.unregister(name="nic")
    second.nics = first.nics
    second.plugins.register(first.nic, "nic")
    second.context.state_file = first.context.state_file
    second.nf.entries = dict(first.nf.entries)
    second.now = first.now
    return second


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_the_next_run_takes_over_what_means_the_same(make: Callable[..., World], strategy: str) -> None:
    first = make(strategy)
    first.start()
    first.report(1001, 1002)
    rules = dict(first.nic.rules)
    marks = {rule.action.mark for rule in rules.values() if isinstance(rule.action, SetMark)}
    second = killed_and_restarted(make, first, strategy)
    second.start()
    assert second.nic.rules == rules
    assert second.engine.counters.totals["adopted"] == 2
    assert second.engine.table.count(FlowState.INSTALLED) == 2
    assert set(second.engine.table.flow["target"][:2].tolist()) == {7}
    # Known flows are known, new ones get other marks, and in the end all goes as if nothing had happened.
    second.report(1001)
    second.report(1003)
    assert second.engine.counters.totals["events_known"] == 1
    if strategy == "flow-id":
        fresh = {r.action.mark for r in second.nic.rules.values() if isinstance(r.action, SetMark)} - marks
        assert len(fresh) == 1
    second.pass_time(IDLE + LAG)
    second.pass_time(IDLE + LAG)
    second.pass_time(GRACE)
    assert (second.active, second.nic.rules) == (0, {})


def test_the_next_run_takes_over_rules_with_their_vlan_tags(make: Callable[..., World]) -> None:
    first = make("dest-id")
    first.nic.capabilities = replace(first.nic.capabilities, vlans=True)
    first.start()
    batch = first.flows(1001)
    batch.rows["vlans"] = SERVICE_TAG | 100, 7
    first.nf.reports.append(batch)
    first.engine.poll()
    rules = dict(first.nic.rules)
    second = killed_and_restarted(make, first, "dest-id")
    second.start()
    (slot,) = second.engine.table.slots_in(FlowState.INSTALLED)
    assert second.engine.table.flow["vlans"][slot].tolist() == [SERVICE_TAG | 100, 7]
    second.pass_time(LAG)
    assert second.nic.rules == rules
    assert second.engine.counters.totals["orphans_removed"] == 0


def test_the_next_run_removes_what_means_something_else(make: Callable[..., World]) -> None:
    first = make("dest-id")
    first.start()
    first.report(1001, 1002)
    second = killed_and_restarted(make, first, "dest-id")
    second.nf.known_targets = [8, 7]  # other numbers than before
    second.start()
    assert second.nic.rules == {}
    assert second.engine.counters.totals["stale_removed"] == 2
    assert len(second.engine.table) == 0


class Order(ConfigTable):
    """The table of a strategy that gives marks in an order of its own."""

    begin: int = 1


@pytest.mark.parametrize(("begin", "kept"), [(1, 2), (2, 0)])
def test_another_table_of_the_strategy_gives_marks_another_meaning(
    make: Callable[..., World], begin: int, kept: int
) -> None:
    first = make("dest-id")
    first.context.config = replace(first.context.config, sections={"marking": Order()})
    first.start()
    first.report(1001, 1002)
    second = killed_and_restarted(make, first, "dest-id")
    second.context.config = replace(second.context.config, sections={"marking": Order(begin=begin)})
    second.start()
    assert len(second.nic.rules) == second.engine.counters.totals["adopted"] == kept


def test_a_mark_without_its_entry_is_not_taken_over(make: Callable[..., World]) -> None:
    first = make("flow-id")
    first.start()
    first.report(1001, 1002)
    second = killed_and_restarted(make, first, "flow-id")
    second.nf.entries.pop(min(second.nf.entries))
    second.start()
    assert len(second.nic.rules) == second.engine.table.count(FlowState.INSTALLED) == 1


def test_nothing_is_kept_for_a_flow_whose_rule_is_not_taken_over(make: Callable[..., World]) -> None:
    """Its mark has been given to another by then."""
    first = make("flow-id")
    first.start()
    first.report(1001, 1002)
    second = killed_and_restarted(make, first, "flow-id")
    second.nf.kept = set(first.nf.kept)
    marks = second.context.marks
    assert marks.claim(np.array([min(first.nf.entries)], dtype=np.uint32)).all()
    second.start()
    assert len(second.nic.rules) == len(second.nf.kept) == 1
    assert second.keeps_right()


def test_nothing_is_kept_when_the_take_over_fails(make: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    first = make("flow-id")
    first.start()
    first.report(1001, 1002)
    second = killed_and_restarted(make, first, "flow-id")
    monkeypatch.setattr(second.context.marks, "claim", lambda marks: 1 // 0)
    second.start()
    assert second.nf.kept == set()


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_a_reload_ends_what_is_kept_for_others(make: Callable[..., World], strategy: str) -> None:
    world = make(strategy)
    world.start()
    world.report(1001)
    world.nf.kept.add(b"a flow that was forgotten")
    world.engine.apply(world.context.config, {})
    assert len(world.nf.kept) == 1
    assert world.keeps_right()


class Killed(BaseException):
    """What a process does not survive."""


def test_a_run_killed_while_it_removes_leaves_nothing_that_the_next_would_trust(make: Callable[..., World]) -> None:
    first = make("dest-id")
    first.nf.known_targets = [7, 8]
    first.start()
    first.report(1001, target=7)
    second = killed_and_restarted(make, first, "dest-id")
    second.nf.known_targets = [8, 7]

    class Deadly:
        calls = 0

        def call(self, job: Job) -> object:
            self.calls += 1
            if self.calls == 2:  # the NIC has been probed, and its rules are to go
                raise Killed
            return job()

    second.worker = Deadly()
    second.engine = Engine(second.context, second.plugins, {IFINDEX: second.worker}, lambda: second.now)
    with pytest.raises(Killed):
        second.engine.start()
    assert second.worker.calls == 2
    third = killed_and_restarted(make, second, "dest-id")
    third.nf.known_targets = [8, 7]
    third.start()
    assert third.nic.rules == {}
    assert third.engine.counters.totals["adopted"] == 0


def test_rules_that_could_not_be_removed_are_not_trusted_by_the_next_run(make: Callable[..., World]) -> None:
    first = make("dest-id")
    first.nf.known_targets = [7, 8]
    first.start()
    first.report(1001, target=7)
    second = killed_and_restarted(make, first, "dest-id")
    second.nf.known_targets = [8, 7]
    second.nic.stuck = True
    second.start()
    third = killed_and_restarted(make, second, "dest-id")
    third.nf.known_targets = [8, 7]
    third.nic.stuck = False
    third.start()
    assert third.nic.rules == {}
    assert third.engine.counters.totals["adopted"] == 0
