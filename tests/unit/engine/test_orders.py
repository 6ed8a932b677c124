# SPDX-License-Identifier: Apache-2.0
"""Flows that an application has ordered: first on the NIC, kept until the order is withdrawn, and tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from nfcore.api.config import InterfaceTable
from nfcore.api.flows import FlowBatch, FlowMatch, ReportKind
from nfcore.api.marks import MarkState
from nfcore.api.reasons import Reason
from nfcore.api.rules import Capabilities, Drop, SetMark
from nfcore.engine.flow_state import FlowState

from .world import GRACE, IDLE, LAG, QUARANTINE, Nf, Waiting, World

STRATEGIES = pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
MASKED = "198.18.{}.0/24:* > 198.18.10.1:80/tcp"


def order(world: World, *ports: int, kind: ReportKind = ReportKind.ORDERED, target: int = 7, text: str = "") -> None:
    """Order flows from these source ports, or withdraw such orders."""
    batch = world.flows(*ports, target=target, packets=0, **({"text": text} if text else {}))
    batch.rows["kind"], batch.rows["mark"] = kind, 0
    world.nf.reports.append(batch)
    world.engine.poll()


@pytest.fixture
def ordered(make: Callable[..., World]) -> Callable[..., World]:
    def start(strategy: str = "dest-id", **about: object) -> World:
        world = make(strategy, **about)
        world.nf.orders = 1000
        world.start()
        return world

    return start


@STRATEGIES
def test_an_ordered_flow_has_a_rule_at_once_and_keeps_it(ordered: Callable[..., World], strategy: str) -> None:
    world = ordered(strategy)
    order(world, 1001, 1002)
    assert world.held() == [1001, 1002]
    marks = [rule.action.mark for rule in world.nic.rules.values() if isinstance(rule.action, SetMark)]
    assert len(set(marks)) == (2 if strategy == "flow-id" else 1)
    assert all(world.nf.entries[mark] == 7 for mark in marks)
    world.pass_time(20 * (IDLE + LAG))
    assert world.held() == [1001, 1002]


def test_a_drop_needs_no_mark(ordered: Callable[..., World]) -> None:
    world = ordered("flow-id")
    free = world.context.marks.count(MarkState.FREE)
    order(world, 1001, kind=ReportKind.ORDERED_DROP)
    (rule,) = world.nic.rules.values()
    assert rule.action == Drop()
    assert world.context.marks.count(MarkState.FREE) == free
    world.hit(1001, 5)
    world.pass_time(IDLE)
    facts = world.context.services.flow_facts(world.flows(1001, 1002))
    assert facts.known.tolist() == [True, False]
    assert facts.counts.tolist() == [[5, 0], [0, 0]]


@STRATEGIES
@pytest.mark.parametrize("kind", [ReportKind.ORDERED, ReportKind.ORDERED_DROP])
def test_a_withdrawn_order_leaves_nothing(ordered: Callable[..., World], strategy: str, kind: ReportKind) -> None:
    world = ordered(strategy)
    order(world, 1001, 1002, kind=kind)
    order(world, 1001, kind=ReportKind.WITHDRAWN)
    assert world.held() == [1002]
    world.pass_time(GRACE)
    assert len(world.engine.table) == 1
    order(world, kind=ReportKind.TARGET_GONE)
    order(world, 1002, kind=ReportKind.WITHDRAWN)
    order(world, 0, kind=ReportKind.TARGET_GONE)
    world.pass_time(GRACE)
    world.pass_time(GRACE)
    assert (len(world.engine.table), world.nf.entries) == (0, {})
    world.pass_time(QUARANTINE)
    world.context.marks.free(np.zeros(0, dtype=np.uint32))
    assert world.context.marks.count(MarkState.LIVE) == 0


def test_a_masked_order_becomes_a_masked_rule(ordered: Callable[..., World]) -> None:
    world = ordered()
    order(world, 1, 2, text=MASKED, kind=ReportKind.ORDERED_DROP)
    assert {str(rule.match) for rule in world.nic.rules.values()} == {MASKED.format(1), MASKED.format(2)}
    order(world, 1, text=MASKED, kind=ReportKind.WITHDRAWN)
    assert [str(rule.match) for rule in world.nic.rules.values()] == [MASKED.format(2)]


def test_an_order_that_changes_takes_the_old_rule_away_first(ordered: Callable[..., World]) -> None:
    world = ordered()
    order(world, 1001)
    order(world, 1001, kind=ReportKind.ORDERED_DROP)
    assert world.held() == []
    world.pass_time(GRACE)
    (rule,) = world.nic.rules.values()
    assert rule.action == Drop()
    order(world, 1001, target=8)
    order(world, 1001, kind=ReportKind.WITHDRAWN)
    world.pass_time(GRACE)
    assert (world.held(), len(world.engine.table)) == ([], 0)


@pytest.mark.parametrize("about", [{"max_rules": 3}, {"nic": 3}])
def test_ordered_flows_take_the_places_of_the_coldest(make: Callable[..., World], about: dict[str, object]) -> None:
    world = make("dest-id", **about)
    world.nf.orders = 1000
    world.start()
    for port in (2001, 2002, 2003):
        world.report(port)
    world.pass_time(LAG)
    for port, packets in ((2001, 900), (2002, 10), (2003, 500)):
        world.hit(port, packets)
    world.pass_time(10.0)
    order(world, 1001, 1002)
    for _ in range(40):
        world.pass_time(0.5)
        world.hit(2001, 500)
    assert world.held() == [1001, 1002, 2001]
    order(world, 1003, 1004)
    for _ in range(40):
        world.pass_time(0.5)
    assert len(set(world.held()) & {1001, 1002, 1003, 1004}) == 3
    assert world.engine.table.count(FlowState.WAITING) >= 1
    order(world, 1001, kind=ReportKind.WITHDRAWN)
    for _ in range(80):
        world.pass_time(0.5)
    assert world.held() == [1002, 1003, 1004]


def test_an_order_outlives_the_kill_switch_and_a_wipe(ordered: Callable[..., World]) -> None:
    world = ordered()
    order(world, 1001)
    order(world, 1002, kind=ReportKind.ORDERED_DROP)
    world.engine.switch(on=False)
    world.pass_time(GRACE)
    assert (world.held(), world.why(1001)) == ([], Reason.SWITCHED_OFF)
    world.engine.switch(on=True)
    world.pass_time(0.1)
    assert world.held() == [1001, 1002]
    world.nic.rules.clear()
    world.pass_time(IDLE)
    world.pass_time(0.1)
    assert world.held() == [1001, 1002]


def test_an_order_is_tried_again_when_the_nic_is_in_a_better_mood(ordered: Callable[..., World]) -> None:
    world = ordered()
    world.nic.broken = "install_offload"
    order(world, 1001, kind=ReportKind.ORDERED_DROP)
    for _ in range(20):
        world.pass_time(2.0)
    assert world.held() == []
    world.nic.broken = ""
    for _ in range(20):
        world.pass_time(2.0)
    assert world.held() == [1001]


def test_orders_that_find_no_mark_get_one_later(ordered: Callable[..., World]) -> None:
    world = ordered("flow-id", max_rules=1000)
    order(world, *range(1, 256))
    short = [port for port in range(1, 256) if port not in world.held()]
    assert short and world.why(short[0]) is Reason.NO_MARK
    order(world, *world.held()[:100], kind=ReportKind.WITHDRAWN)
    for _ in range(10):
        world.pass_time(QUARANTINE)
    assert set(short) <= set(world.held())


def test_a_change_under_way_is_withdrawn_in_the_end(ordered: Callable[..., World]) -> None:
    world = ordered()
    worker = world.worker = Waiting(10)
    world.start()
    order(world, 1001, kind=ReportKind.ORDERED_DROP)
    order(world, 1001, kind=ReportKind.WITHDRAWN)
    order(world, 1001)
    worker.run()
    assert world.held() == []
    for _ in range(4):
        world.pass_time(GRACE)
        worker.run()
    assert [rule.action for rule in world.nic.rules.values()] == [SetMark(1)]


class First(Nf):
    """A function before the other: it must see the flows from some source ports."""

    name = "first"
    wanted: frozenset[int] = frozenset()

    def claims(self, batch: FlowBatch, since: int | None = None) -> NDArray[np.bool_]:
        return np.isin(batch.rows["key"]["sport"], list(self.wanted))


@pytest.fixture
def chained(make: Callable[..., World]) -> Iterator[tuple[World, First]]:
    world = make("dest-id")
    first = First(world.notes)
    world.plugins.register(first, "first")
    world.context.register_nf(first)
    chain = [InterfaceTable(name="eth1", chain=["first", "nf"], offload=["nic"])]
    world.context.config = replace(world.context.config, interfaces=chain)
    world.start()
    yield world, first


def test_what_an_earlier_function_must_see_gets_no_mark(chained: tuple[World, First]) -> None:
    world, first = chained
    first.wanted = frozenset({1001})
    world.report(1001, 1002)
    assert world.held() == [1002]
    assert world.why(1001) is Reason.EARLIER


def test_a_new_claim_takes_the_rule_away(chained: tuple[World, First]) -> None:
    world, first = chained
    world.report(1001, 1002)
    settled = world.context.services.claims_settled
    assert settled(first)
    first.wanted, first.claim_changes = frozenset({1001}), 1
    assert not settled(first)
    world.engine.poll()
    assert settled(first)
    assert world.held() == [1002]
    world.pass_time(GRACE)
    assert world.why(1001) is Reason.EARLIER
    first.wanted, first.claim_changes = frozenset(), 2
    world.report(1001, packets=100)
    assert world.held() == [1001, 1002]


def test_a_claim_settles_when_the_worker_has_removed_the_rule(chained: tuple[World, First]) -> None:
    world, first = chained
    worker = world.worker = Waiting(10)
    world.start()
    world.report(1001)
    worker.run()
    first.wanted, first.claim_changes = frozenset({1001}), 1
    world.engine.poll()
    assert not world.context.services.claims_settled(first)
    worker.run()
    assert world.context.services.claims_settled(first)


def test_the_counters_are_read_when_asked(ordered: Callable[..., World]) -> None:
    world = ordered()
    order(world, 1001, kind=ReportKind.ORDERED_DROP)
    world.hit(1001, 3)
    world.now += 0.01
    done = world.context.services.read_counters()
    assert not done()
    world.engine.tick()
    assert done()
    assert world.context.services.flow_facts(world.flows(1001)).counts.tolist() == [[3, 0]]


def test_the_text_of_masked_matches_can_be_read_back() -> None:
    for text in (MASKED.format(3), "[2001:db8::/32]:* > [::/0]:443/udp", "198.18.0.0/15:53 > 0.0.0.0/0:*/*"):
        match = FlowMatch.parse(text)
        assert str(match) == text
        assert FlowMatch.from_key(match.to_key(), match.family) == match
    with pytest.raises(ValueError, match="host bits"):
        FlowMatch.parse("198.18.1.1/24:* > 198.18.10.1:80/tcp")


def test_the_function_keeps_what_rules_have_counted_that_are_gone(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.nf.orders = 10
    world.start()
    ended: list[tuple[int, int]] = []

    def note(batch: FlowBatch, counts: NDArray[np.uint64], idle: NDArray[np.float64]) -> None:
        ended.extend(zip(batch.rows["packets"].tolist(), counts[:, 0].tolist(), strict=True))

    world.nf.rules_ended = note  # type: ignore[method-assign]
    world.nic.tells_counts = True
    batch = world.flows(1001, 1002, packets=77)
    batch.rows["kind"] = ReportKind.ORDERED_DROP
    world.nf.reports.append(batch)
    world.engine.poll()
    world.hit(1001, 9)
    order(world, 1001, kind=ReportKind.WITHDRAWN)
    assert ended == [(77, 9)]
    # The next run knows no entry for the rule that drops, and removes the rule.
    world.hit(1002, 2)
    world.start()
    assert (world.held(), ended[1:]) == ([], [(0, 2)])
    # So does the end of a run with a rule of its own.
    order(world, 1003)
    world.hit(1003, 4)
    world.engine.remove_all()
    world.engine.keep_last_counts()
    assert [packets for _, packets in ended[2:]] == [4]


def test_a_nic_that_only_drops_gets_the_drops(make: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    world = make("dest-id")
    monkeypatch.setattr(world.nic, "capabilities", Capabilities(mark_width=0))
    world.nf.orders = 10
    world.start()
    order(world, 1001)
    order(world, 1002, kind=ReportKind.ORDERED_DROP)
    world.report(1003)
    assert world.held() == [1002]
    assert (world.why(1001), world.why(1003)) == (Reason.UNSUPPORTED, Reason.UNSUPPORTED)


def test_no_function_gets_the_counts_of_rules_that_nobody_ordered(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.nf.orders = 10
    world.start()
    ended: list[int] = []
    world.nf.rules_ended = lambda batch, counts, idle: ended.extend(counts[:, 0].tolist())  # type: ignore[method-assign]
    world.report(1001)
    order(world, 1002, kind=ReportKind.ORDERED_DROP)
    for port, packets in ((1001, 5), (1002, 7)):
        world.hit(port, packets)
    world.context.state_file.remove("fingerprint")
    world.start()
    assert (world.held(), ended) == ([], [7])
