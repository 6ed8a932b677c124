# SPDX-License-Identifier: Apache-2.0
"""Flows that wait: for budget, for places, for a NIC that has failed or is full; and who goes first."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkState
from nfcore.api.reasons import Reason
from nfcore.api.rules import INSTALLED_ROW, Device, Outcome, Outcomes, RuleBatch
from nfcore.devices.device_state import LONGEST_RETRY, PROBE_RULES, SHORTEST_RETRY
from nfcore.engine.dispatch import FIRST_BACKOFF, INTERVAL, MOST_ATTEMPTS
from nfcore.engine.flow_state import FlowState

from .world import GRACE, Waiting, World


def measured(world: World, rates: dict[int, int]) -> None:
    """Report flows twice, a second apart, so that each shows its rate in packets a second."""
    for packets in (0, 1):
        for port, rate in rates.items():
            world.report(port, packets=8 + packets * rate)
        world.now += 1.0 - packets


# Budget


def test_a_flood_is_bounded_by_the_budget(make: Callable[..., World]) -> None:
    world = make("dest-id", max_rules=100_000, offload={"inserts_per_second": 100.0, "insert_burst": 50})
    world.nic.size = 100_000
    world.start()
    for second in range(3):
        for tenth in range(10):
            first = 1000 + 1000 * (10 * second + tenth)
            world.report(*range(first, first + 200))
            world.pass_time(0.1)
    assert 300 <= len(world.nic.rules) <= 350
    assert world.reasons() == {}
    assert world.engine.counters.deferred == {Reason.BUDGET: 6000 - 50}
    assert world.adds_up()


def test_the_hottest_spend_the_budget_first(make: Callable[..., World]) -> None:
    world = make("flow-id", offload={"inserts_per_second": 1.0, "insert_burst": 1})
    world.start()
    world.report(1000)
    measured(world, {1001: 10, 1002: 90, 1003: 50, 1004: 70})
    assert world.held() == [1000, 1001]  # the second of measuring paid for the first that came
    world.pass_time(1.0)
    assert world.held() == [1000, 1001, 1002]
    world.pass_time(1.0)
    assert world.held() == [1000, 1001, 1002, 1004]
    assert world.why(1003) == Reason.BUDGET
    assert world.adds_up()


def test_rounds_are_not_run_for_every_report(make: Callable[..., World]) -> None:
    world = make("flow-id", offload={"inserts_per_second": 1000.0, "insert_burst": 1})
    world.start()
    world.report(1001, 1002)
    world.now += INTERVAL / 2
    world.report(1003)
    assert world.held() == [1001]
    world.now += INTERVAL
    world.engine.poll()
    assert len(world.held()) == 2


# Shedding


def test_a_burst_of_100_000_is_taken_in(make: Callable[..., World]) -> None:
    world = make("dest-id", max_rules=60_000, offload={"waiting": 16_384})
    world.nic.size = 0  # what it takes to read so many rules as objects is not what is tested
    world.start()
    batch = world.flows(1001)
    rows = np.repeat(batch.rows.view(f"V{batch.rows.itemsize}"), 100_000).view(batch.rows.dtype)
    numbers = np.arange(100_000)
    rows["key"]["src"][:, 1:4] = numbers.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:]
    rows["packets"] = numbers
    for begin in range(0, 100_000, 16_384):
        world.nf.reports.append(type(batch)(rows[begin : begin + 16_384].copy()))
        world.engine.poll()
        assert world.adds_up()
        assert world.engine.table.count(FlowState.WAITING) <= 16_384
    table = world.engine.table
    assert world.engine.counters.totals["events"] == 100_000
    assert world.reasons() == {"shed": 100_000 - 16_384}
    # Rates are all unknown: those that have shown most are still there.
    waiting = table.flow["packets"][table.slots_in(FlowState.WAITING)]
    assert waiting.min() == 100_000 - 16_384


def test_the_coldest_are_shed(make: Callable[..., World]) -> None:
    world = make("dest-id", offload={"waiting": 2, "inserts_per_second": 0.001, "insert_burst": 1})
    world.start()
    world.report(1000)
    measured(world, {1001: 90, 1002: 50})
    measured(world, {1003: 70})
    world.report(1004, packets=10_000)  # much, but nobody knows how fast
    assert world.ports(FlowState.WAITING) == [1001, 1003]
    assert (world.why(1002), world.why(1004)) == (Reason.SHED, Reason.SHED)
    assert world.adds_up()


def test_where_each_flow_has_a_mark_few_may_wait(make: Callable[..., World]) -> None:
    world = make("flow-id", max_rules=200, offload={"inserts_per_second": 0.001, "insert_burst": 1})
    world.start()
    for port in range(1001, 1101):
        world.report(port)
    assert world.engine.table.count(FlowState.WAITING) == 16
    assert world.context.marks.count(MarkState.LIVE) == 17
    assert world.adds_up()


def test_who_waits_in_silence_is_let_go(make: Callable[..., World]) -> None:
    world = make("flow-id", nic=0)
    world.start()
    world.report(1001, 1002)
    world.pass_time(29)
    world.report(1002, packets=16)
    world.pass_time(2)
    assert world.ports(FlowState.WAITING) == [1002]
    assert world.nf.entries.keys() == {world.engine.table.mark[world.engine.table.slots_in(FlowState.WAITING)][0]}
    assert world.adds_up()


# Full tables


def test_a_full_table_admits_as_many_as_fit(make: Callable[..., World]) -> None:
    world = make("flow-id", max_rules=2)
    world.start()
    world.report(1001, 1002, 1003)
    world.report(1004)
    world.pass_time(INTERVAL)
    assert (world.held(), world.ports(FlowState.WAITING)) == ([1001, 1002], [1003, 1004])
    assert (world.why(1003), world.why(1004)) == (Reason.TABLE_FULL, Reason.TABLE_FULL)
    assert world.engine.counters.deferred == {Reason.TABLE_FULL: 2}
    world.idle_and_gone()
    world.pass_time(1)
    assert world.adds_up()


def tries(world: World) -> list[str]:
    return [note for note in world.notes if "install" in note]


def test_a_full_nic_is_asked_again_with_longer_pauses(make: Callable[..., World]) -> None:
    world = make("dest-id", nic=3)
    world.start()
    world.report(*range(1001, 1031))
    assert world.engine.state.devices[4].full
    pause, asked = SHORTEST_RETRY, 1
    for _ in range(3):
        for port in (1001, 1002, 1003):
            world.hit(port)
        world.pass_time(pause - 0.1)
        assert len(tries(world)) == asked
        world.pass_time(0.1)
        asked += 1
        assert tries(world)[-1] == f"nic install {PROBE_RULES}"
        assert len(tries(world)) == asked
        pause = min(2 * pause, LONGEST_RETRY)
    world.nic.size = 1000
    for port in (1001, 1002, 1003):
        world.hit(port)
    world.pass_time(pause)
    assert len(world.nic.rules) == 3 + PROBE_RULES
    world.pass_time(INTERVAL)
    assert world.held() == list(range(1001, 1031))
    assert not world.engine.state.devices[4].full
    assert world.adds_up()


def test_one_answer_of_many_that_were_on_their_way_does_not_lengthen_the_pause(make: Callable[..., World]) -> None:
    world = make("dest-id", nic=1)
    world.worker = worker = Waiting(9)
    world.start()
    for port in (1001, 1002, 1003, 1004):
        world.report(port)
    worker.run()
    assert world.engine.state.devices[4].retry_at == world.now + SHORTEST_RETRY


def test_a_place_that_is_vacated_goes_to_one_flow_at_once(make: Callable[..., World]) -> None:
    world = make("dest-id", nic=2)
    world.start()
    world.report(1001, 1002, 1003, 1004)
    for _ in range(8):
        world.pass_time(0.8)
        world.hit(1002)
    # 1001 was idle in a full table, which is known to be full still when its place is taken.
    assert world.held() == [1002, 1003]
    assert world.engine.counters.ended == {Reason.IDLE: 1}
    assert tries(world).count("nic install 1") == 1
    assert world.engine.state.devices[4].full
    assert world.adds_up()


def test_a_hotter_flow_takes_the_place_of_the_coldest(make: Callable[..., World]) -> None:
    world = make("flow-id", max_rules=2)
    world.start()
    measured(world, {1001: 100, 1002: 1000})
    for _ in range(4):
        world.hit(1001, 100)
        world.hit(1002, 1000)
        world.pass_time(1.0)
    packets = 8
    for _ in range(3):
        packets += 500
        world.report(1003, packets=packets)
        world.hit(1001, 100)
        world.hit(1002, 1000)
        world.pass_time(1.0)
    world.pass_time(GRACE)
    assert world.held() == [1002, 1003]
    assert world.why(1001) == Reason.REPLACED
    assert world.engine.counters.ended == {Reason.REPLACED: 1}
    assert world.adds_up()


def test_equals_do_not_chase_each_other_out(make: Callable[..., World]) -> None:
    world = make("flow-id", max_rules=2)
    world.start()
    measured(world, {1001: 100, 1002: 100})
    packets = dict.fromkeys((1003, 1004), 8)
    for second in range(30):
        for port in (1001, 1002):
            world.hit(port, 100 + 30 * ((second + port) % 3))
        for port, shown in packets.items():
            packets[port] = shown + 100 + 30 * ((second + port) % 3)
            world.report(port, packets=packets[port])
        world.pass_time(1.0)
    assert world.held() == [1001, 1002]
    assert world.engine.counters.ended == {}


# Failures


def test_a_failed_rule_is_tried_again_a_few_times(make: Callable[..., World]) -> None:
    world = make("flow-id", nic=0)
    world.nic.refuses = Outcome.FAILED
    world.start()
    (mark,) = world.report(1001)
    pause = FIRST_BACKOFF
    for attempt in range(1, MOST_ATTEMPTS):
        assert len(tries(world)) == attempt
        assert world.why(1001) == Reason.FAILED
        world.pass_time(pause - 0.01)
        assert len(tries(world)) == attempt
        world.pass_time(0.02)
        pause *= 2
    assert len(tries(world)) == MOST_ATTEMPTS
    assert (world.active, world.why(1001)) == (0, Reason.FAILED)
    assert world.reasons() == {"failed": 1}
    assert world.context.marks.state[mark] == MarkState.QUARANTINED
    world.nic.size = 1
    world.report(1001, packets=16)
    assert world.held() == [1001]
    assert world.adds_up()


class Torn:
    """A backend that puts the first rule of a batch on the NIC and then fails."""

    def __init__(self) -> None:
        self.rules: dict[int, NDArray[np.void]] = {}
        self.works = False

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        self.rules[int(rules.rows["cookie"][0])] = rules.rows[:1].copy()
        if not self.works:
            raise OSError("half of it")
        return Outcomes.all(Outcome.INSTALLED, len(rules))

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        for cookie in rules.rows["cookie"].tolist():
            self.rules.pop(cookie, None)
        return Outcomes.all(Outcome.REMOVED, len(rules))

    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        rows = np.zeros(len(self.rules), dtype=INSTALLED_ROW)
        for row, each in zip(rows, self.rules.values(), strict=True):
            row["rule"] = each[0]
        return rows


def test_what_a_failing_backend_left_on_the_nic_is_removed_soon(make: Callable[..., World]) -> None:
    world = make("flow-id", torn=0)
    world.plugins._manager.unregister(name="torn")
    torn = Torn()
    world.plugins.register(torn, "torn")
    world.start()
    world.report(1001)
    assert len(torn.rules) == 1
    world.pass_time(FIRST_BACKOFF - 0.01)
    world.engine.tick()
    world.now += 0.01
    world.engine.tick()
    assert torn.rules == {}
    torn.works = True
    world.engine.poll()
    assert (len(torn.rules), world.ports(FlowState.INSTALLED)) == (1, [1001])
    assert world.engine.counters.totals["orphans_removed"] == 1


class NoUdp:
    """A backend that takes TCP alone, and tells how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        self.asked += len(rules)
        takes = rules.rows["key"]["proto"] == 6
        return Outcomes(np.where(takes, Outcome.INSTALLED, Outcome.UNSUPPORTED).astype(np.uint8), {0: "no UDP here"})


def test_what_is_unsupported_is_asked_once(make: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    world = make("flow-id", plain=0)
    world.plugins._manager.unregister(name="plain")
    backend = NoUdp()
    world.plugins.register(backend, "plain")
    world.start()
    udp = "198.18.1.2:{} > 198.18.10.1:80/udp"
    with caplog.at_level(logging.WARNING):
        for port in range(1001, 1011):
            world.report(port, text=udp)
            world.report(1001, text=udp)
    assert backend.asked == 1
    assert caplog.text.count("no UDP here") == 1
    assert world.reasons() == {"unsupported": 20}
    world.report(1001)
    world.report(1002, text="[2001:db8::2]:{} > [2001:db8::1]:80/udp")
    assert backend.asked == 3
    assert world.ports(FlowState.INSTALLED) == [1001]
    assert world.adds_up()
