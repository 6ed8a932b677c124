# SPDX-License-Identifier: Apache-2.0
"""Flows that a network function forgets: their rules end without being restored, and nothing remembers their target."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nfcore.api.flows import FlowBatch, FlowMatch, ReportKind
from nfcore.api.reasons import Reason
from nfcore.engine.flow_state import FlowState

from .world import GRACE, Waiting, World, keys

STRATEGIES = pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
SEVEN = np.array([7], dtype=np.uint64)


def started(make: Callable[..., World], strategy: str, worker: Waiting | None = None) -> World:
    world = make(strategy)
    if worker is not None:
        world.worker = worker
    world.start()
    return world


@STRATEGIES
def test_a_forgotten_flow_is_not_restored(make: Callable[..., World], strategy: str) -> None:
    world = started(make, strategy)
    world.report(1001, 1002)
    world.report(1003, target=8)
    world.notes.clear()
    forgotten = world.context.services.forget_flows(1, SEVEN)
    assert sorted(forgotten.flows.rows["key"]["sport"].tolist()) == [1001, 1002]
    assert (forgotten.rules, forgotten.left()) == (2, 0)
    assert world.held() == [1003]
    assert world.nf.kept == keys(world.flows(1003, marks=[1]))
    world.pass_time(GRACE)
    assert not any("restore" in note for note in world.notes)
    assert {world.why(port) for port in (1001, 1002)} == {Reason.FORGOTTEN}
    assert world.engine.counters.ended[Reason.FORGOTTEN] == 2
    world.report(1001, target=9)
    assert world.held() == [1001, 1003]
    assert world.adds_up()


@STRATEGIES
def test_named_flows_alone_are_forgotten_on_whatever_device(make: Callable[..., World], strategy: str) -> None:
    world = started(make, strategy)
    world.report(1001, 1002)
    batch = FlowBatch.empty(2)
    batch.rows["key"] = [FlowMatch.parse(f"198.18.1.2:{port} > 198.18.10.1:80/tcp").to_key() for port in (1001, 9)]
    batch.rows["family"] = 4
    assert world.context.services.forget_flows(1, batch).rules == 1
    assert world.held() == [1002]
    assert world.context.services.forget_flows(2, SEVEN).rules == 0
    assert world.held() == [1002]


@STRATEGIES
def test_rules_on_their_way_are_counted_until_they_are_gone(make: Callable[..., World], strategy: str) -> None:
    worker = Waiting(10)
    world = started(make, strategy, worker)
    world.report(1001)
    assert world.ports(FlowState.PENDING) == [1001]
    forgotten = world.context.services.forget_flows(1, SEVEN)
    assert (forgotten.rules, forgotten.left(), world.nf.kept) == (1, 1, set())
    worker.run()
    assert (world.held(), forgotten.left()) == ([], 0)
    assert world.context.services.forget_flows(1, SEVEN).rules == 0


@STRATEGIES
def test_a_refused_flow_is_remembered_no_more(make: Callable[..., World], strategy: str) -> None:
    """Switching offloading on restores refused flows, which would lead to the old target."""
    world = started(make, strategy)
    world.report(1001)
    world.engine.switch(on=False)
    world.pass_time(GRACE)
    assert len(world.context.services.forget_flows(1, SEVEN).flows) == 0
    world.notes.clear()
    world.engine.switch(on=True)
    assert "restore [1001]" not in world.notes
    assert world.ports(FlowState.REFUSED) == []


def test_nothing_is_known_of_flows_before_the_first_report(make: Callable[..., World]) -> None:
    world = started(make, "dest-id")
    facts = world.context.services.flow_facts(world.flows(1001))
    assert (facts.known.tolist(), facts.counts.tolist()) == ([False], [[0, 0]])
    assert world.context.services.forget_flows(1, SEVEN).rules == 0


def test_orders_stand(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.nf.orders = 10
    world.start()
    batch = world.flows(1001, packets=0)
    batch.rows["kind"] = ReportKind.ORDERED
    world.nf.reports.append(batch)
    world.engine.poll()
    assert world.context.services.forget_flows(1, SEVEN).rules == 0
    assert world.held() == [1001]


def test_reports_that_are_there_are_taken(make: Callable[..., World]) -> None:
    world = started(make, "flow-id")
    world.nf.reports.append(world.flows(1001))
    assert world.context.services.take_reports()
    assert world.held() == [1001]
