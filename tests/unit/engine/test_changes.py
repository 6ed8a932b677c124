# SPDX-License-Identifier: Apache-2.0
"""What comes from outside: targets that go and come back, flows that move, the kill switch, links that change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkState
from nfcore.api.reasons import Reason
from nfcore.api.rules import Capabilities, Device, Outcome, SetMark
from nfcore.devices.device_state import LONGEST_RETRY, SHORTEST_RETRY, UNSUPPORTED_RETRY
from nfcore.engine.flow_state import FlowState
from nfcore.engine.removal import Ended

from .world import GRACE, IDLE, IFINDEX, QUARANTINE, Waiting, World

STRATEGIES = pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])


def take_out(world: World, target: int) -> Ended:
    """Do as a network function does: its marks are void before the engine hears of it."""
    world.nf.known_targets = [each for each in world.nf.known_targets if each != target]
    world.nf.refuses.add(target)
    for mark in [mark for mark, of in world.nf.entries.items() if of == target]:
        del world.nf.entries[mark]
    return world.engine.apply(world.context.config, {"nf": np.array([target], dtype=np.uint64)})


def bring_back(world: World, target: int) -> None:
    world.nf.known_targets.append(target)
    world.nf.refuses.discard(target)
    world.engine.apply(world.context.config, {})


def marks_set(world: World) -> set[int]:
    return {rule.action.mark for rule in world.nic.rules.values() if isinstance(rule.action, SetMark)}


@pytest.fixture(params=["flow-id", "dest-id"])
def world(make: Callable[..., World], request: pytest.FixtureRequest) -> World:
    world = make(request.param)
    world.nf.known_targets = [7, 8]
    world.start()
    return world


# Targets


def test_rules_to_a_target_that_is_gone_end_without_restore(world: World) -> None:
    world.report(1001, 1002)
    world.report(1003, target=8)
    world.notes.clear()
    assert take_out(world, 7) == Ended(accelerated=2, waiting=0)
    assert world.held() == [1003]
    assert not any(note.startswith("restore") for note in world.notes)
    assert world.engine.counters.ended == {Reason.TARGET_GONE: 2}
    world.pass_time(GRACE)
    world.pass_time(GRACE)
    world.pass_time(GRACE)
    assert world.states() == {MarkState.LIVE: 1, MarkState.QUARANTINED: 2 if world.nf.pools else 1}
    assert set(world.nf.entries.values()) == {8}
    assert world.adds_up()


def test_what_waits_for_a_target_that_goes_is_settled(make: Callable[..., World]) -> None:
    world = make("flow-id", nic=1)
    world.start()
    world.report(1001, 1002)
    # The one that waited has never been accelerated.
    assert take_out(world, 7) == Ended(accelerated=1, waiting=1)
    assert world.reasons() == {"target_gone": 1}
    assert world.active == 1  # whose rule is in its grace
    assert world.adds_up()


@STRATEGIES
def test_a_rule_that_is_on_its_way_when_its_target_goes(make: Callable[..., World], strategy: str) -> None:
    world = make(strategy)
    world.worker = worker = Waiting(9)
    world.start()
    world.report(1001, 1002)
    world.nic.size = 1
    take_out(world, 7)
    assert world.engine.table.count(FlowState.PENDING) == 2
    worker.run()
    assert world.held() == []
    assert world.reasons() == {"target_gone": 1}
    assert not any(note.startswith("restore") for note in world.notes)
    assert world.adds_up()


def test_the_end_of_a_target_is_pursued(world: World) -> None:
    world.report(1001)
    world.nic.stuck = True
    take_out(world, 7)
    assert world.held() == [1001]
    world.engine.switch(on=False)  # which would restore it
    world.nic.stuck = False
    world.notes.clear()
    world.pass_time(IDLE / 4)
    assert world.held() == []
    assert not any(note.startswith("restore") for note in world.notes)
    assert world.engine.counters.ended == {Reason.TARGET_GONE: 1}


def test_a_target_that_comes_back_gets_another_mark(world: World) -> None:
    world.report(1001)
    (old,) = marks_set(world)
    world.nic.stuck = True
    take_out(world, 7)
    bring_back(world, 7)
    world.report(1002)
    if not world.nf.pools:
        # The old mark is dying and the target has no other yet.
        assert world.reasons() == {"no_mark": 1}
    world.nic.stuck = False
    for _ in range(4):
        world.pass_time(max(GRACE, IDLE / 4))
    world.report(1003)
    assert 1003 in world.held()
    assert old not in marks_set(world)
    assert old not in world.nf.entries
    assert world.adds_up()


def test_a_mark_of_a_target_that_is_gone_rests(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.nf.known_targets = [7, 8]
    world.start()
    take_out(world, 7)
    world.pass_time(0)
    assert world.context.marks.state[1] == MarkState.LIVE
    world.pass_time(GRACE)
    assert world.context.marks.state[1] == MarkState.QUARANTINED
    bring_back(world, 7)
    assert world.nf.entries == {2: 8, 3: 7}
    world.now += QUARANTINE
    world.context.marks.take(0)
    assert world.context.marks.state[1] == MarkState.FREE


def test_a_late_report_leaves_no_mark_to_nowhere(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.nf.known_targets = [7, 8]
    world.start()
    take_out(world, 7)
    world.pass_time(0)
    world.pass_time(GRACE)
    world.report(1001, target=7)
    assert world.reasons() == {"not_published": 1}
    world.pass_time(0)
    world.pass_time(GRACE)
    assert world.states() == {MarkState.LIVE: 1, MarkState.QUARANTINED: 2}


# Flows that move


def test_a_flow_that_goes_elsewhere_loses_its_rule_without_restore(world: World) -> None:
    world.report(1001)
    world.notes.clear()
    world.report(1001, target=8, packets=16)
    assert world.held() == []
    assert not any(note.startswith("restore") for note in world.notes)
    assert world.engine.counters.ended == {Reason.MOVED: 1}
    world.pass_time(GRACE)
    assert world.why(1001) == Reason.MOVED
    world.report(1001, target=8, packets=32)
    (mark,) = marks_set(world)
    assert world.nf.entries[mark] == 8
    assert world.adds_up()


def test_a_flow_that_moves_while_it_waits(make: Callable[..., World]) -> None:
    world = make("flow-id", nic=0)
    world.start()
    (mark,) = world.report(1001)
    world.report(1001, target=8, packets=16)
    assert (world.active, world.reasons()) == (0, {"moved": 1})
    assert mark not in world.nf.entries
    assert world.adds_up()


# The kill switch


@STRATEGIES
def test_the_switch_brings_all_flows_back_to_the_slow_path(make: Callable[..., World], strategy: str) -> None:
    world = make(strategy, nic=2)
    world.start()
    world.report(1001, 1002, 1003)
    world.notes.clear()
    assert world.engine.switch(on=False) == 2
    assert [note.split()[0] for note in world.notes if "retire" not in note] == ["restore", "nic"]
    assert world.held() == []
    world.report(1004)
    world.pass_time(GRACE)
    assert world.reasons() == {"switched_off": 2}
    assert world.active == 0
    assert world.engine.switch(on=False) == 0
    world.engine.switch(on=True)
    world.report(1004, packets=16)
    assert world.held() == [1004]
    assert world.adds_up()


def test_the_switch_waits_for_what_is_on_its_way_and_for_what_fails(make: Callable[..., World]) -> None:
    world = make("flow-id")
    world.worker = worker = Waiting(9)
    world.start()
    world.report(1001)
    world.engine.switch(on=False)
    world.nf.fails = "restore_flows"
    worker.run()
    assert world.held() == [1001]
    world.nf.fails, world.nic.stuck = "", True
    world.pass_time(IDLE / 4)
    worker.run()
    assert world.held() == [1001]
    world.nic.stuck = False
    world.pass_time(IDLE / 4)
    worker.run()
    assert world.held() == []
    assert world.engine.counters.ended == {Reason.SWITCHED_OFF: 1}
    assert world.adds_up()


def test_the_switch_outlives_the_daemon(make: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    first = make("dest-id")
    first.start()
    first.report(999)
    left = dict(first.nic.rules)
    first.engine.switch(on=False)
    second = make("dest-id")
    second.context.state_file = first.context.state_file
    second.nic.rules, second.nic.hits = left, dict.fromkeys(left, 0)
    second.start()
    assert not second.engine.state.switched_on
    assert second.held() == []
    second.report(1001)
    assert second.reasons() == {"switched_off": 1}
    second.engine.switch(on=True)
    switched = [line for line in caplog.messages if line.startswith("offloading is switched")]
    assert [line.split()[3].strip(":,") for line in switched] == ["off", "off", "on"]  # ordered, found, ordered
    third = make("dest-id")
    third.context.state_file = first.context.state_file
    third.start()
    third.report(1001)
    assert third.held() == [1001]


# Links


class Learning:
    """What a NIC says when it is probed."""

    def __init__(self) -> None:
        self.probes = 0

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        self.probes += 1
        return Capabilities(mark_width=16)


def test_a_link_that_changes_is_looked_at_again(make: Callable[..., World]) -> None:
    world = make("flow-id", nic=1)
    world.start()
    world.report(1001, 1002)
    assert world.engine.state.devices[4].full
    world.nic.rules.clear()
    world.nic.size = 10
    world.changed = [4, 99]
    world.pass_time(0.1)
    assert world.held() == [1001, 1002]
    assert world.engine.counters.totals["vanished"] == 1
    assert world.adds_up()


def test_a_link_that_changes_is_probed_again(make: Callable[..., World]) -> None:
    world = make("flow-id", nic=0)
    world.nic.refuses = Outcome.UNSUPPORTED
    learning = Learning()
    world.nic.probe_offload = learning.probe_offload  # type: ignore[attr-defined]
    world.worker = worker = Waiting(9)
    world.start()
    world.report(1001)
    worker.run()
    world.nic.size = 10
    world.report(1001, packets=16)
    assert world.reasons() == {"unsupported": 2}
    worker.room = 0
    world.changed = [4]
    world.pass_time(0.1)
    worker.room = 9
    world.pass_time(0.1)  # the queue was full; what was told is not forgotten
    worker.run()
    world.report(1001, packets=32)
    worker.run()
    assert world.held() == [1001]


# What a NIC loses


def test_what_vanished_comes_back_under_the_budget(make: Callable[..., World]) -> None:
    world = make("dest-id", offload={"inserts_per_second": 2.0, "insert_burst": 20, "waiting": 5})
    world.start()
    world.report(*range(1001, 1021))
    port = world.engine.state.devices[4]
    world.nic.rules.clear()
    world.pass_time(5.0)
    assert (len(world.nic.rules), port.refill_began) == (10, world.now)
    assert world.engine.table.count(FlowState.WAITING) == 10  # none is shed, though more wait than may
    for half_seconds in range(10):
        assert len(world.nic.rules) == 10 + half_seconds
        world.pass_time(0.5)
    assert world.held() == list(range(1001, 1021))
    assert (port.refill_began, port.refill_seconds) == (None, 5.0)
    assert world.engine.counters.totals["vanished"] == 20
    assert world.adds_up()


def test_a_doomed_rule_that_vanishes_is_not_put_back(world: World) -> None:
    world.report(1001)
    world.nic.stuck = True
    take_out(world, 7)
    world.nic.rules.clear()
    world.pass_time(IDLE / 4)
    world.pass_time(GRACE)
    assert (world.held(), world.active) == ([], 0)
    assert world.engine.counters.ended == {Reason.TARGET_GONE: 1}
    assert world.adds_up()


def test_lowering_max_rules_ends_the_coldest(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.start()
    world.report(1001, 1002, 1003)
    config = world.context.config
    for max_rules in (1000, 1000, 1000, 1):
        fewer = config.offload.model_copy(update={"max_rules": max_rules})
        world.engine.apply(replace(config, offload=fewer), {})
        for port, packets in ((1001, 10), (1002, 900), (1003, 400)):
            world.hit(port, packets)
        world.pass_time(IDLE / 4)
    world.pass_time(GRACE)
    assert world.ports(FlowState.INSTALLED) == [1002]
    assert world.why(1001) is world.why(1003) is Reason.REPLACED
    assert world.adds_up()


# Refusals that may pass


def test_a_nic_that_is_of_no_use_for_now_is_kept_and_asked_again(make: Callable[..., World]) -> None:
    world = make("dest-id")
    able = world.nic.capabilities
    world.nic.capabilities = Capabilities(mark_width=0, ipv6=False, drop=False, temporary=True)
    world.start()
    world.report(1001)
    assert world.reasons() == {"unsupported": 1}
    assert world.engine.hindered
    world.pass_time(SHORTEST_RETRY)
    assert not any(note.startswith("restore") for note in world.notes)
    world.nic.capabilities = able
    world.pass_time(SHORTEST_RETRY)  # the pause has doubled
    assert not any(note.startswith("restore") for note in world.notes)
    world.pass_time(SHORTEST_RETRY)
    assert world.notes[-1] == "restore [1001]"  # XDP reports it again soon
    world.report(1001)
    assert world.held() == [1001]
    assert not world.engine.hindered


@pytest.mark.parametrize("width", [8, 16])
def test_a_nic_that_comes_back_is_judged_as_at_the_start(
    make: Callable[..., World], width: int, caplog: pytest.LogCaptureFixture
) -> None:
    world = make("dest-id")
    world.nic.capabilities = Capabilities(mark_width=0, ipv6=False, drop=False, temporary=True)
    world.start()
    device = world.engine.state.devices[IFINDEX]
    assert world.context.config.marking.width == 16
    world.nic.capabilities = Capabilities(mark_width=width, counters=False, table_size=9)
    world.pass_time(SHORTEST_RETRY)
    world.pass_time(SHORTEST_RETRY)
    assert (device.without_counters, device.table_sizes) == ([0], {"nic": 9})
    world.report(1001)
    told = "it transports 8 bits, and marking.width is 16: set it to 8 or less" in caplog.text
    if width == 8:  # a truncated mark may be another target's
        assert (world.held(), device.able, told) == ([], [], True)
        assert world.reasons() == {"unsupported": 1}
    else:
        assert (world.held(), device.able, told) == ([1001], ["nic"], False)


def test_flows_whose_rules_failed_are_tried_once_more_later(make: Callable[..., World]) -> None:
    world = make("dest-id", nic=0)
    world.nic.refuses = Outcome.FAILED
    world.start()
    world.report(1001)
    for _ in range(20):
        world.pass_time(1.0)
    assert world.reasons() == {"failed": 1}
    assert world.engine.hindered
    world.nic.size = 9
    world.notes.clear()
    world.pass_time(LONGEST_RETRY)
    assert world.notes == ["restore [1001]"]
    world.report(1001)
    assert world.held() == [1001]


def test_what_a_nic_called_unsupported_is_tried_again_after_minutes(make: Callable[..., World]) -> None:
    world = make("dest-id", nic=0)
    world.nic.refuses = Outcome.UNSUPPORTED
    world.start()
    world.report(1001)
    world.nic.size = 9
    world.report(1002)
    assert world.reasons() == {"unsupported": 2}
    world.pass_time(UNSUPPORTED_RETRY)
    world.report(1002)
    assert world.held() == [1002]
