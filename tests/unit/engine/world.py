# SPDX-License-Identifier: Apache-2.0
"""A network function and NICs in memory, and an engine between them: what the tests of the engine stand on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.config import Config, InterfaceTable
from nfcore.api.flows import FlowBatch, FlowMatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.mark_pools import CpuPools
from nfcore.api.marks import MarkAllocator, MarkState
from nfcore.api.network_function import NetworkFunction
from nfcore.api.reasons import Reason, reason_word
from nfcore.api.rules import INSTALLED_ROW, Capabilities, Device, Outcome, Outcomes, Rule, RuleBatch, SetMark
from nfcore.daemon.bootstrap import make_context
from nfcore.devices.null_backend import NULL_BACKEND, NullBackend
from nfcore.devices.worker import InlineWorker, Job
from nfcore.engine.engine import Engine
from nfcore.engine.flow_state import FlowState
from nfcore.engine.state import ACTIVE
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.marking import MarkingPlugin

POOL = np.dtype([("taken", "<u4"), ("filled", "<u4"), ("slots", "<u4", (64,))])
IFINDEX = 4
IDLE, LAG, GRACE, QUARANTINE = 30.0, 2.0, 0.5, 5.0
FOREIGN = Rule(FlowMatch.parse("198.18.1.2:1 > 198.18.10.1:80/tcp"), SetMark(9), 0x1234)


class Nf(NetworkFunction):
    """A network function whose reports are what a test put into `reports`."""

    name = "nf"

    def __init__(self, notes: list[str]) -> None:
        self.number = 0
        self.pools: CpuPools | None = None
        self.reports: list[FlowBatch] = []
        self.entries: dict[int, int] = {}
        self.kept: set[bytes] = set()
        """Keys of flows for which something is kept while they have rules."""
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

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        return (targets // 100).astype(np.uint32)

    def describe(self, target: int) -> Mapping[str, str]:
        return {"vip": f"vip{target // 100}", "real": f"real{target % 100}"}

    def fingerprint(self) -> bytes:
        return repr(self.known_targets).encode()

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        batch.rows["target"] = [self.entries.get(mark, 0) for mark in marks.tolist()]
        known = np.isin(marks, list(self.entries))
        self.kept |= keys(batch[known])
        return known

    def let_go(self, batch: FlowBatch) -> None:
        self.kept -= keys(batch)

    def keep_only(self, batch: FlowBatch) -> None:
        self.kept &= keys(batch)

    @hookimpl
    def publish_marks(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        self._may_fail("publish_marks")
        stands = ~np.isin(batch.rows["target"], list(self.refuses))
        assert (marks != 0).all()
        self.entries |= zip(marks[stands].tolist(), batch.rows["target"][stands].tolist(), strict=True)
        self.kept |= keys(batch[stands & (batch.rows["family"] != 0)])
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


def keys(batch: FlowBatch) -> set[bytes]:
    return {key.tobytes() for key in batch.rows["key"]}


class Nic:
    """A backend that holds up to `size` rules and counts what a test lets hit them."""

    def __init__(self, name: str, notes: list[str], size: int = 1000, refuses: Outcome = Outcome.FULL) -> None:
        self.name, self.size, self.refuses = name, size, refuses
        self.rules: dict[int, Rule] = {}
        self.hits: dict[int, int] = {}
        self.capabilities = Capabilities(mark_width=32, masks=True)
        self.stuck = False
        self.broken = ""
        self.silent = False
        """It cannot tell now what it holds."""
        self.tells_counts = False
        """Whether it says what a removed rule had counted to its end."""
        self._notes = notes

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        return self.capabilities

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
        outcomes = Outcomes(np.where(there, Outcome.REMOVED, Outcome.ABSENT).astype(np.uint8))
        if self.tells_counts:
            last = [self.hits[rule.cookie] if held else 0 for rule, held in zip(rules, there, strict=True)]
            outcomes.counted = np.array([[packets, 0] for packets in last], dtype=np.uint64)
        return outcomes

    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void] | None:
        if self.broken == "dump_offload":
            raise OSError("no answer")
        if self.silent:
            return None
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

    def __init__(
        self, config: Config, strategy: str, sizes: Mapping[str, int], max_rules: int = 1000, **offload: Any
    ) -> None:
        self.now = 1000.0
        self.changed: list[int] = []
        """Devices whose links have changed, for the next tick."""
        self.notes: list[str] = []
        self.plugins = PluginManager()
        self.nf = Nf(self.notes)
        self.nics = {name: Nic(name, self.notes, size) for name, size in sizes.items()}
        self.plugins.register(MarkingPlugin(), "marking")
        self.plugins.register(self.nf, "nf")
        for name, nic in self.nics.items():
            # A NIC of Python objects would take most of the time of a million flows.
            self.plugins.register(NullBackend() if name == NULL_BACKEND else nic, name)
        times = {"idle_timeout": IDLE, "counter_lag": LAG, "grace": GRACE}
        offload = {"max_rules": max_rules, **times, **offload}
        config = replace(
            config,
            interfaces=[InterfaceTable(name="eth1", chain=["nf"], offload=list(sizes))],
            marking=config.marking.model_copy(update={"strategy": strategy, "pool_chunk": 16}),
            offload=config.offload.model_copy(update=offload),
        )
        device = Device("eth1", IFINDEX, tuple(sizes))
        self.context = make_context(config, self.plugins, [device])
        self.context.marks = MarkAllocator(8, QUARANTINE, lambda: self.now)
        self.plugins.call("marking", "setup", context=self.context)
        self.context.register_nf(self.nf)
        if strategy == "flow-id":
            self.nf.pools = CpuPools(np.zeros(1, dtype=POOL), [0])
        self.worker: Any = InlineWorker()

    def start(self) -> Engine:
        self.engine = Engine(self.context, self.plugins, {IFINDEX: self.worker}, lambda: self.now)
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

    def flows(
        self,
        *ports: int,
        marks: list[int] | None = None,
        target: int = 7,
        ifindex: int = IFINDEX,
        packets: int = 8,
        text: str = "198.18.1.2:{} > 198.18.10.1:80/tcp",
    ) -> FlowBatch:
        """Flows from these source ports, with marks taken from the pool where there is one."""
        batch = FlowBatch.empty(len(ports))
        for row, port in zip(batch.rows, ports, strict=True):
            flow = FlowMatch.parse(text.format(port))
            row["key"], row["family"] = flow.to_key(), flow.family
        batch.rows["nf"], batch.rows["ifindex"], batch.rows["target"] = 1, ifindex, target
        batch.rows["packets"] = packets
        batch.rows["mark"] = marks or [self.take_mark() if self.nf.pools else 0 for _ in ports]
        return batch

    def report(self, *ports: int, **about: Any) -> list[int]:
        """Report flows from these source ports; the marks that they carry."""
        batch = self.flows(*ports, **about)
        self.nf.reports.append(batch)
        self.engine.poll()
        marks: list[int] = batch.rows["mark"].tolist()
        return marks

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        changed, self.changed = self.changed, []
        self.engine.tick(changed)
        self.engine.poll()

    def idle_and_gone(self) -> None:
        """Let all flows be idle for long enough to be ended, and their grace pass."""
        self.pass_time(IDLE + LAG)
        self.pass_time(GRACE)

    def ports(self, state: FlowState) -> list[int]:
        """Source ports of the flows in a state, ascending."""
        table = self.engine.table
        return sorted(table.flow["key"]["sport"][table.slots_in(state)].tolist())

    def why(self, port: int) -> Reason:
        """Reason that is noted for the flow from a source port."""
        table = self.engine.table
        (slot,) = np.flatnonzero((table.flow["key"]["sport"] == port) & (table.state != FlowState.FREE))
        return Reason(int(table.reason[slot]))

    def hit(self, port: int, packets: int = 1) -> None:
        """Let packets hit the rule of the flow from a source port."""
        for nic in self.nics.values():
            for cookie, rule in nic.rules.items():
                if rule.match.sport == port:
                    nic.hits[cookie] += packets

    @property
    def active(self) -> int:
        """How many flows have a rule or are to get one."""
        return self.engine.table.count(*ACTIVE)

    def reasons(self) -> dict[str, int]:
        return {reason_word(number): count for number, count in self.engine.counters.not_offloaded.items()}

    def states(self) -> dict[int, int]:
        marks = self.context.marks
        return {state: marks.count(state) for state in (MarkState.LIVE, MarkState.QUARANTINED) if marks.count(state)}

    def held(self, *names: str) -> list[int]:
        """Source ports of the rules on the NICs (all of them where none is named), ascending."""
        nics = [self.nics[name] for name in names or self.nics]
        return sorted(rule.match.sport for nic in nics for rule in nic.rules.values())

    def adds_up(self) -> bool:
        """Every report, and every rule that vanished, came to something that is counted."""
        counts, engine = self.engine.counters.totals, self.engine
        ended = counts["events_known"] + counts["installed"] + sum(engine.counters.not_offloaded.values())
        under_way = engine.table.count(FlowState.PENDING, FlowState.WAITING)
        return counts["events"] + counts["vanished"] == ended + under_way and self.keeps_right()

    def keeps_right(self) -> bool:
        """Something is kept for all flows that have rules or wait for one, and for no others."""
        table = self.engine.table
        active = table.slots_in(*ACTIVE)
        active = active[table.mark[active] != 0]
        admitted = active[np.isin(table.reason[active], (Reason.ADMIT, Reason.VANISHED))]
        return keys(table.batch(admitted)) <= self.nf.kept <= keys(table.batch(active))

    @property
    def nic(self) -> Nic:
        return self.nics["nic"]


class Waiting:
    """A worker with `room` places that runs its jobs when told to."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.turned_away = 0
        self.jobs: list[tuple[Job, Callable[[Any], None]]] = []

    def call(self, job: Job) -> Any:
        return job()

    @property
    def queued(self) -> int:
        return len(self.jobs)

    def submit(self, job: Job, done: Callable[[Any], None]) -> bool:
        if len(self.jobs) >= self.room:
            self.turned_away += 1
            return False
        self.jobs.append((job, done))
        return True

    def run(self) -> None:
        while self.jobs:
            job, done = self.jobs.pop(0)
            done(job())

    def stop(self, timeout: float) -> bool:
        return True
