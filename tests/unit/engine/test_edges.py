# SPDX-License-Identifier: Apache-2.0
"""First and last packets of marked connections: what they say ends the rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nfcore.api.flows import FLOW_ROW, FlowBatch, ReportKind, join_rows
from nfcore.api.marks import MarkState
from nfcore.api.reasons import Reason
from nfcore.engine.flow_state import FlowState

from .world import GRACE, World


def tell(world: World, kind: ReportKind, *ports: int, target: int = 7) -> None:
    """Report first or last packets of the flows from these ports."""
    batch = world.flows(*ports, target=target, marks=[0] * len(ports))
    batch.rows["kind"] = kind
    world.nf.reports.append(batch)
    world.engine.poll()


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_the_end_of_a_connection_ends_its_rule_without_losing_its_real(
    make: Callable[..., World], strategy: str
) -> None:
    world = make(strategy)
    world.start()
    world.report(1001, 1002)
    world.notes.clear()
    tell(world, ReportKind.ENDED, 1001, 1001)
    assert world.notes[:2] == ["restore [1001]", "nic remove 1"]
    assert [rule.match.sport for rule in world.nic.rules.values()] == [1002]
    world.pass_time(GRACE)
    assert world.why(1001) is Reason.ENDED
    assert world.ports(FlowState.ENDED) == [1001]
    assert world.adds_up()


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_a_connection_that_is_closed_before_it_has_a_rule_gets_none(make: Callable[..., World], strategy: str) -> None:
    """Short connections: both reports come in one batch."""
    world = make(strategy)
    world.start()
    shown, closed = world.flows(1001, 1002), world.flows(1001, target=7, marks=[0])
    closed.rows["kind"] = ReportKind.ENDED
    world.nf.reports.append(FlowBatch(join_rows([shown.rows, closed.rows], FLOW_ROW)))
    world.engine.poll()
    world.pass_time(GRACE)
    assert world.ports(FlowState.ENDED) == [1001]
    assert world.ports(FlowState.INSTALLED) == [1002]
    assert [rule.match.sport for rule in world.nic.rules.values()] == [1002]
    assert world.adds_up()


SHOWN, ENDED, MOVED = ReportKind.SHOWN, ReportKind.ENDED, ReportKind.MOVED


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
@pytest.mark.parametrize("before", [[], [(SHOWN, 7)], [(SHOWN, 7), (ENDED, 7)]])
@pytest.mark.parametrize(
    ("told", "target"),
    [
        ([(ENDED, 7), (SHOWN, 7)], 7),
        ([(ENDED, 7), (SHOWN, 8)], 8),
        ([(SHOWN, 7), (ENDED, 7), (SHOWN, 8)], 8),
        ([(MOVED, 8), (SHOWN, 8)], 8),
        ([(SHOWN, 7), (MOVED, 8), (SHOWN, 8)], 8),
        ([(SHOWN, 7), (ENDED, 7)], None),
        ([(ENDED, 7), (SHOWN, 7), (ENDED, 7)], None),
        ([(SHOWN, 7), (MOVED, 8)], None),
    ],
)
def test_the_last_report_of_a_batch_counts(
    make: Callable[..., World],
    strategy: str,
    before: list[tuple[ReportKind, int]],
    told: list[tuple[ReportKind, int]],
    target: int | None,
) -> None:
    """A connection's end, and a new one with its addresses; the old one waits for a rule, for want of room, or not."""
    world = make(strategy, max_rules=1)
    world.start()
    world.report(2001)
    for reports in ([report] for report in before):
        give(world, reports)
    give(world, told)
    table = world.engine.table
    waiting = table.slots_in(FlowState.WAITING)
    assert table.flow["target"][waiting].tolist() == ([] if target is None else [target])
    assert world.adds_up()


def give(world: World, reports: list[tuple[ReportKind, int]]) -> None:
    """Report one flow several times in a batch: kind and target of each report."""
    batches = [world.flows(1001, target=target, marks=[0] if kind != SHOWN else None) for kind, target in reports]
    for batch, (kind, _) in zip(batches, reports, strict=True):
        batch.rows["kind"] = kind
    world.nf.reports.append(FlowBatch(join_rows([batch.rows for batch in batches], FLOW_ROW)))
    world.engine.poll()


def test_ended_flows_are_forgotten_before_refused_ones(make: Callable[..., World]) -> None:
    world = make("flow-id", offload={"remembered": 20_000})
    world.start()
    world.report(*range(2000, 6000), marks=[0] * 4000)
    world.report(1001)
    tell(world, ReportKind.ENDED, 1001)
    world.pass_time(GRACE)
    world.engine.table.capacity = 4001
    world.report(1002, marks=[0])
    assert world.ports(FlowState.ENDED) == []
    assert len(world.ports(FlowState.REFUSED)) > 1000
    assert world.adds_up()


def test_a_connection_that_goes_on_after_all_gets_a_rule_again(flow_id: World) -> None:
    flow_id.report(1001)
    tell(flow_id, ReportKind.ENDED, 1001)
    flow_id.pass_time(GRACE)
    flow_id.report(1001)
    assert [rule.match.sport for rule in flow_id.nic.rules.values()] == [1001]
    assert flow_id.states()[MarkState.LIVE] == 1
    assert flow_id.adds_up()


def test_a_new_connection_elsewhere_ends_the_old_ones_rule_and_is_not_overruled(dest_id: World) -> None:
    dest_id.report(1001, 1002, target=7)
    dest_id.notes.clear()
    tell(dest_id, ReportKind.MOVED, 1001, target=8)
    tell(dest_id, ReportKind.MOVED, 1002, target=7)
    assert dest_id.notes == ["nic remove 1"]
    dest_id.pass_time(GRACE)
    assert dest_id.why(1001) is Reason.MOVED
    assert dest_id.ports(FlowState.INSTALLED) == [1002]
    assert dest_id.adds_up()


def test_edges_of_unknown_and_refused_flows_change_nothing(flow_id: World) -> None:
    flow_id.report(1001, marks=[0])
    tell(flow_id, ReportKind.ENDED, 1001, 2002)
    tell(flow_id, ReportKind.MOVED, 1001, 2002, target=9)
    assert flow_id.why(1001) is Reason.NO_MARK
    assert flow_id.engine.table.count(FlowState.REFUSED) == 1
    assert flow_id.adds_up()
