# SPDX-License-Identifier: Apache-2.0
"""From the report of a flow to its rule and back, over a network function and NICs in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nfcore.config import Config, InterfaceTable
from nfcore.engine import Engine
from nfcore.errors import ConfigError
from nfcore.flows import FlowBatch, FlowMatch
from nfcore.flowtable import FlowState
from nfcore.hookspecs import hookimpl
from nfcore.host import PluginHost
from nfcore.marks import CpuPools, MarkAllocator, MarkState
from nfcore.plugins.marking import MarkingPlugin
from nfcore.reasons import Reason, reason_word
from nfcore.rules import INSTALLED_ROW, Capabilities, Device, Outcome, Outcomes, Rule, RuleBatch, SetMark, split_cookies
from nfcore.session import make_context
from nfcore.worker import DeviceWorker, InlineWorker, Job

POOL = np.dtype([("taken", "<u4"), ("filled", "<u4"), ("slots", "<u4", (64,))])
IFINDEX = 4
IDLE, GRACE, QUARANTINE = 30.0, 0.5, 5.0
FOREIGN = Rule(FlowMatch.parse("198.18.1.2:1 > 198.18.10.1:80/tcp"), SetMark(9), 0x1234)


class Nf:
    """A network function whose reports are what a test put into `reports`."""

    name = "nf"

    def __init__(self, notes: list[str]) -> None:
        self.number = 0
        self.pools: CpuPools | None = None
        self.reports: list[FlowBatch] = []
        self.entries: dict[int, int] = {}
        self.refuses: set[int] = set()
        self.known_targets: list[int] = []
        self.fails = ""
        self._notes = notes

    def read_events(self, limit: int) -> FlowBatch:
        return self.reports.pop(0) if self.reports else FlowBatch.empty()

    def targets(self) -> FlowBatch:
        batch = FlowBatch.empty(len(self.known_targets))
        batch.rows["nf"], batch.rows["target"] = self.number, self.known_targets
        return batch

    def fingerprint(self) -> bytes:
        return repr(self.known_targets).encode()

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        batch.rows["target"] = [self.entries.get(mark, 0) for mark in marks.tolist()]
        return np.isin(marks, list(self.entries))

    @hookimpl
    def publish_marks(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        self._may_fail("publish_marks")
        stands = ~np.isin(batch.rows["target"], list(self.refuses))
        assert (marks != 0).all()
        self.entries |= zip(marks[stands].tolist(), batch.rows["target"][stands].tolist(), strict=True)
        self._notes.append(f"publish {sorted(marks[stands].tolist())}")
        return stands

    @hookimpl
    def retire_marks(self, nf: int, marks: NDArray[np.uint32]) -> None:
        self._may_fail("retire_marks")
        for mark in marks.tolist():
            self.entries.pop(mark, None)
        self._notes.append(f"retire {sorted(marks.tolist())}")

    @hookimpl
    def restore_flows(self, batch: FlowBatch) -> None:
        self._may_fail("restore_flows")
        self._notes.append(f"restore {sorted(batch.rows['key']['sport'].tolist())}")

    def _may_fail(self, hook: str) -> None:
        if self.fails == hook:
            raise OSError(f"{hook}: the map is gone")


class Nic:
    """A backend that holds up to `size` rules and counts what a test lets hit them."""

    def __init__(self, name: str, notes: list[str], size: int = 1000, refuses: Outcome = Outcome.FULL) -> None:
        self.name, self.size, self.refuses = name, size, refuses
        self.rules: dict[int, Rule] = {}
        self.hits: dict[int, int] = {}
        self.stuck = False
        self.broken = ""
        self._notes = notes

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        if self.broken == "install_offload":
            raise OSError("the firmware is gone")
        self._notes.append(f"{self.name} install {len(rules)}")
        status = np.full(len(rules), self.refuses, dtype=np.uint8)
        for number, rule in enumerate(rules):
            if len(self.rules) < self.size:
                self.rules[rule.cookie], self.hits[rule.cookie] = rule, 0
                status[number] = Outcome.INSTALLED
        return Outcomes(status, {0: f"{self.name} has {self.size} places"})

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        self._notes.append(f"{self.name} remove {len(rules)}")
        if self.stuck:
            return Outcomes.all(Outcome.FAILED, len(rules), "stuck")
        there = [self.rules.pop(rule.cookie, None) is not None for rule in rules]
        return Outcomes(np.where(there, Outcome.REMOVED, Outcome.ABSENT).astype(np.uint8))

    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        if self.broken == "dump_offload":
            raise OSError("no answer")
        rows = np.zeros(len(self.rules), dtype=INSTALLED_ROW)
        rows["rule"] = RuleBatch.of(list(self.rules.values())).rows
        rows["packets"] = [self.hits[cookie] for cookie in self.rules]
        return rows


class Policy:
    """Answers `on_new_flow` with whatever it was made with, or raises it."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.seen = 0

    @hookimpl
    def on_new_flow(self, batch: FlowBatch) -> Any:
        self.seen += len(batch)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(batch) if callable(self.answer) else self.answer


class World:
    """One device, one network function, backends in order, and a clock that stands until it is moved."""

    def __init__(self, config: Config, strategy: str, sizes: dict[str, int], max_rules: int = 1000) -> None:
        self.now = 1000.0
        self.notes: list[str] = []
        self.host = PluginHost()
        self.nf = Nf(self.notes)
        self.nics = {name: Nic(name, self.notes, size) for name, size in sizes.items()}
        self.host.register(MarkingPlugin(), "marking")
        self.host.register(self.nf, "nf")
        for name, nic in self.nics.items():
            self.host.register(nic, name)
        offload = {"max_rules": max_rules, "idle_timeout": IDLE, "grace": GRACE}
        config = replace(
            config,
            interfaces=[InterfaceTable(name="eth1", chain=["nf"], offload=list(sizes))],
            marking=config.marking.model_copy(update={"strategy": strategy, "pool_chunk": 16}),
            offload=config.offload.model_copy(update=offload),
        )
        device = Device("eth1", IFINDEX, tuple(sizes))
        self.context = make_context(config, self.host, [device])
        self.context.marks = MarkAllocator(8, QUARANTINE, lambda: self.now)
        self.host.call("marking", "setup", context=self.context)
        self.context.register_nf(self.nf)
        if strategy == "flow-id":
            self.nf.pools = CpuPools(np.zeros(1, dtype=POOL), [0])
        self.worker: Any = InlineWorker()

    def start(self) -> Engine:
        self.engine = Engine(self.context, self.host, {IFINDEX: self.worker}, lambda: self.now)
        self.engine.start()
        return self.engine

    def take_mark(self) -> int:
        """Take a mark from the pool as XDP would."""
        assert self.nf.pools is not None
        row = self.nf.pools.rows[0]
        if row["taken"] == row["filled"]:
            return 0
        mark = int(row["slots"][int(row["taken"]) % 64])
        self.nf.pools.rows["taken"][0] += 1
        return mark

    def report(self, *ports: int, marks: list[int] | None = None, target: int = 7, ifindex: int = IFINDEX) -> list[int]:
        """Report flows from these source ports; the marks that they carry."""
        rows = []
        taken = []
        for number, port in enumerate(ports):
            flow = FlowMatch.parse(f"198.18.1.2:{port} > 198.18.10.1:80/tcp")
            batch = FlowBatch.empty(1)
            batch.rows["key"], batch.rows["family"], batch.rows["nf"] = flow.to_key(), 4, 1
            batch.rows["ifindex"], batch.rows["target"] = ifindex, target
            mark = marks[number] if marks else (self.take_mark() if self.nf.pools else 0)
            batch.rows["mark"] = mark
            taken.append(mark)
            rows.append(batch.rows.view(np.uint8))
        self.nf.reports.append(FlowBatch(np.concatenate(rows).view(batch.rows.dtype)))
        self.engine.poll()
        return taken

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.engine.tick()

    def reasons(self) -> dict[str, int]:
        return {reason_word(number): count for number, count in self.engine.not_offloaded.items()}

    def states(self) -> dict[int, int]:
        marks = self.context.marks
        return {state: marks.count(state) for state in (MarkState.LIVE, MarkState.QUARANTINED) if marks.count(state)}

    def adds_up(self) -> bool:
        counts, engine = self.engine.counts, self.engine
        ended = counts["events_known"] + counts["installed"] + sum(engine.not_offloaded.values())
        ended -= counts["reinstalled"]
        return counts["events"] == ended + engine.table.count(FlowState.PENDING)

    @property
    def nic(self) -> Nic:
        return self.nics["nic"]


@pytest.fixture
def make(config: Config) -> Callable[..., World]:
    def world(strategy: str = "flow-id", max_rules: int = 1000, **sizes: int) -> World:
        return World(config, strategy, sizes or {"nic": 1000}, max_rules)

    return world


@pytest.fixture
def flow_id(make: Callable[..., World]) -> World:
    world = make("flow-id")
    world.start()
    return world


@pytest.fixture
def dest_id(make: Callable[..., World]) -> World:
    world = make("dest-id")
    world.start()
    return world


# New flows


def test_a_new_flow_gets_a_rule_with_its_mark(flow_id: World) -> None:
    marks = flow_id.report(1001, 1002)
    rules = sorted(flow_id.nic.rules.values(), key=lambda rule: rule.match.sport)
    assert [rule.match.sport for rule in rules] == [1001, 1002]
    assert [rule.action for rule in rules] == [SetMark(mark) for mark in marks]
    ours, slots, generations = split_cookies(np.array([rule.cookie for rule in rules], dtype=np.uint64))
    assert ours.all()
    table = flow_id.engine.table.rows
    assert table["flow"]["key"]["sport"][slots].tolist() == [1001, 1002]
    assert table["generation"][slots].tolist() == generations.tolist()
    assert table["state"][slots].tolist() == [FlowState.INSTALLED] * 2
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
    assert flow_id.engine.counts == {"events": 2, "events_known": 1, "installed": 1}


def test_a_flow_that_is_twice_in_a_batch_gets_one_rule(flow_id: World) -> None:
    first, second = flow_id.report(1001, 1001)
    assert [rule.action for rule in flow_id.nic.rules.values()] == [SetMark(first)]
    assert flow_id.context.marks.state[second] == MarkState.QUARANTINED
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
    assert flow_id.host.errors == {}
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
        flow_id.host.register(policy, f"policy{number}")
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
    flow_id.host.register(Policy(answer), "broken")
    flow_id.host.register(after, "after")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            flow_id.report(1001)
    assert flow_id.reasons() == {"hook_failed": 3}
    assert flow_id.host.errors == {("broken", "on_new_flow"): 3}
    assert [record.getMessage().startswith("plugin broken: on_new_flow ") for record in caplog.records] == [True]
    assert after.seen == 3
    assert flow_id.nic.rules == {}
    assert flow_id.adds_up()


def test_a_strategy_with_a_wrong_answer(make: Callable[..., World]) -> None:
    class Wrong:
        @hookimpl(tryfirst=True)
        def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32]:
            return np.array([1, 2, 3], dtype=np.uint32)

    world = make("nobody's", nic=10)
    world.host.register(Wrong(), "wrong")
    world.start()
    world.report(1001)
    assert world.reasons() == {"no_mark": 1}
    assert world.host.errors == {("wrong", "allocate_mark"): 1}


def test_a_full_table_admits_as_many_as_fit(make: Callable[..., World]) -> None:
    world = make("flow-id", max_rules=2)
    world.start()
    marks = world.report(1001, 1002, 1003)
    world.report(1004)
    assert world.reasons() == {"table_full": 2}
    assert [rule.match.sport for rule in world.nic.rules.values()] == [1001, 1002]
    assert world.context.marks.state[marks[2]] == MarkState.QUARANTINED
    assert world.adds_up()


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
    assert len(flow_id.engine.table) == 0


def test_a_network_function_that_cannot_publish(flow_id: World) -> None:
    flow_id.nf.fails = "publish_marks"
    flow_id.report(1001)
    flow_id.nf.fails = ""
    flow_id.report(1002)
    assert flow_id.reasons() == {"hook_failed": 1}
    assert flow_id.host.errors == {("nf", "publish_marks"): 1}
    assert flow_id.states() == {MarkState.LIVE: 1, MarkState.QUARANTINED: 1}
    assert flow_id.adds_up()


def test_a_mark_whose_meaning_cannot_be_erased_is_not_given_away(flow_id: World) -> None:
    flow_id.nf.fails, flow_id.nf.refuses = "retire_marks", {8}
    (mark,) = flow_id.report(1001, target=8)
    flow_id.pass_time(QUARANTINE * 2)
    assert flow_id.context.marks.state[mark] == MarkState.LIVE


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [(Outcome.FULL, "nic_full"), (Outcome.UNSUPPORTED, "unsupported"), (Outcome.FAILED, "failed")],
)
def test_a_refused_rule_undoes_its_mark(make: Callable[..., World], refusal: Outcome, reason: str) -> None:
    world = make("flow-id", nic=1)
    world.nic.refuses = refusal
    world.start()
    marks = world.report(1001, 1002, 1003)
    assert world.reasons() == {reason: 2}
    assert world.notes[-1] == f"retire {marks[1:]}"
    assert world.nf.entries == {marks[0]: 7}
    assert world.states() == {MarkState.LIVE: 1, MarkState.QUARANTINED: 2}
    assert len(world.engine.table) == 1
    assert world.adds_up()


def test_a_refused_rule_leaves_the_targets_mark_to_the_others(make: Callable[..., World]) -> None:
    world = make("dest-id", nic=1)
    world.start()
    world.report(1001, 1002)
    assert world.reasons() == {"nic_full": 1}
    assert world.nf.entries == {1: 7}
    assert world.states() == {MarkState.LIVE: 1}


@pytest.mark.parametrize("refusal", [Outcome.FULL, Outcome.UNSUPPORTED, Outcome.FAILED])
def test_the_next_backend_takes_what_the_best_could_not(make: Callable[..., World], refusal: Outcome) -> None:
    world = make("flow-id", best=1, second=1)
    world.nics["best"].refuses = refusal
    world.start()
    world.report(1001, 1002, 1003)
    held = {name: [rule.match.sport for rule in nic.rules.values()] for name, nic in world.nics.items()}
    assert held == {"best": [1001], "second": [1002]}
    assert world.reasons() == {"nic_full": 1}
    rules = next(family for family in world.engine.collect() if family.name == "nfcore_rules")
    assert {sample.labels["backend"]: sample.value for sample in rules.samples} == {"best": 1, "second": 1}


def test_the_next_backend_steps_in_for_one_that_raises(make: Callable[..., World]) -> None:
    world = make("flow-id", best=10, second=10)
    world.nics["best"].broken = "install_offload"
    world.start()
    world.report(1001)
    assert len(world.nics["second"].rules) == 1
    assert world.host.errors == {("best", "install_offload"): 1}


# Aging


def test_a_flow_ages_in_the_order_that_keeps_its_real(flow_id: World) -> None:
    (mark,) = flow_id.report(1001)
    flow_id.pass_time(0)
    flow_id.notes.clear()
    flow_id.pass_time(IDLE)
    assert flow_id.notes == ["restore [1001]", "nic remove 1"]
    assert flow_id.engine.table.count(FlowState.DRAINING) == 1
    flow_id.pass_time(GRACE / 2)
    assert len(flow_id.notes) == 2
    assert flow_id.nf.entries == {mark: 7}
    flow_id.pass_time(GRACE / 2)
    assert flow_id.notes[2:] == [f"retire [{mark}]"]
    assert flow_id.nf.entries == {}
    assert len(flow_id.engine.table) == 0
    assert flow_id.states() == {MarkState.QUARANTINED: 1}
    assert flow_id.engine.counts["aged"] == 1


def test_a_mark_is_free_again_only_after_its_quarantine(flow_id: World) -> None:
    (mark,) = flow_id.report(1001)
    flow_id.pass_time(0)
    flow_id.pass_time(IDLE)
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
    assert flow_id.engine.counts["aged"] == 1
    assert quiet not in flow_id.nic.rules


def test_dest_id_marks_survive_their_flows(dest_id: World) -> None:
    dest_id.report(1001)
    dest_id.pass_time(0)
    dest_id.pass_time(IDLE)
    dest_id.pass_time(GRACE)
    assert dest_id.nf.entries == {1: 7}
    assert len(dest_id.engine.table) == 0
    assert not any(note.startswith("retire") for note in dest_id.notes)


def test_a_rule_that_cannot_be_removed_keeps_its_flow(flow_id: World) -> None:
    (mark,) = flow_id.report(1001)
    flow_id.nic.stuck = True
    flow_id.pass_time(0)
    flow_id.pass_time(IDLE)
    flow_id.pass_time(GRACE)
    assert flow_id.nf.entries == {mark: 7}
    assert flow_id.engine.table.count(FlowState.INSTALLED) == 1
    assert flow_id.engine.counts["remove_failed"] == 1
    assert flow_id.engine.counts["aged"] == 0
    flow_id.nic.stuck = False
    flow_id.pass_time(IDLE)
    flow_id.pass_time(GRACE)
    assert flow_id.nic.rules == {}
    assert flow_id.nf.entries == {}
    assert flow_id.engine.counts["aged"] == 1


def test_a_flow_that_cannot_be_restored_keeps_its_rule(flow_id: World) -> None:
    flow_id.report(1001)
    flow_id.nf.fails = "restore_flows"
    flow_id.pass_time(0)
    flow_id.pass_time(IDLE)
    assert len(flow_id.nic.rules) == 1
    flow_id.nf.fails = ""
    flow_id.pass_time(IDLE)
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
    assert flow_id.engine.counts["reinstalled"] == 1
    assert flow_id.adds_up()


def test_a_rule_that_cannot_be_put_back_ends_its_flow(flow_id: World) -> None:
    flow_id.report(1001)
    flow_id.nic.rules.clear()
    flow_id.nic.size = 0
    flow_id.pass_time(IDLE / 2)
    assert len(flow_id.engine.table) == 0
    assert flow_id.states() == {MarkState.QUARANTINED: 1}
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
    assert flow_id.engine.counts["orphans_removed"] == 1


def killed_and_restarted(make: Callable[..., World], first: World, strategy: str) -> World:
    """Another run over the NIC, the notes and the entries that the first one left."""
    second = make(strategy)
    second.host._manager.unregister(name="nic")
    second.nics = first.nics
    second.host.register(first.nic, "nic")
    second.context.state = first.context.state
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
    assert second.engine.counts["adopted"] == 2
    assert second.engine.table.count(FlowState.INSTALLED) == 2
    assert set(second.engine.table.rows["flow"]["target"][:2].tolist()) == {7}
    # Known flows are known, new ones get other marks, and in the end all goes as if nothing had happened.
    second.report(1001)
    second.report(1003)
    assert second.engine.counts["events_known"] == 1
    if strategy == "flow-id":
        fresh = {r.action.mark for r in second.nic.rules.values() if isinstance(r.action, SetMark)} - marks
        assert len(fresh) == 1
    second.pass_time(IDLE)
    second.pass_time(IDLE)
    second.pass_time(GRACE)
    assert (len(second.engine.table), second.nic.rules) == (0, {})


def test_the_next_run_removes_what_means_something_else(make: Callable[..., World]) -> None:
    first = make("dest-id")
    first.start()
    first.report(1001, 1002)
    second = killed_and_restarted(make, first, "dest-id")
    second.nf.known_targets = [8, 7]  # other numbers than before
    second.start()
    assert second.nic.rules == {}
    assert second.engine.counts["stale_removed"] == 2
    assert len(second.engine.table) == 0


def test_a_mark_without_its_entry_is_not_taken_over(make: Callable[..., World]) -> None:
    first = make("flow-id")
    first.start()
    first.report(1001, 1002)
    second = killed_and_restarted(make, first, "flow-id")
    second.nf.entries.pop(min(second.nf.entries))
    second.start()
    assert len(second.nic.rules) == second.engine.table.count(FlowState.INSTALLED) == 1


def test_counters_that_cannot_be_read_age_nothing(make: Callable[..., World]) -> None:
    world = make("flow-id", best=1, second=1)
    world.start()
    world.report(1001, 1002)
    world.nics["best"].broken = "dump_offload"
    world.pass_time(0)
    world.pass_time(IDLE)
    assert len(world.nics["best"].rules) == 1
    assert len(world.nics["second"].rules) == 0
    assert world.host.errors["best", "dump_offload"] == 2


def test_a_slot_that_is_used_again_does_not_inherit_counters(make: Callable[..., World]) -> None:
    world = make("flow-id", max_rules=1)
    world.start()
    world.report(1001)
    (old,) = world.nic.rules.values()
    world.pass_time(0)
    world.pass_time(IDLE)
    world.pass_time(GRACE)
    world.report(1002)
    world.nic.rules[old.cookie], world.nic.hits[old.cookie] = old, 99
    world.pass_time(IDLE / 2)
    (row,) = world.engine.table.rows[world.engine.table.slots_in(FlowState.INSTALLED)]
    assert row["packets"] == 0


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
    world.pass_time(IDLE)
    assert FOREIGN.cookie in world.nic.rules
    world.engine.remove_all()
    assert list(world.nic.rules) == [FOREIGN.cookie]


def test_stop_removes_every_rule_from_every_backend(make: Callable[..., World]) -> None:
    world = make("dest-id", best=2, second=10)
    world.start()
    world.report(*range(1001, 1008))
    world.engine.remove_all()
    assert [nic.rules for nic in world.nics.values()] == [{}, {}]


class Waiting:
    """A worker with `room` places that runs its jobs when told to."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.jobs: list[tuple[Job, Callable[[Any], None]]] = []

    def call(self, job: Job) -> Any:
        return job()

    def submit(self, job: Job, done: Callable[[Any], None]) -> bool:
        if len(self.jobs) >= self.room:
            return False
        self.jobs.append((job, done))
        return True

    def run(self) -> None:
        while self.jobs:
            job, done = self.jobs.pop(0)
            done(job())

    def stop(self, timeout: float) -> bool:
        return True


def test_a_worker_that_is_behind_costs_the_rule_and_nothing_else(make: Callable[..., World]) -> None:
    world = make("flow-id")
    world.worker = worker = Waiting(1)
    world.start()
    world.report(1001)
    marks = world.report(1002)
    assert world.reasons() == {"queue_full": 1}
    assert world.context.marks.state[marks].tolist() == [MarkState.QUARANTINED]
    assert world.engine.table.count(FlowState.PENDING) == 1
    assert world.adds_up()
    worker.run()
    assert [rule.match.sport for rule in world.nic.rules.values()] == [1001]
    assert world.adds_up()


def test_a_queue_without_room_for_a_removal_tries_again(make: Callable[..., World]) -> None:
    world = make("flow-id")
    world.worker = worker = Waiting(9)
    world.start()
    world.report(1001)
    worker.run()
    world.pass_time(IDLE)
    worker.room = 1  # the counters are in; their answer finds no place for the removal
    job, done = worker.jobs[0]
    done(job())
    assert world.engine.table.count(FlowState.INSTALLED) == 1
    worker.room, worker.jobs = 9, []
    world.pass_time(IDLE)
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
    assert world.engine.counts["events_known"] == 1


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
    world.host.register(Policy(refuse(1001, 64)), "policy")
    world.start()
    world.report(*range(1001, 1005))
    world.report(1003)
    families = {family.name: family for family in world.engine.collect()}
    values = {name: {tuple(s.labels.values()): s.value for s in family.samples} for name, family in families.items()}
    assert values["nfcore_events_total"] == {(): 5}
    assert values["nfcore_events_known_total"] == {(): 1}
    assert values["nfcore_installed_total"] == {(): 2}
    assert values["nfcore_not_offloaded_total"] == {("plugin_64",): 1, ("nic_full",): 1}
    assert values["nfcore_flows"] == {("pending",): 0, ("installed",): 2, ("draining",): 0}
    assert values["nfcore_marks_in_use"] == {("flow-id",): 2}
    assert sum(values["nfcore_marks"].values()) == 255
    assert values["nfcore_rules"] == {("eth1", "nic"): 2}


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
    world.pass_time(IDLE)
    settle(2)
    world.pass_time(GRACE)
    assert len(world.engine.table) == 0
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
    world.host._manager.unregister(name="nic")
    nic = Probed("nic", world.notes)
    nic.width = width
    world.nics["nic"] = nic
    world.host.register(nic, "nic")
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
