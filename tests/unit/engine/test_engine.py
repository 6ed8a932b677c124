# SPDX-License-Identifier: Apache-2.0
"""From the report of a flow to its rule, over a network function and NICs in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from nfcore.api.flows import FlowBatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkState
from nfcore.api.reasons import Reason, reason_word
from nfcore.api.rules import Capabilities, Device, Outcome, Rule, SetMark, split_cookies
from nfcore.devices.worker import DeviceWorker
from nfcore.engine.flow_state import FlowState
from nfcore.errors import ConfigError
from tests.unit.hooks.faults import errors_of

from .world import FOREIGN, GRACE, IDLE, IFINDEX, LAG, QUARANTINE, Nic, Policy, Waiting, World

# New flows


def test_a_new_flow_gets_a_rule_with_its_mark(flow_id: World) -> None:
    marks = flow_id.report(1001, 1002)
    rules = sorted(flow_id.nic.rules.values(), key=lambda rule: rule.match.sport)
    assert [rule.match.sport for rule in rules] == [1001, 1002]
    assert [rule.action for rule in rules] == [SetMark(mark) for mark in marks]
    ours, slots, generations = split_cookies(np.array([rule.cookie for rule in rules], dtype=np.uint64))
    assert ours.all()
    table = flow_id.engine.table
    assert table.flow["key"]["sport"][slots].tolist() == [1001, 1002]
    assert table.generation[slots].tolist() == generations.tolist()
    assert table.state[slots].tolist() == [FlowState.INSTALLED] * 2
    assert flow_id.adds_up()


def test_the_entry_stands_before_the_rule(flow_id: World) -> None:
    (mark,) = flow_id.report(1001)
    assert flow_id.notes == [f"publish [{mark}]", "nic install 1"]
    assert flow_id.nf.entries == {mark: 7}


def test_flows_of_one_target_share_a_dest_id_mark(dest_id: World) -> None:
    dest_id.report(1001, 1002)
    dest_id.report(1003)
    dest_id.report(1004, target=8)
    marks = {rule.match.sport: rule.action for rule in dest_id.nic.rules.values()}
    assert marks == {1001: SetMark(1), 1002: SetMark(1), 1003: SetMark(1), 1004: SetMark(2)}
    assert dest_id.nf.entries == {1: 7, 2: 8}
    assert dest_id.adds_up()


def test_known_targets_have_their_marks_from_the_start(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.nf.known_targets = [70, 80, 90]
    world.start()
    assert world.nf.entries == {1: 70, 2: 80, 3: 90}


def test_more_targets_than_marks(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.nf.known_targets = list(range(300))
    world.start()
    assert world.nf.entries == {mark: mark - 1 for mark in range(1, 256)}
    world.report(1001, target=299)
    world.report(1002, target=3)
    assert world.reasons() == {"no_mark": 1}
    assert [rule.action for rule in world.nic.rules.values()] == [SetMark(4)]


def test_a_second_report_gives_its_mark_back(flow_id: World) -> None:
    first, second = *flow_id.report(1001), *flow_id.report(1001)
    assert first != second
    assert flow_id.states() == {MarkState.LIVE: 1, MarkState.QUARANTINED: 1}
    assert flow_id.context.marks.state[second] == MarkState.QUARANTINED
    assert len(flow_id.nic.rules) == 1
    assert flow_id.engine.counters.totals == {"events": 2, "events_known": 1, "installed": 1}


def test_a_flow_that_is_twice_in_a_batch_gets_one_rule(flow_id: World) -> None:
    first, second = flow_id.report(1001, 1001)
    assert [rule.action for rule in flow_id.nic.rules.values()] == [SetMark(second)]
    assert flow_id.context.marks.state[first] == MarkState.QUARANTINED
    assert flow_id.adds_up()


def test_a_mark_that_another_flow_uses_stays_in_use(flow_id: World) -> None:
    (mark,) = flow_id.report(1001)
    flow_id.report(1002, 1001, marks=[mark, mark])
    assert flow_id.states() == {MarkState.LIVE: 1}
    assert flow_id.nf.entries == {mark: 7}
    assert flow_id.reasons() == {"no_mark": 1}


def test_a_mark_twice_in_one_batch_goes_to_the_first(flow_id: World) -> None:
    mark = flow_id.take_mark()
    flow_id.report(1001, 1002, marks=[mark, mark])
    assert [rule.match.sport for rule in flow_id.nic.rules.values()] == [1001]
    assert flow_id.states() == {MarkState.LIVE: 1}


@pytest.mark.parametrize("mark", [0, 200, 256, 2**32 - 1])
def test_a_mark_that_was_never_leased_gets_no_rule(flow_id: World, mark: int) -> None:
    good = flow_id.take_mark()
    flow_id.report(1001, 1002, marks=[mark, good])
    assert [rule.match.sport for rule in flow_id.nic.rules.values()] == [1002]
    assert flow_id.reasons() == {"no_mark": 1}
    assert errors_of(flow_id.plugins) == {}
    assert flow_id.adds_up()


def test_an_empty_pool_is_counted_and_the_flow_may_come_again(flow_id: World) -> None:
    flow_id.report(1001, marks=[0])
    flow_id.report(1001)
    assert flow_id.reasons() == {"no_mark": 1}
    assert len(flow_id.nic.rules) == 1


def test_pools_are_filled_as_they_are_used(flow_id: World) -> None:
    assert flow_id.nf.pools is not None
    for port in range(1000, 1040):
        assert flow_id.report(port) != [0]
    assert flow_id.nf.pools.stock(0) >= 8


# Policies


def refuse(port: int, reason: int) -> Callable[[FlowBatch], NDArray[np.uint8]]:
    return lambda batch: np.where(batch.rows["key"]["sport"] == port, reason, 0).astype(np.uint8)


def test_the_first_reason_wins_and_everybody_is_asked(flow_id: World) -> None:
    policies = [Policy(refuse(1001, 64)), Policy(refuse(1001, 65)), Policy(None), Policy(refuse(1002, 66))]
    for number, policy in enumerate(policies):
        flow_id.plugins.register(policy, f"policy{number}")
    flow_id.report(1001, 1002, 1003)
    assert flow_id.reasons() == {"plugin_64": 1, "plugin_66": 1}
    assert [policy.seen for policy in policies] == [3, 3, 3, 3]
    assert [rule.match.sport for rule in flow_id.nic.rules.values()] == [1003]
    assert flow_id.states() == {MarkState.LIVE: 1, MarkState.QUARANTINED: 2}
    assert flow_id.adds_up()


WRONG = [
    LookupError("no table of tenants"),
    np.zeros(2, dtype=np.uint8),
    np.uint8(0),
    [0],
    "admit",
]


@pytest.mark.parametrize("answer", WRONG, ids=repr)
def test_flows_that_a_broken_policy_judged_stay_on_the_slow_path(
    flow_id: World, answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    after = Policy(refuse(1001, 64))
    flow_id.plugins.register(Policy(answer), "broken")
    flow_id.plugins.register(after, "after")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            flow_id.report(1001)
    assert flow_id.reasons() == {"hook_failed": 3}
    assert errors_of(flow_id.plugins) == {("broken", "on_new_flow"): 3}
    assert all(record.getMessage().startswith("plugin broken: on_new_flow ") for record in caplog.records)
    assert after.seen == 3
    assert flow_id.nic.rules == {}
    assert flow_id.adds_up()


def test_a_strategy_with_a_wrong_answer(make: Callable[..., World]) -> None:
    class Wrong:
        @hookimpl(tryfirst=True)
        def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32]:
            return np.array([1, 2, 3], dtype=np.uint32)

    world = make("nobody's", nic=10)
    world.plugins.register(Wrong(), "wrong")
    world.start()
    world.report(1001)
    assert world.reasons() == {"no_mark": 1}
    assert errors_of(world.plugins) == {("wrong", "allocate_mark"): 1}


def test_a_device_without_backends(flow_id: World) -> None:
    flow_id.report(1001, ifindex=99)
    assert flow_id.reasons() == {"no_backend": 1}
    assert flow_id.adds_up()


# What the network function and the NIC refuse


def test_an_entry_that_is_refused_gets_no_rule(flow_id: World) -> None:
    flow_id.nf.refuses = {8}
    (mark,) = flow_id.report(1001, target=8)
    assert flow_id.reasons() == {"not_published": 1}
    assert flow_id.notes == ["publish []", f"retire [{mark}]"]
    assert flow_id.states() == {MarkState.QUARANTINED: 1}
    assert (flow_id.active, flow_id.why(1001)) == (0, Reason.NOT_PUBLISHED)


def test_a_network_function_that_cannot_publish(flow_id: World) -> None:
    flow_id.nf.fails = "publish_marks"
    flow_id.report(1001)
    flow_id.nf.fails = ""
    flow_id.report(1002)
    assert flow_id.reasons() == {"hook_failed": 1}
    assert errors_of(flow_id.plugins) == {("nf", "publish_marks"): 1}
    assert flow_id.states() == {MarkState.LIVE: 1, MarkState.QUARANTINED: 1}
    assert flow_id.adds_up()


def test_a_mark_whose_meaning_cannot_be_erased_is_not_given_away(flow_id: World) -> None:
    flow_id.nf.fails, flow_id.nf.refuses = "retire_marks", {8}
    (mark,) = flow_id.report(1001, target=8)
    flow_id.pass_time(QUARANTINE * 2)
    assert flow_id.context.marks.state[mark] == MarkState.LIVE
    flow_id.nf.fails = ""
    flow_id.pass_time(1)
    assert flow_id.context.marks.state[mark] == MarkState.QUARANTINED
    assert flow_id.nf.entries == {}


def test_an_unsupported_rule_undoes_its_mark(make: Callable[..., World]) -> None:
    world = make("flow-id", nic=1)
    world.nic.refuses = Outcome.UNSUPPORTED
    world.start()
    marks = world.report(1001, 1002, 1003)
    assert world.reasons() == {"unsupported": 2}
    assert world.notes[-1] == f"retire {marks[1:]}"
    assert world.nf.entries == {marks[0]: 7}
    assert world.states() == {MarkState.LIVE: 1, MarkState.QUARANTINED: 2}
    assert world.active == 1
    assert world.adds_up()


def test_an_unsupported_rule_leaves_the_targets_mark_to_the_others(make: Callable[..., World]) -> None:
    world = make("dest-id", nic=1)
    world.nic.refuses = Outcome.UNSUPPORTED
    world.start()
    world.report(1001, 1002)
    assert world.reasons() == {"unsupported": 1}
    assert world.nf.entries == {1: 7}
    assert world.states() == {MarkState.LIVE: 1}


@pytest.mark.parametrize("refusal", [Outcome.FULL, Outcome.FAILED])
def test_a_refused_rule_keeps_its_mark_for_the_next_try(make: Callable[..., World], refusal: Outcome) -> None:
    world = make("flow-id", nic=1)
    world.nic.refuses = refusal
    world.start()
    marks = world.report(1001, 1002, 1003)
    assert world.reasons() == {}
    assert world.ports(FlowState.WAITING) == [1002, 1003]
    assert world.nf.entries == dict.fromkeys(marks, 7)
    assert world.states() == {MarkState.LIVE: 3}
    assert world.adds_up()


@pytest.mark.parametrize("refusal", [Outcome.FULL, Outcome.UNSUPPORTED, Outcome.FAILED])
def test_the_next_backend_takes_what_the_best_could_not(make: Callable[..., World], refusal: Outcome) -> None:
    world = make("flow-id", best=1, second=1)
    world.nics["best"].refuses = refusal
    world.start()
    world.report(1001, 1002, 1003)
    held = {name: [rule.match.sport for rule in nic.rules.values()] for name, nic in world.nics.items()}
    assert held == {"best": [1001], "second": [1002]}
    assert world.ports(FlowState.WAITING) == [1003]
    assert world.why(1003) == Reason.NIC_FULL
    rules = next(family for family in world.engine.collect() if family.name == "nfcore_rules")
    held = {s.labels["backend"]: s.value for s in rules.samples if s.labels["state"] == "installed"}
    assert held == {"best": 1, "second": 1}


def test_the_next_backend_steps_in_for_one_that_raises(make: Callable[..., World]) -> None:
    world = make("flow-id", best=10, second=10)
    world.nics["best"].broken = "install_offload"
    world.start()
    world.report(1001)
    assert len(world.nics["second"].rules) == 1
    assert errors_of(world.plugins) == {("best", "install_offload"): 1}


# Start and stop


def test_stale_rules_of_ours_go_and_foreign_ones_stay(make: Callable[..., World]) -> None:
    world = make("flow-id")
    stale = Rule(FOREIGN.match, SetMark(3), 0x6E66 << 48 | 5)
    world.nic.rules = {rule.cookie: rule for rule in (stale, FOREIGN)}
    world.nic.hits = dict.fromkeys(world.nic.rules, 0)
    world.start()
    assert world.nic.rules == {FOREIGN.cookie: FOREIGN}
    world.report(1001)
    world.pass_time(0)
    world.pass_time(IDLE + LAG)
    assert FOREIGN.cookie in world.nic.rules
    world.engine.remove_all()
    assert list(world.nic.rules) == [FOREIGN.cookie]


def test_stop_removes_every_rule_from_every_backend(make: Callable[..., World]) -> None:
    world = make("dest-id", best=2, second=10)
    world.start()
    world.report(*range(1001, 1008))
    world.engine.remove_all()
    assert [nic.rules for nic in world.nics.values()] == [{}, {}]


def test_a_worker_that_is_behind_costs_time_and_nothing_else(make: Callable[..., World]) -> None:
    world = make("flow-id", offload={"insert_burst": 2})
    world.worker = worker = Waiting(1)
    world.start()
    world.report(1001)
    world.report(1002)
    assert (world.ports(FlowState.PENDING), world.ports(FlowState.WAITING)) == ([1001], [1002])
    assert world.engine.counters.deferred == {Reason.QUEUE_FULL: 1}
    assert world.adds_up()
    worker.run()
    world.engine.poll()  # what was not sent has not been paid for
    worker.run()
    assert world.held() == [1001, 1002]
    assert world.adds_up()


def test_a_queue_without_room_for_a_removal_tries_again(make: Callable[..., World]) -> None:
    world = make("flow-id")
    world.worker = worker = Waiting(9)
    world.start()
    world.report(1001)
    worker.run()
    world.pass_time(IDLE + LAG)
    worker.room = 1  # the counters are in; their answer finds no place for the removal
    job, done = worker.jobs[0]
    done(job())
    assert world.engine.table.count(FlowState.INSTALLED) == 1
    worker.room, worker.jobs = 9, []
    world.pass_time(IDLE + LAG)
    worker.run()
    assert world.nic.rules == {}


def test_a_flow_that_waits_for_the_nic_is_known(make: Callable[..., World]) -> None:
    world = make("flow-id")
    world.worker = worker = Waiting(9)
    world.start()
    world.report(1001)
    world.report(1001)
    worker.run()
    assert len(world.nic.rules) == 1
    assert world.engine.counters.totals["events_known"] == 1


def test_rules_too_many_to_remove_are_said_to_be_left(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    world = make("flow-id")
    world.worker = worker = Waiting(9)
    world.start()
    world.report(1001)
    worker.room = 0
    with caplog.at_level(logging.ERROR):
        world.engine.remove_all()
    assert "eth1 is too far behind: rules are left, see nfcore cleanup" in caplog.text


def test_figures_are_those_of_the_table(make: Callable[..., World]) -> None:
    world = make("flow-id", nic=2)
    world.plugins.register(Policy(refuse(1001, 64)), "policy")
    world.start()
    world.report(*range(1001, 1005))
    world.report(1003)
    families = {family.name: family for family in world.engine.collect()}
    values = {name: {tuple(s.labels.values()): s.value for s in family.samples} for name, family in families.items()}
    assert values["nfcore_events_total"] == {(): 5}
    assert values["nfcore_events_known_total"] == {(): 1}
    assert values["nfcore_installed_total"] == {(): 2}
    assert values["nfcore_not_offloaded_total"] == {("plugin_64",): 1}
    assert values["nfcore_deferred_total"] == {("nic_full",): 1}
    states = {"waiting": 1, "pending": 0, "installed": 2, "draining": 0, "refused": 1, "ended": 0}
    assert values["nfcore_flows"] == {(state,): number for state, number in states.items()}
    assert values["nfcore_marks_in_use"] == {("flow-id",): 3}
    assert values["nfcore_nic_full"] == {("eth1",): 1}
    assert sum(values["nfcore_marks"].values()) == 255
    assert values["nfcore_rules"] == {("installed", "eth1", "nic"): 2, ("draining", "eth1", "nic"): 0}
    assert values["nfcore_rules_limit"] == {(): 1000}
    assert values["nfcore_mark_pool_marks"] == {("nf", "0"): 16 - 5}
    assert values["nfcore_offload_batch_seconds"]["eth1", "install"].count == 1
    assert values["nfcore_offload_rule_seconds"]["eth1", "install"].count == 3


def test_every_reason_has_a_word() -> None:
    assert all(reason_word(reason) == reason.name.lower() for reason in Reason)
    assert reason_word(200) == "plugin_200"


def test_over_the_real_thread(make: Callable[..., World]) -> None:
    arrived: list[Callable[[], None]] = []
    ready = threading.Semaphore(0)

    def deliver(done: Callable[[], None]) -> None:
        arrived.append(done)
        ready.release()

    def settle(jobs: int) -> None:
        for _ in range(jobs):
            assert ready.acquire(timeout=10)
            arrived.pop(0)()

    world = make("flow-id")
    world.worker = DeviceWorker("eth1", deliver)
    world.start()
    world.report(*range(1001, 1011))
    assert world.engine.table.count(FlowState.PENDING) == 10
    settle(3)  # what the start asked the NIC, and the rules
    assert world.engine.table.count(FlowState.INSTALLED) == 10
    world.pass_time(0)
    settle(1)
    world.pass_time(IDLE + LAG)
    settle(2)
    world.pass_time(GRACE)
    assert world.active == 0
    assert world.nic.rules == {}
    world.report(2001)
    world.engine.remove_all()
    assert world.worker.stop(10)
    assert world.nic.rules == {}
    settle(2)
    assert world.adds_up()


class Probed(Nic):
    """A NIC that tells how wide a mark may be."""

    width = 8

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        return Capabilities(mark_width=self.width)


def probed(make: Callable[..., World], width: int) -> World:
    world = make("flow-id")
    world.plugins._manager.unregister(name="nic")
    nic = Probed("nic", world.notes)
    nic.width = width
    world.nics["nic"] = nic
    world.plugins.register(nic, "nic")
    return world


def test_marks_wider_than_the_nic_transports_are_a_config_error(make: Callable[..., World]) -> None:
    world = probed(make, 15)
    with pytest.raises(ConfigError) as caught:
        world.start()
    (problem,) = caught.value.problems
    assert problem.path == "marking.width"
    assert "is 16; nic on eth1 transports 15 bits: set it to 15 or less" in problem.message


def test_a_nic_that_sets_no_marks_is_gone_without(make: Callable[..., World]) -> None:
    world = probed(make, 0)
    world.start()
    world.report(1001)
    assert (world.nic.rules, world.reasons()) == ({}, {"no_backend": 1})
    assert world.adds_up()


def test_a_nic_as_wide_as_the_marks_is_used(make: Callable[..., World]) -> None:
    world = probed(make, 16)
    world.start()
    world.report(1001)
    assert len(world.nic.rules) == 1


def test_reports_of_a_bonds_ports_are_those_of_the_bond(flow_id: World) -> None:
    flow_id.engine.state.ports = {77: IFINDEX, 78: IFINDEX}
    flow_id.report(1001, ifindex=77)
    flow_id.report(1002, ifindex=78)
    assert flow_id.ports(FlowState.INSTALLED) == [1001, 1002]
    flow_id.report(1003, ifindex=79)
    assert flow_id.why(1003) is Reason.NO_BACKEND
