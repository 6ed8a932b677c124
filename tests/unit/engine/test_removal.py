# SPDX-License-Identifier: Apache-2.0
"""How rules end, and what is left of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nfcore.api.config import Config
from nfcore.api.flows import FlowBatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkState
from nfcore.api.reasons import Reason
from nfcore.api.rules import Device, Rule, SetMark
from nfcore.engine.engine import Engine
from nfcore.engine.eviction import LEAST_PATIENCE
from nfcore.engine.flow_state import FlowState
from tests.unit.hooks.faults import errors_of

from .world import FOREIGN, GRACE, IDLE, IFINDEX, LAG, QUARANTINE, Nic, Waiting, World

# Aging


def test_a_flow_ages_in_the_order_that_keeps_its_real(flow_id: World) -> None:
    (mark,) = flow_id.report(1001)
    flow_id.pass_time(0)
    flow_id.notes.clear()
    flow_id.pass_time(IDLE + LAG)
    assert flow_id.notes == ["restore [1001]", "nic remove 1"]
    assert flow_id.engine.table.count(FlowState.DRAINING) == 1
    flow_id.pass_time(GRACE / 2)
    assert len(flow_id.notes) == 2
    assert flow_id.nf.entries == {mark: 7}
    flow_id.pass_time(GRACE / 2)
    assert flow_id.notes[2:] == [f"retire [{mark}]"]
    assert flow_id.nf.entries == {}
    assert (flow_id.active, flow_id.why(1001)) == (0, Reason.IDLE)
    assert flow_id.states() == {MarkState.QUARANTINED: 1}
    assert flow_id.engine.counters.ended[Reason.IDLE] == 1
    assert flow_id.adds_up()


def test_a_mark_is_free_again_only_after_its_quarantine(flow_id: World) -> None:
    (mark,) = flow_id.report(1001)
    flow_id.pass_time(0)
    flow_id.pass_time(IDLE + LAG)
    flow_id.pass_time(GRACE)
    marks = flow_id.context.marks
    everything = marks.take(1000)
    assert mark not in everything
    flow_id.now += QUARANTINE - 0.01
    assert len(marks.take(1000)) == 0
    flow_id.now += 0.02
    assert marks.take(1000).tolist() == [mark]


def test_packets_keep_a_rule(flow_id: World) -> None:
    flow_id.report(1001, 1002)
    (busy, quiet) = flow_id.nic.rules
    for _ in range(10):
        flow_id.pass_time(IDLE / 4)
        flow_id.nic.hits[busy] += 1
    assert list(flow_id.nic.rules) == [busy]
    assert flow_id.engine.counters.ended[Reason.IDLE] == 1
    assert quiet not in flow_id.nic.rules


def test_dest_id_marks_survive_their_flows(dest_id: World) -> None:
    dest_id.report(1001)
    dest_id.pass_time(0)
    dest_id.pass_time(IDLE + LAG)
    dest_id.pass_time(GRACE)
    assert dest_id.nf.entries == {1: 7}
    assert dest_id.active == 0
    assert not any(note.startswith("retire") for note in dest_id.notes)


def test_a_rule_that_cannot_be_removed_keeps_its_flow(flow_id: World) -> None:
    (mark,) = flow_id.report(1001)
    flow_id.nic.stuck = True
    flow_id.pass_time(0)
    flow_id.pass_time(IDLE + LAG)
    flow_id.pass_time(GRACE)
    assert flow_id.nf.entries == {mark: 7}
    assert flow_id.engine.table.count(FlowState.INSTALLED) == 1
    assert flow_id.engine.counters.totals["remove_failed"] == 1
    assert flow_id.engine.counters.ended[Reason.IDLE] == 0
    flow_id.nic.stuck = False
    flow_id.pass_time(IDLE + LAG)
    flow_id.pass_time(GRACE)
    assert flow_id.nic.rules == {}
    assert flow_id.nf.entries == {}
    assert flow_id.engine.counters.ended[Reason.IDLE] == 1


def test_a_flow_that_cannot_be_restored_keeps_its_rule(flow_id: World) -> None:
    flow_id.report(1001)
    flow_id.nf.fails = "restore_flows"
    flow_id.pass_time(0)
    flow_id.pass_time(IDLE + LAG)
    assert len(flow_id.nic.rules) == 1
    flow_id.nf.fails = ""
    flow_id.pass_time(IDLE + LAG)
    assert flow_id.nic.rules == {}


def test_a_rule_that_somebody_else_removed_is_put_back(flow_id: World) -> None:
    flow_id.report(1001)
    before = dict(flow_id.nic.rules)
    flow_id.nic.rules.clear()
    flow_id.notes.clear()
    flow_id.pass_time(IDLE / 2)
    assert flow_id.nic.rules == before
    # Its packets take the slow path until the rule is back: that has to know the flow first.
    assert [note.split()[0] for note in flow_id.notes[:2]] == ["restore", "nic"]
    assert flow_id.engine.counters.totals["vanished"] == 1
    assert flow_id.adds_up()


def test_a_rule_that_cannot_be_put_back_waits_for_room(flow_id: World) -> None:
    flow_id.report(1001)
    flow_id.nic.rules.clear()
    flow_id.nic.size = 0
    flow_id.pass_time(IDLE / 2)
    assert (flow_id.ports(FlowState.WAITING), flow_id.why(1001)) == ([1001], Reason.VANISHED)
    assert flow_id.adds_up()
    flow_id.pass_time(IDLE)  # nothing more is heard of it
    assert flow_id.active == 0
    assert flow_id.states() == {MarkState.QUARANTINED: 1}
    assert flow_id.reasons() == {"shed": 1}
    assert flow_id.adds_up()


def test_a_rule_of_ours_without_a_flow_is_removed(flow_id: World) -> None:
    flow_id.report(1001)
    (rule,) = flow_id.nic.rules.values()
    orphan = Rule(FOREIGN.match, SetMark(3), rule.cookie + (1 << 32))  # another generation of the slot
    for more in (orphan, FOREIGN):
        flow_id.nic.rules[more.cookie] = more
        flow_id.nic.hits[more.cookie] = 0
    flow_id.pass_time(IDLE / 2)
    assert flow_id.nic.rules == {rule.cookie: rule, FOREIGN.cookie: FOREIGN}
    assert flow_id.engine.counters.totals["orphans_removed"] == 1


def test_counters_that_cannot_be_read_age_nothing(make: Callable[..., World]) -> None:
    world = make("flow-id", best=1, second=1)
    world.start()
    world.report(1001, 1002)
    world.nics["best"].broken = "dump_offload"
    world.pass_time(0)
    world.pass_time(IDLE + LAG)
    assert len(world.nics["best"].rules) == 1
    assert len(world.nics["second"].rules) == 0
    assert errors_of(world.plugins)["best", "dump_offload"] == 2


@pytest.mark.parametrize("silence", ["raises", "answers nothing"])
def test_counters_grow_old_while_any_backend_keeps_silent(make: Callable[..., World], silence: str) -> None:
    world = make("flow-id", best=1, second=1)
    world.start()
    world.report(1001)
    world.pass_time(IDLE / 4)
    assert counters_age(world) == 0
    nic = world.nics["best"]
    nic.broken, nic.silent = ("dump_offload", False) if silence == "raises" else ("", True)
    for _ in range(10):
        world.pass_time(IDLE / 4)
    assert counters_age(world) == 10 * IDLE / 4
    nic.broken, nic.silent = "", False
    nic.hits[next(iter(nic.rules))] = 300
    world.pass_time(IDLE / 4)
    assert counters_age(world) == 0
    # What has come in all that time came no faster than that.
    (slot,) = world.engine.table.slots_in(FlowState.INSTALLED)
    assert world.engine.table.rate[slot] == pytest.approx(300 / (11 * IDLE / 4))


def counters_age(world: World) -> float:
    (family,) = [each for each in world.engine.collect() if each.name == "nfcore_counters_age_seconds"]
    ((labels, age),) = [(sample.labels, sample.value) for sample in family.samples]
    assert labels == {"interface": "eth1"}
    return cast("float", age)


def test_a_slot_that_is_used_again_does_not_inherit_counters(make: Callable[..., World]) -> None:
    world = make("flow-id")
    world.start()
    world.report(1001)
    (old,) = world.nic.rules.values()
    world.pass_time(0)
    world.idle_and_gone()
    world.report(1001)
    assert world.held() == [1001]
    world.nic.rules[old.cookie], world.nic.hits[old.cookie] = old, 99
    world.pass_time(IDLE / 2)
    (slot,) = world.engine.table.slots_in(FlowState.INSTALLED)
    assert world.engine.table.packets[slot] == 0


# Counters that are late


class LateNic(Nic):
    """Shows each packet some time after it came."""

    lag = 0.0
    clock: Callable[[], float]

    def __init__(self, name: str, notes: list[str]) -> None:
        super().__init__(name, notes)
        self.came: dict[int, list[float]] = {}

    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        shown = self.clock() - self.lag
        self.hits = {cookie: sum(when <= shown for when in self.came.get(cookie, ())) for cookie in self.rules}
        return super().dump_offload(device)


def late(make: Callable[..., World], lag: float, **about: Any) -> tuple[World, LateNic]:
    world = make("dest-id", **about)
    world.plugins._manager.unregister(name="nic")
    nic = LateNic("nic", world.notes)
    nic.lag, nic.clock = lag, lambda: world.now
    world.nics["nic"] = nic
    world.plugins.register(nic, "nic")
    return world, nic


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lag=st.floats(0, LAG),
    pauses=st.lists(st.floats(0.01, IDLE * LEAST_PATIENCE - 0.05), min_size=1, max_size=30),
    tight=st.booleans(),
    step=st.sampled_from([0.11, 0.5, 0.9]),
)
def test_a_live_flow_is_never_aged_out(
    make: Callable[..., World], lag: float, pauses: list[float], tight: bool, step: float
) -> None:
    world, nic = late(make, lag, max_rules=1 if tight else 1000)
    world.start()
    world.report(1001)
    (cookie,) = nic.rules
    end = world.now
    for pause in pauses:
        end += pause
        while world.now + step < end:
            world.pass_time(step)
        world.pass_time(end - world.now)
        nic.came.setdefault(cookie, []).append(world.now)
        assert world.engine.counters.ended == {}
    world.pass_time(IDLE + 2 * LAG)
    world.pass_time(IDLE + 2 * LAG)
    assert nic.rules == {}


def test_a_dump_that_waited_is_as_old_as_it_is(make: Callable[..., World]) -> None:
    world, nic = late(make, 0.0)
    world.worker = worker = Waiting(9)
    world.start()
    world.report(1001)
    worker.run()
    world.pass_time(IDLE / 2)
    job, done = worker.jobs.pop(0)
    counters = job()
    nic.came[next(iter(nic.rules))] = [world.now]
    world.now += 2 * IDLE  # the answer lay about for so long
    done(counters)
    assert world.engine.table.count(FlowState.INSTALLED) == 1


def test_idle_flows_go_sooner_while_the_table_is_tight(make: Callable[..., World]) -> None:
    loose, tight = make("dest-id", max_rules=100), make("dest-id", max_rules=10)
    for world in (loose, tight):
        world.start()
        world.report(*range(1001, 1011))
        world.pass_time(IDLE * LEAST_PATIENCE + LAG)
    assert (len(loose.nic.rules), len(tight.nic.rules)) == (10, 0)


def test_a_full_nic_makes_for_little_patience_too(make: Callable[..., World]) -> None:
    world = make("dest-id", nic=10)
    world.start()
    world.report(*range(1001, 1012))
    world.pass_time(IDLE * LEAST_PATIENCE + LAG)
    assert 1001 not in world.held()


# What a network function keeps for flows with rules


class Keeping:
    """A network function's notes of flows whose rules are gone, and its answer whether flows have moved."""

    def __init__(self, world: World, *, moved: bool = True) -> None:
        self.gone: list[int] = []
        self.asked: list[tuple[list[int], list[int] | None]] = []
        self._moved = moved
        world.nf.let_go = self.let_go  # type: ignore[method-assign]
        world.nf.have_moved = self.have_moved  # type: ignore[method-assign]

    def let_go(self, batch: FlowBatch) -> None:
        self.gone += batch.rows["key"]["sport"].tolist()

    def have_moved(self, batch: FlowBatch, reported: NDArray[np.uint64] | None = None) -> NDArray[np.bool_]:
        self.asked.append((batch.rows["target"].tolist(), None if reported is None else reported.tolist()))
        return np.full(len(batch), self._moved)


def test_a_flow_is_let_go_when_no_packet_of_its_rule_is_left(flow_id: World) -> None:
    keeping = Keeping(flow_id)
    flow_id.report(1001, 1002)
    flow_id.pass_time(IDLE + LAG)
    flow_id.pass_time(GRACE / 2)
    assert (flow_id.engine.table.count(FlowState.DRAINING), keeping.gone) == (2, [])
    flow_id.pass_time(GRACE / 2)
    assert sorted(keeping.gone) == [1001, 1002]


def on_two_devices(config: Config) -> World:
    """A world whose second device, 99, has a NIC of its own."""
    world = World(config, "dest-id", {"nic": 10, "nic2": 10})
    world.context.devices[:] = [Device("eth1", IFINDEX, ("nic",)), Device("eth2", 99, ("nic2",))]
    workers = {IFINDEX: world.worker, 99: world.worker}
    world.engine = Engine(world.context, world.plugins, workers, lambda: world.now)
    world.engine.start()
    return world


def test_a_flow_on_two_devices_is_let_go_when_neither_has_its_rule(config: Config) -> None:
    world = on_two_devices(config)
    keeping = Keeping(world)
    world.report(1001)
    world.report(1001, ifindex=99)
    world.report(1002, ifindex=99)
    assert world.engine.table.count(FlowState.INSTALLED) == 3
    for rule in world.nics["nic2"].rules.values():
        world.nics["nic2"].hits[rule.cookie] += 5
    world.pass_time(IDLE + LAG)
    world.pass_time(GRACE)
    assert (world.engine.table.count(FlowState.INSTALLED), keeping.gone) == (2, [])
    world.engine.switch(on=False)
    world.pass_time(GRACE)
    assert sorted(keeping.gone) == [1001, 1002]


def test_flows_of_two_devices_that_end_together_are_let_go(config: Config) -> None:
    world = on_two_devices(config)
    keeping = Keeping(world)
    world.report(1001)
    world.report(1001, ifindex=99)
    world.engine.switch(on=False)
    world.pass_time(GRACE)
    assert set(keeping.gone) == {1001}


@pytest.mark.parametrize("moved", [False, True])
def test_a_report_of_another_target_ends_the_rule_only_of_a_flow_that_has_moved(flow_id: World, moved: bool) -> None:
    keeping = Keeping(flow_id, moved=moved)
    flow_id.report(1001)
    flow_id.notes.clear()
    flow_id.report(1001, target=8, packets=16)
    assert keeping.asked == [([7], [8])]
    assert (flow_id.active, flow_id.engine.table.count(FlowState.INSTALLED)) == (1, 0 if moved else 1)
    assert flow_id.notes[0] == ("nic remove 1" if moved else "restore [1001]")
    assert keeping.gone == ([1001] if moved else [])


@pytest.mark.parametrize("moved", [False, True])
def test_a_vanished_rule_is_not_put_back_for_a_flow_that_has_moved(flow_id: World, moved: bool) -> None:
    keeping = Keeping(flow_id, moved=moved)
    flow_id.report(1001)
    flow_id.nic.rules.clear()
    flow_id.pass_time(IDLE / 2)
    flow_id.pass_time(GRACE)
    assert keeping.asked == [([7], None)]
    assert flow_id.held() == ([] if moved else [1001])
    assert keeping.gone == ([1001] if moved else [])
    assert flow_id.why(1001) == (Reason.MOVED if moved else Reason.ADMIT)
