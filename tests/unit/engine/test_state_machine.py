# SPDX-License-Identifier: Apache-2.0
"""The engine under whatever may happen, in any order, against what must hold at every moment.

The network function's entries and the NIC's rules check what is done to them; a worker runs its jobs when the machine
says so. Flows are named by their source port.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from nfcore.api.config import Config, InterfaceTable, MarkingTable, NfTable, OffloadTable
from nfcore.api.flows import FlowBatch, FlowMatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.mark_pools import CpuPools
from nfcore.api.marks import MarkAllocator, MarkState
from nfcore.api.network_function import NetworkFunction
from nfcore.api.reasons import Reason
from nfcore.api.rules import INSTALLED_ROW, Capabilities, Device, Outcome, Outcomes, Rule, RuleBatch, SetMark
from nfcore.api.state_file import StateFile
from nfcore.daemon.bootstrap import make_context
from nfcore.engine.engine import Engine
from nfcore.engine.eviction import LEAST_PATIENCE
from nfcore.engine.flow_state import FlowState
from nfcore.engine.state import ACTIVE, OCCUPYING
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.marking import MarkingPlugin
from tests.unit.hooks.faults import errors_of

from .world import Waiting

IFINDEX = 4
WIDTH = 5
SLOTS = 16
CPUS = [0, 1]
POOL = np.dtype([("taken", "<u4"), ("filled", "<u4"), ("slots", "<u4", (SLOTS,))])
IDLE, LAG, GRACE, QUARANTINE = 20.0, 1.5, 0.5, 3.0
MAX_RULES = 5
PORTS = list(range(1001, 1013))
UDP_FROM = 1010
"""Source ports from here on are of UDP flows."""
TARGETS = [101, 102, 201]
Meaning = tuple[int, int]
"""A target and how often it has been there."""


class Here:
    """What everybody sees: the time, which targets there are, and what went wrong."""

    def __init__(self, lag: float) -> None:
        self.now = 100.0
        self.lag = lag
        self.lives = dict.fromkeys(TARGETS, 1)
        self.targets = list(TARGETS)
        self.starting = True
        self.restored: set[int] = set()
        """Flows that the slow path knows since their rule was installed."""
        self.moved: set[int] = set()
        """Flows that the slow path has sent elsewhere than before."""
        self.forgotten: set[int] = set()
        """Flows that an operator has had forgotten."""
        self.reason_of: Callable[[int], int] = lambda cookie: 0
        """Why the engine ends a rule."""
        self.last_hit: dict[int, float] = {}
        self.was_idle: set[int] = set()
        """Flows whose packets stayed away for long enough once since their rule was installed."""
        self.wrong: list[str] = []

    def must(self, holds: bool, words: str) -> None:
        """Note what is wrong: the engine takes what a hook raises for the plugin's own trouble."""
        if not holds:
            self.wrong.append(words)

    def meaning(self, target: int) -> Meaning:
        return target, self.lives[target]

    def stands(self, meaning: Meaning) -> bool:
        return meaning[0] in self.targets and self.lives[meaning[0]] == meaning[1]


class Card:
    """A NIC with a few places, whose counters are late."""

    def __init__(self, here: Here) -> None:
        self.here = here
        self.size = 1000
        self.mood = "good"
        self.takes_udp = True
        self.rules: dict[int, Rule] = {}
        self.meant: dict[int, Meaning] = {}
        self.hits: dict[int, list[float]] = {}
        self.left: dict[int, float] = {}
        """Mark → when the last rule that set it was removed."""
        self.entries: dict[int, Meaning] = {}

    def of(self, port: int) -> list[int]:
        return [cookie for cookie, each in self.rules.items() if each.match.sport == port]

    def setting(self, marks: set[int]) -> list[int]:
        return [c for c, each in self.rules.items() if isinstance(each.action, SetMark) and each.action.mark in marks]

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        return Capabilities(mark_width=16)

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        if self.mood == "dead":
            raise OSError("no answer")
        status = [self._install(each) for each in rules]
        return Outcomes(np.array(status, dtype=np.uint8))

    def _install(self, each: Rule) -> Outcome:
        if self.mood == "failing":
            return Outcome.FAILED
        if each.match.proto == 17 and not self.takes_udp:
            return Outcome.UNSUPPORTED
        if len(self.rules) >= self.size:
            return Outcome.FULL
        assert isinstance(each.action, SetMark)
        self.here.must(each.cookie not in self.rules, "a rule was installed twice")
        self.here.must(not self.of(each.match.sport), "a flow has two rules")
        self.rules[each.cookie] = each
        self.hits[each.cookie] = []
        # A target may have gone while the rule was on its way: then it means nothing.
        self.meant[each.cookie] = self.entries.get(each.action.mark, (0, 0))
        self.here.restored.discard(each.match.sport)
        self.here.was_idle.discard(each.match.sport)
        self.here.last_hit[each.match.sport] = self.here.now
        return Outcome.INSTALLED

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        if self.mood != "good":
            return Outcomes.all(Outcome.FAILED, len(rules))
        return Outcomes(np.array([self._remove(each) for each in rules], dtype=np.uint8))

    def _remove(self, each: Rule) -> Outcome:
        if each.cookie not in self.rules:
            return Outcome.ABSENT
        port = each.match.sport
        if not self.here.starting and self.here.stands(self.meant[each.cookie]):
            why = self.here.reason_of(each.cookie)
            moved = port in self.here.moved and why == Reason.MOVED
            moved |= port in self.here.forgotten and why == Reason.FORGOTTEN
            self.here.must(moved or port in self.here.restored, "a rule went before the slow path knew its flow")
        self.lose(each.cookie)
        assert isinstance(each.action, SetMark)
        if not self.here.starting:  # nobody forwards packets then
            self.left[each.action.mark] = self.here.now
        return Outcome.REMOVED

    def lose(self, cookie: int) -> None:
        for of in (self.rules, self.meant, self.hits):
            del of[cookie]

    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        if self.mood == "dead":
            raise OSError("no answer")
        rows = np.zeros(len(self.rules), dtype=INSTALLED_ROW)
        rows["rule"] = RuleBatch.of(list(self.rules.values())).rows
        shown = self.here.now - self.here.lag
        rows["packets"] = [sum(hit <= shown for hit in self.hits[cookie]) for cookie in self.rules]
        return rows


class Balancer(NetworkFunction):
    """A network function that knows what each of its entries means, and when it may not."""

    name = "nf"

    def __init__(self, here: Here, card: Card, *, per_flow: bool) -> None:
        self.here, self.card, self.per_flow = here, card, per_flow
        self.number = 0
        self.pools: CpuPools | None = None
        self.reports: list[FlowBatch] = []
        self.owners: dict[int, int] = {}
        """Mark → flow, where marks are of flows."""
        self.kept: set[int] = set()
        """Flows for which something is kept while they have rules. It outlives a run, as pinned maps do."""
        self.retired: dict[int, float] = {}
        self.fails = ""

    @property
    def entries(self) -> dict[int, Meaning]:
        return self.card.entries

    def read_events(self, limit: int) -> FlowBatch:
        return self.reports.pop(0) if self.reports else FlowBatch.empty()

    def targets(self) -> FlowBatch:
        batch = FlowBatch.empty(len(self.here.targets))
        batch.rows["nf"], batch.rows["target"] = self.number, sorted(self.here.targets)
        return batch

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        return (targets // 100).astype(np.uint32)

    def describe(self, target: int) -> Mapping[str, str]:
        return {"vip": str(target // 100), "real": str(target)}

    def fingerprint(self) -> bytes:
        return repr(sorted(self.here.targets)).encode()

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        ports = batch.rows["key"]["sport"].tolist()
        batch.rows["target"] = [self.entries.get(mark, (0, 0))[0] for mark in marks.tolist()]
        mine = [
            mark in self.entries and (not self.per_flow or self.owners[mark] == port)
            for mark, port in zip(marks.tolist(), ports, strict=True)
        ]
        self.kept |= {port for port, known in zip(ports, mine, strict=True) if known}
        return np.array(mine, dtype=bool)

    def let_go(self, batch: FlowBatch) -> None:
        self.kept -= set(batch.rows["key"]["sport"].tolist())

    def keep_only(self, batch: FlowBatch) -> None:
        self.kept &= set(batch.rows["key"]["sport"].tolist())

    @hookimpl
    def publish_marks(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        self._may_fail("publish_marks")
        rows = zip(marks.tolist(), batch.rows["target"].tolist(), batch.rows["key"]["sport"].tolist(), strict=True)
        return np.array([self._publish(*row) for row in rows], dtype=bool)

    def _publish(self, mark: int, target: int, port: int) -> bool:
        assert mark
        if target not in self.here.targets:
            return False
        meaning = self.here.meaning(target)
        if self.per_flow:
            self.here.must(mark not in self.entries, "a mark means two flows")
        elif not self.here.starting:
            self.here.must(self.entries.get(mark, meaning) == meaning, "a mark means two targets")
        if self.entries.get(mark) != meaning:
            self.here.must(self.here.now - self.retired.get(mark, 0.0) >= QUARANTINE, "a mark did not rest")
            if not self.here.starting:
                self.here.must(not self.card.setting({mark}), "a rule sets a mark that means something else now")
        self.entries[mark], self.owners[mark] = meaning, port
        if port:
            self.kept.add(port)
        return True

    @hookimpl
    def retire_marks(self, nf: int, marks: NDArray[np.uint32]) -> None:
        self._may_fail("retire_marks")
        for mark in marks.tolist():
            self.here.must(not self.card.setting({mark}), "an entry went before the rule")
            self.here.must(self.here.now - self.card.left.get(mark, 0.0) >= GRACE - 1e-6, "no grace was given")
            self.entries.pop(mark, None)
            self.owners.pop(mark, None)
            self.retired[mark] = self.here.now

    @hookimpl
    def restore_flows(self, batch: FlowBatch) -> None:
        self._may_fail("restore_flows")
        for port, target in zip(batch.rows["key"]["sport"].tolist(), batch.rows["target"].tolist(), strict=True):
            for cookie in self.card.of(port):
                self.here.must(self.card.meant[cookie][0] == target, "a flow was restored to another target")
                self.here.must(
                    self.here.stands(self.card.meant[cookie]), "a flow was restored to a target that is gone"
                )
            self.here.restored.add(port)

    def void(self, target: int) -> None:
        """Take a target out, and what leads there."""
        self.here.targets.remove(target)
        for mark in [mark for mark, meaning in self.entries.items() if meaning[0] == target]:
            del self.entries[mark]

    def _may_fail(self, hook: str) -> None:
        if self.fails == hook:
            raise OSError("the map is gone")


def flows_from(ports: list[int]) -> FlowBatch:
    batch = FlowBatch.empty(len(ports))
    for row, port in zip(batch.rows, ports, strict=True):
        proto = "udp" if port >= UDP_FROM else "tcp"
        row["key"] = FlowMatch.parse(f"198.18.1.2:{port} > 198.18.10.1:80/{proto}").to_key()
    batch.rows["family"] = 4
    return batch


class LivesOfFlows(RuleBasedStateMachine):
    """An engine between a Balancer and a Card."""

    strategy = "flow-id"

    @initialize(lag=st.sampled_from([0.0, 0.4, LAG - 0.01]), size=st.sampled_from([3, 1000]))
    def begin(self, lag: float, size: int) -> None:
        self.here = Here(lag)
        self.card = Card(self.here)
        self.card.size = size
        self.nf = Balancer(self.here, self.card, per_flow=self.strategy == "flow-id")
        self.notes = StateFile()
        self.shown = dict.fromkeys(PORTS, 4)
        self.start()

    def start(self) -> None:
        """Start an engine over whatever there is."""
        here = self.here
        here.starting = True
        # What cannot be written at the start leaves the entries of the run before, whose numbers meant other targets.
        self.nf.fails = ""
        self.plugins = PluginManager()
        for plugin, name in ((MarkingPlugin(), "marking"), (self.nf, "nf"), (self.card, "nic")):
            self.plugins.register(plugin, name)
        context = make_context(self.config(), self.plugins, [Device("eth1", IFINDEX, ("nic",))], tracing=True)
        context.state_file = self.notes
        context.marks = self.marks = MarkAllocator(WIDTH, QUARANTINE, lambda: here.now)
        self.plugins.call("marking", "setup", context=context)
        context.register_nf(self.nf)
        # A run begins with maps of its own, but for the entries.
        self.nf.pools = CpuPools(np.zeros(2, dtype=POOL), CPUS, lambda: here.now) if self.nf.per_flow else None
        self.nf.retired, self.card.left, self.nf.reports = {}, {}, []
        self.worker = Waiting(6)
        self.engine = Engine(context, self.plugins, {IFINDEX: self.worker}, lambda: here.now)
        here.reason_of = lambda cookie: int(self.engine.table.reason[cookie & 0xFFFF_FFFF])
        self.changed: list[int] = []
        self.engine.start()
        live = set(np.flatnonzero(self.marks.state == MarkState.LIVE).tolist())
        for mark in set(self.nf.entries) - live:
            del self.nf.entries[mark]
        here.starting = False

    def config(self) -> Config:
        offload = OffloadTable(
            max_rules=MAX_RULES,
            min_packets=4,
            inserts_per_second=2.0,
            insert_burst=4,
            waiting=6,
            idle_timeout=f"{IDLE}s",  # type: ignore[arg-type]
            counter_lag=f"{LAG}s",  # type: ignore[arg-type]
            grace=f"{GRACE}s",  # type: ignore[arg-type]
        )
        return Config(
            "",
            NfTable(plugins=["nf"]),
            [InterfaceTable(name="eth1", chain=["nf"], offload=["nic"])],
            MarkingTable(strategy=self.strategy, pool_chunk=6),
            offload,
        )

    # What may happen

    @rule(
        ports=st.lists(st.sampled_from(PORTS), min_size=1, max_size=8, unique=True),
        leads_to=st.sampled_from(TARGETS),
        cpu=st.sampled_from(CPUS),
        late=st.booleans(),
    )
    def flows_are_reported(self, ports: list[int], leads_to: int, cpu: int, late: bool) -> None:
        if leads_to not in self.here.targets and not late:
            return
        batch = flows_from(ports)
        for row, port in zip(batch.rows, ports, strict=True):
            row["mark"] = self.take_mark(cpu)
            row["packets"] = self.shown[port]
            self.shown[port] *= 2
        batch.rows["nf"], batch.rows["ifindex"] = 1, IFINDEX
        batch.rows["target"], batch.rows["cpu"] = leads_to, cpu
        table = self.engine.table
        for port, slot in zip(ports, table.find(batch).tolist(), strict=True):
            if slot >= 0 and table.flow["target"][slot] != leads_to:
                self.here.moved.add(port)
        self.nf.reports.append(batch)
        self.engine.poll()

    def take_mark(self, cpu: int) -> int:
        if self.nf.pools is None:
            return 0
        row = self.nf.pools.rows[cpu]
        if not 0 < (int(row["filled"]) - int(row["taken"])) < 1 << 31:
            return 0
        mark = int(row["slots"][int(row["taken"]) % SLOTS])
        self.nf.pools.rows["taken"][cpu] += 1
        return mark

    @rule(seconds=st.sampled_from([0.0, 0.06, GRACE, 2.0, 7.0, IDLE]))
    def time_passes(self, seconds: float) -> None:
        self.here.now += seconds
        self.engine.poll()
        changed, self.changed = self.changed, []
        self.engine.tick(changed)

    @rule(jobs=st.integers(1, 6))
    def the_worker_works(self, jobs: int) -> None:
        for _ in range(min(jobs, len(self.worker.jobs))):
            job, done = self.worker.jobs.pop(0)
            done(job())

    @rule(port=st.sampled_from(PORTS), packets=st.integers(1, 500))
    def packets_hit(self, port: int, packets: int) -> None:
        for cookie in self.card.of(port):
            self.card.hits[cookie] += [self.here.now] * packets
            if self.here.now - self.here.last_hit[port] >= IDLE * LEAST_PATIENCE:
                self.here.was_idle.add(port)
            self.here.last_hit[port] = self.here.now

    @rule(size=st.sampled_from([0, 2, 3, 1000]))
    def the_nic_has_room_for(self, size: int) -> None:
        self.card.size = size

    @rule(mood=st.sampled_from(["good", "failing", "dead"]))
    def the_nic_is(self, mood: str) -> None:
        self.card.mood = mood

    @rule(takes=st.booleans())
    def the_nic_takes_udp(self, takes: bool) -> None:
        self.card.takes_udp = takes
        self.changed.append(IFINDEX)

    @rule(ports=st.sets(st.sampled_from(PORTS), min_size=1))
    def the_nic_loses(self, ports: set[int]) -> None:
        for cookie in [cookie for port in ports for cookie in self.card.of(port)]:
            self.card.lose(cookie)

    @rule(hook=st.sampled_from(["", "publish_marks", "retire_marks", "restore_flows"]))
    def the_nf_fails_at(self, hook: str) -> None:
        self.nf.fails = hook

    @rule(which=st.sampled_from(TARGETS))
    def a_target_goes_or_comes(self, which: int) -> None:
        gone = np.zeros(0, dtype=np.uint64)
        if which in self.here.targets:
            self.nf.void(which)
            gone = np.array([which], dtype=np.uint64)
        else:
            self.here.targets.append(which)
            self.here.lives[which] += 1
        self.engine.apply(self.engine.context.config, {"nf": gone})

    @rule(ports=st.sets(st.sampled_from(PORTS), min_size=1), to=st.sampled_from([None, *TARGETS]))
    def an_operator_has_flows_forgotten(self, ports: set[int], to: int | None) -> None:
        table = self.engine.table
        if to is None:
            batch = flows_from(sorted(ports))
            batch.rows["nf"] = batch.rows["ifindex"] = 0  # whatever device they come by
            done = self.engine.context.services.forget_flows(1, batch)
            known = table.slots_in(FlowState.REFUSED, FlowState.ENDED)
            known = known[np.isin(table.flow["key"]["sport"][known], sorted(ports))]
        else:
            done = self.engine.context.services.forget_flows(1, np.array([to], dtype=np.uint64))
            known = table.slots_in(FlowState.REFUSED, FlowState.ENDED)
            known = known[table.flow["target"][known] == to]
        assert (table.reason[known] == Reason.FORGOTTEN).all()  # they waited for a rule until now
        forgotten = set(done.flows.rows["key"]["sport"].tolist())
        assert not self.nf.kept & forgotten
        self.here.forgotten |= forgotten

    @rule(on=st.booleans())
    def offloading_is_switched(self, on: bool) -> None:
        self.engine.switch(on=on)

    @rule()
    def the_daemon_is_killed(self) -> None:
        self.card.mood = "good"  # of a NIC that is deaf at the start nobody could say what its rules mean
        before = self.engine.state.switched_on
        self.start()
        assert self.engine.state.switched_on == before

    @rule()
    def the_daemon_is_restarted(self) -> None:
        self.here.starting = True  # nobody forwards any more
        self.card.mood = "good"
        self.worker.room = 1000
        self.engine.remove_all()
        self.run_all()
        assert not self.card.rules
        self.start()

    def run_all(self) -> None:
        while self.worker.jobs:
            self.the_worker_works(1)

    @rule()
    def all_is_quiet(self) -> None:
        """Everything works again and nothing comes: in the end nothing is left."""
        self.card.mood, self.nf.fails = "good", ""
        for _ in range(30):
            self.time_passes(LAG)
            self.run_all()
        self.all_is_well()
        for _ in range(8):
            self.time_passes(IDLE)
            self.run_all()
        assert self.card.rules == {}
        assert self.engine.table.count(*ACTIVE) == 0
        live = set(np.flatnonzero(self.marks.state == MarkState.LIVE).tolist())
        if self.nf.per_flow:
            assert (live, self.nf.entries) == (set(), {})
        else:
            meanings = list(self.nf.entries.values())
            assert set(self.nf.entries) <= live
            assert len(live) <= len(self.here.targets)
            assert len(set(meanings)) == len(meanings)
            assert all(self.here.stands(meaning) for meaning in meanings)
        self.here.now += QUARANTINE
        self.marks.take(0)
        assert self.marks.count(MarkState.QUARANTINED) == 0

    def all_is_well(self) -> None:
        """After looks at a NIC that answers, its rules are those of the table."""
        table = self.engine.table
        held = table.slots_in(FlowState.INSTALLED, FlowState.DRAINING)
        stray = [self.card.rules[cookie] for cookie in self.card.rules if cookie & 0xFFFF_FFFF not in held]
        assert not stray, stray

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.all_is_quiet()

    # What must hold

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert not self.here.wrong, self.here.wrong
        may_fail = {"publish_marks", "retire_marks", "restore_flows"}
        assert {hook for name, hook in errors_of(self.plugins) if name != "nic"} <= may_fail

    @invariant()
    def counts_add_up(self) -> None:
        ledger, table = self.engine.counters, self.engine.table
        came = ledger.totals["events"] + ledger.totals["vanished"]
        known = ledger.totals["events_known"] + ledger.totals["installed"]
        under_way = table.count(FlowState.PENDING, FlowState.WAITING)
        assert came == known + sum(ledger.not_offloaded.values()) + under_way
        assert all(number >= 0 for number in ledger.totals.values())

    @invariant()
    def rules_mean_what_they_meant(self) -> None:
        for cookie, each in self.card.rules.items():
            assert isinstance(each.action, SetMark)
            meant, means = self.card.meant[cookie], self.nf.entries.get(each.action.mark)
            if self.here.stands(meant):
                assert means == meant, "a rule without its entry"
            else:
                assert means is None, "a rule to a target that is gone has an entry"

    @invariant()
    def marks_have_one_meaning(self) -> None:
        table = self.engine.table
        used = table.mark[table.slots_in(*ACTIVE)].tolist()
        assert all(used)
        assert (self.marks.state[used] == MarkState.LIVE).all()
        if self.nf.per_flow:
            assert len(set(used)) == len(used)
        none = table.slots_in(FlowState.REFUSED)
        assert not table.mark[none].any()
        assert table.reason[none].all()

    @invariant()
    def nothing_is_kept_for_other_flows(self) -> None:
        table = self.engine.table
        active = table.slots_in(*ACTIVE)
        admitted = active[np.isin(table.reason[active], (Reason.ADMIT, Reason.VANISHED))]
        ports = table.flow["key"]["sport"]
        assert set(ports[admitted].tolist()) <= self.nf.kept <= set(ports[active].tolist())

    @invariant()
    def there_are_not_too_many(self) -> None:
        assert self.engine.table.count(*OCCUPYING) <= MAX_RULES

    @invariant()
    def no_live_flow_was_idle(self) -> None:
        table = self.engine.table
        for slot in table.slots_in(FlowState.DRAINING):
            if table.reason[slot] == Reason.IDLE:
                port = int(table.flow["key"]["sport"][slot])
                idle = table.since[slot] - self.here.last_hit[port] >= IDLE * LEAST_PATIENCE
                assert idle or port in self.here.was_idle


class LivesOfFlowsToTargets(LivesOfFlows):
    """The same where a mark is of a target."""

    strategy = "dest-id"


SHORT = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestLivesOfFlows: Callable[..., Any] = LivesOfFlows.TestCase
TestLivesOfFlows.settings = SHORT  # type: ignore[attr-defined]
TestLivesOfFlowsToTargets: Callable[..., Any] = LivesOfFlowsToTargets.TestCase
TestLivesOfFlowsToTargets.settings = SHORT  # type: ignore[attr-defined]
