# SPDX-License-Identifier: Apache-2.0
"""The engine: from the report of a new flow to an installed rule, and back.

    read_events ─► on_new_flow ─► allocate_mark ─► publish_marks ─► worker: install_offload
                                                                        │ counters stand still
    free ◄─ quarantine ◄─ retire_marks ◄─ grace ◄─ worker: remove_offload ◄─ restore_flows

Everything here runs on one thread; only workers wait for a NIC.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .adoption import FINGERPRINT, Leftovers, same_meaning, take_over
from .config import OffloadTable
from .context import Context, NetworkFunction
from .errors import ConfigError, Problem
from .flows import FlowBatch
from .flowtable import FlowState, FlowTable
from .host import PluginHost
from .marks import MarkMeaning, MarkState
from .metrics import MetricFamily, MetricKind
from .reasons import Reason, reason_word
from .rules import RULE_ROW, Action, Capabilities, Outcome, RuleBatch, make_cookies, split_cookies
from .worker import Backends, Dump, InstallResult, Worker

log = logging.getLogger(__name__)

READ_LIMIT = 16_384
"""Reports taken from an NF at a time: some milliseconds of work, so that nothing else waits for long."""


@dataclass
class _Port:
    """A device with what the engine needs to reach its NIC."""

    backends: Backends
    worker: Worker
    polling: bool = False


class Engine:
    """Moves flows through the hooks. `workers` has one worker per device, by ifindex."""

    def __init__(
        self,
        context: Context,
        host: PluginHost,
        workers: Mapping[int, Worker],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.context = context
        self.host = host
        self.table = FlowTable(context.config.offload.max_rules)
        self.not_offloaded: Counter[int] = Counter()
        """Reason number → reports that ended with it."""
        self.counts: Counter[str] = Counter()
        self._ports = {
            device.ifindex: _Port(Backends(device, host), workers[device.ifindex]) for device in context.devices
        }
        self._clock = clock
        self._graces: deque[tuple[float, NDArray[np.int64]]] = deque()
        self._next_poll = clock()
        self._said: set[str] = set()

    @property
    def offload(self) -> OffloadTable:
        """The TOML's `[offload]`."""
        return self.context.config.offload

    # Start

    def start(self) -> None:
        """Give every known target its mark, take over or remove the rules of an earlier run, fill the pools.

        The one time that the caller waits for a NIC.
        """
        for port in self._ports.values():
            self._probe(port)
        strategy = self.context.strategy
        trusted = same_meaning(self.context) and strategy is not None
        if strategy is not None and strategy.meaning is MarkMeaning.TARGET:
            for nf in self.context.nfs:
                targets = nf.targets()
                marks = self._allocate(targets)
                given = marks != 0
                if given.any():
                    self.host.attempt(nf.name, "publish_marks", batch=targets[given], marks=marks[given])
        for port in self._ports.values():
            self._take_over(port, trusted=trusted)
        if strategy is not None:
            self._lease()

    def _probe(self, port: _Port) -> None:
        """Say once what the NIC can do; go on without what cannot set marks. ConfigError: the marks are too wide."""
        width, name = self.context.config.marking.width, port.backends.device.name
        able: dict[str, Capabilities] = port.worker.call(port.backends.probe)
        for backend, each in able.items():
            log.info("%s: %s: %s", name, backend, each.describe())
            if 0 < each.mark_width < width:
                message = f"is {width}; {backend} on {name} transports {each.mark_width} bits: "
                message += f"set it to {each.mark_width} or less"
                raise ConfigError(self.context.config.source, [Problem("marking.width", message)])
        useless = [backend for backend, each in able.items() if each.mark_width == 0]
        if useless:
            port.backends.leave_out(useless)
            log.warning("%s: %s cannot set marks here: going on without", name, ", ".join(useless))

    def _take_over(self, port: _Port, *, trusted: bool) -> None:
        try:
            left: Leftovers = port.worker.call(
                lambda: take_over(port.backends, self.context, self.table, trusted=trusted)
            )
        except Exception as error:  # noqa: BLE001 - an NF's or a backend's fault: unaccelerated is better than not at all
            self._say_once(f"{port.backends.device.name}: rules of an earlier run cannot be taken over: {error}")
            return
        self.table.rows["seen"][left.adopted] = self._clock()
        if len(left.adopted) or left.removed:
            self.counts["adopted"] += len(left.adopted)
            self.counts["stale_removed"] += left.removed
            words = (port.backends.device.name, len(left.adopted), left.removed)
            log.info("%s: of an earlier run's rules %d were taken over, %d removed", *words)

    # New flows

    def poll(self) -> int:
        """Take reports from every network function; how many there were."""
        taken = 0
        for nf in self.context.nfs:
            batch = nf.read_events(READ_LIMIT)
            if len(batch):
                taken += len(batch)
                self.counts["events"] += len(batch)
                self._take(nf, batch)
        if taken:
            self._lease()
        return taken

    def _take(self, nf: NetworkFunction, batch: FlowBatch) -> None:
        identities = batch.identities()
        fresh = self.table.find(identities) < 0
        fresh &= _first_of_each(identities)
        self._give_back(batch.rows["mark"][~fresh])
        self.counts["events_known"] += int(np.count_nonzero(~fresh))
        batch = self._admit(batch[fresh]) if fresh.any() else batch[fresh]
        if not len(batch):
            return
        marks = self._allocate(batch)
        batch, marks = self._keep(batch, marks != 0, marks, Reason.NO_MARK)
        if len(batch):
            batch, marks = self._publish(nf, batch, marks)
        if len(batch):
            self._install(batch, marks)

    def _admit(self, batch: FlowBatch) -> FlowBatch:
        reasons = np.zeros(len(batch), dtype=np.uint8)
        for ifindex in np.unique(batch.rows["ifindex"]).tolist():
            port = self._ports.get(ifindex)
            if port is None or not port.backends.device.backends:
                reasons[batch.rows["ifindex"] == ifindex] = Reason.NO_BACKEND
        for plugin in self.host.implementing("on_new_flow"):
            done, answer = self.host.attempt(plugin, "on_new_flow", batch=batch)
            if done and answer is None:
                continue
            if not (done and self._fits(answer, batch, plugin, "on_new_flow")):
                # What a broken policy would have said is not known, and the slow path is always right.
                answer = np.full(len(batch), Reason.HOOK_FAILED, dtype=np.uint8)
            reasons = np.where(reasons == 0, answer, reasons).astype(np.uint8)
        admitted = np.flatnonzero(reasons == 0)
        reasons[admitted[max(self.table.room, 0) :]] = Reason.TABLE_FULL
        refused = reasons != 0
        self._count_reasons(reasons[refused])
        self._give_back(batch.rows["mark"][refused])
        admitted_batch: FlowBatch = batch[~refused]
        return admitted_batch

    def _allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        """Marks of the strategy in charge; a mark that XDP took and that is not confirmed goes back."""
        marks = np.zeros(len(batch), dtype=np.uint32)
        for plugin, answer in self.host.each("allocate_mark", batch=batch):
            if answer is not None:
                if self._fits(answer, batch, plugin, "allocate_mark"):
                    marks = answer.astype(np.uint32)
                break
        taken = batch.rows["mark"]
        self._give_back(taken[taken != marks])
        return marks

    def _publish(
        self, nf: NetworkFunction, batch: FlowBatch, marks: NDArray[np.uint32]
    ) -> tuple[FlowBatch, NDArray[np.uint32]]:
        """Let the NF write what the marks mean; what is left is what it wrote."""
        done, answer = self.host.attempt(nf.name, "publish_marks", batch=batch, marks=marks)
        done = done and self._fits(answer, batch, nf.name, "publish_marks")
        published = answer.astype(bool) if done else np.zeros(len(batch), dtype=bool)
        self._undo_marks(nf.number, marks[~published])
        return self._keep(batch, published, marks, Reason.NOT_PUBLISHED if done else Reason.HOOK_FAILED)

    def _fits(self, answer: Any, batch: FlowBatch, plugin: str, hook: str) -> bool:
        if isinstance(answer, np.ndarray) and answer.shape == (len(batch),):
            return True
        self.host.blame(plugin, hook, f"gave {answer!r:.60}; should be an array of {len(batch)} values, one per flow")
        return False

    def _keep(
        self, batch: FlowBatch, good: NDArray[np.bool_], marks: NDArray[np.uint32], reason: Reason
    ) -> tuple[FlowBatch, NDArray[np.uint32]]:
        bad = int(np.count_nonzero(~good))
        if not bad:
            return batch, marks
        self.not_offloaded[reason] += bad
        return batch[good], marks[good]

    def _install(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> None:
        slots = self.table.insert(batch, batch.identities(), marks)
        self.table.rows["seen"][slots] = self._clock()
        for ifindex in np.unique(batch.rows["ifindex"]).tolist():
            self._submit_install(self._ports[ifindex], slots[batch.rows["ifindex"] == ifindex])

    def _submit_install(self, port: _Port, slots: NDArray[np.int64]) -> None:
        self.table.rows["state"][slots] = FlowState.PENDING
        rules = self._rules(slots)
        if not port.worker.submit(lambda: port.backends.install(rules), lambda result: self._installed(slots, result)):
            self._count_reasons(np.full(len(slots), Reason.QUEUE_FULL, dtype=np.uint8))
            self._forget(slots)

    def _rules(self, slots: NDArray[np.int64]) -> RuleBatch:
        rows = np.zeros(len(slots), dtype=RULE_ROW)
        tracked = self.table.rows[slots]
        rows["key"], rows["family"] = tracked["flow"]["key"], tracked["flow"]["family"]
        rows["action"], rows["mark"] = Action.SET_MARK, tracked["mark"]
        rows["cookie"] = make_cookies(slots, tracked["generation"])
        return RuleBatch(rows)

    def _installed(self, slots: NDArray[np.int64], result: InstallResult | Exception) -> None:
        if isinstance(result, Exception):
            self._say_once(f"offload failed: {result}")
            result = InstallResult(
                np.full(len(slots), Outcome.FAILED, dtype=np.uint8), np.zeros(len(slots), dtype=np.uint8), []
            )
        for words in result.words:
            self._say_once(f"offload: {words}")
        good = result.status == Outcome.INSTALLED
        self.table.rows["state"][slots[good]] = FlowState.INSTALLED
        self.table.rows["backend"][slots[good]] = result.backend[good]
        self.counts["installed"] += int(np.count_nonzero(good))
        reason_of = {Outcome.FULL: Reason.NIC_FULL, Outcome.UNSUPPORTED: Reason.UNSUPPORTED}
        for status in result.status[~good].tolist():
            self.not_offloaded[reason_of.get(status, Reason.FAILED)] += 1
        self._forget(slots[~good])

    # The end of a flow

    def tick(self) -> None:
        """Do what time asks for: grace periods that have passed, counters to read, idle flows to remove."""
        now = self._clock()
        while self._graces and self._graces[0][0] <= now:
            self._forget(self._graces.popleft()[1])
        if now >= self._next_poll:
            self._next_poll = now + min(max(self.offload.idle_timeout / 4, 0.1), 5.0)
            for port in self._ports.values():
                self._poll_counters(port)

    def _poll_counters(self, port: _Port) -> None:
        if port.polling or not port.backends.device.backends:
            return

        def done(result: Dump | Exception) -> None:
            port.polling = False
            if isinstance(result, Exception):
                self._say_once(f"counters of {port.backends.device.name} cannot be read: {result}")
            else:
                self._counted(port, result)

        port.polling = True
        if not port.worker.submit(port.backends.dump, done):
            port.polling = False

    def _counted(self, port: _Port, dump: Dump) -> None:
        ours, slots, generations = split_cookies(dump.rows["rule"]["cookie"])
        known = ours & (slots < len(self.table.rows))
        known[known] &= self.table.rows["generation"][slots[known]] == generations[known]
        known[known] &= self.table.rows["state"][slots[known]] != FlowState.FREE
        self._remove_orphans(port, dump, ours & ~known)
        known[known] &= self.table.rows["state"][slots[known]] == FlowState.INSTALLED
        rows, slots = dump.rows[known], slots[known]
        now = self._clock()
        moved = slots[rows["packets"] != self.table.rows["packets"][slots]]
        self.table.rows["seen"][moved] = now
        self.table.rows["packets"][slots] = rows["packets"]
        self.table.rows["bytes"][slots] = rows["bytes"]
        held = self.table.slots_in(FlowState.INSTALLED)
        tracked = self.table.rows[held]
        mine = (tracked["flow"]["ifindex"] == port.backends.device.ifindex) & np.isin(tracked["backend"], dump.answered)
        idle = mine & (now - tracked["seen"] >= self.offload.idle_timeout)
        self._reinstall(port, held[mine & ~idle & ~np.isin(held, slots)])
        if idle.any():
            self.drain(held[idle])

    def _reinstall(self, port: _Port, slots: NDArray[np.int64]) -> None:
        """Put back rules that the NIC no longer has though nobody here removed them."""
        if not len(slots):
            return
        self.counts["reinstalled"] += len(slots)
        self.table.rows["packets"][slots] = 0
        # Their packets are on the slow path already, which must send them where their marks did.
        self._restore(self.table.batch(slots))
        self._submit_install(port, slots)

    def _remove_orphans(self, port: _Port, dump: Dump, which: NDArray[np.bool_]) -> None:
        """Take rules of ours off the NIC that no flow accounts for, such as those whose answer was lost."""
        if not which.any():
            return
        rules, backend = RuleBatch(np.ascontiguousarray(dump.rows["rule"][which])), dump.backend[which]

        def done(result: NDArray[np.bool_] | Exception) -> None:
            if not isinstance(result, Exception):
                self.counts["orphans_removed"] += int(np.count_nonzero(result))

        port.worker.submit(lambda: port.backends.remove(rules, backend), done)

    def drain(self, slots: NDArray[np.int64]) -> None:
        """Take installed flows out of hardware without losing their target."""
        flows = self.table.batch(slots)
        known = self._restore(flows)
        slots, flows = slots[known], flows[known]  # the others would lose their target: they keep their rules
        self.table.rows["state"][slots] = FlowState.DRAINING
        for ifindex in np.unique(flows.rows["ifindex"]).tolist():
            mine = slots[flows.rows["ifindex"] == ifindex]
            self._remove(self._ports[ifindex], mine)

    def _restore(self, flows: FlowBatch) -> NDArray[np.bool_]:
        """Let the slow path know the flows; whether it does, per row."""
        known = np.ones(len(flows), dtype=bool)
        for nf in self.context.nfs:
            mine = flows.rows["nf"] == nf.number
            if mine.any():
                known[mine], _ = self.host.attempt(nf.name, "restore_flows", batch=flows[mine])
        return known

    def _remove(self, port: _Port, slots: NDArray[np.int64]) -> None:
        rules, backend = self._rules(slots), self.table.rows["backend"][slots].copy()

        def done(result: NDArray[np.bool_] | Exception) -> None:
            gone = np.zeros(len(slots), dtype=bool) if isinstance(result, Exception) else result
            self.counts["aged"] += int(np.count_nonzero(gone))
            self._graces.append((self._clock() + self.offload.grace, slots[gone]))
            if not gone.all():
                # Still on the NIC: the flow stays tracked, and the next counters will find it idle again.
                self.counts["remove_failed"] += int(np.count_nonzero(~gone))
                self.table.rows["state"][slots[~gone]] = FlowState.INSTALLED

        if not port.worker.submit(lambda: port.backends.remove(rules, backend), done):
            self.table.rows["state"][slots] = FlowState.INSTALLED

    def _forget(self, slots: NDArray[np.int64]) -> None:
        """End flows that have no rule: what their marks mean, the marks, the slots."""
        if not len(slots):
            return
        rows = self.table.rows[slots]
        for number in np.unique(rows["flow"]["nf"]).tolist():
            self._undo_marks(number, rows["mark"][rows["flow"]["nf"] == number])
        self.table.remove(slots)

    def _undo_marks(self, nf_number: int, marks: NDArray[np.uint32]) -> None:
        """Retire and give back marks of single flows; a target's mark goes on for the other flows."""
        strategy = self.context.strategy
        if strategy is None or strategy.meaning is not MarkMeaning.FLOW or not len(marks):
            return
        nf = self.context.nfs[nf_number - 1]
        retired, _ = self.host.attempt(nf.name, "retire_marks", nf=nf_number, marks=marks)
        if retired:  # a mark that may still mean something must not be given to another flow
            self._release(marks)

    def _give_back(self, taken: NDArray[np.uint32]) -> None:
        """Return marks that XDP took and no flow will use. What is not on lease is in use, or never was ours."""
        self._release(taken[self.context.marks.leased(taken)])

    def _release(self, marks: NDArray[np.uint32]) -> None:
        marks = marks[marks != 0]
        if len(marks):
            for _ in self.host.each("release_mark", marks=marks):
                pass

    def _lease(self) -> None:
        for nf in self.context.nfs:
            if nf.pools is not None:
                nf.pools.lease(self.context.marks, self.context.config.marking.pool_chunk)

    # Stop and figures

    def remove_all(self) -> None:
        """Queue the removal of every rule: the last thing that the workers do. The next run finds nothing of this."""
        self.context.state.forget(FINGERPRINT)
        slots = np.concatenate([self.table.slots_in(FlowState.INSTALLED), self.table.slots_in(FlowState.PENDING)])
        for ifindex, port in self._ports.items():
            mine = slots[self.table.rows["flow"]["ifindex"][slots] == ifindex]
            if not port.backends.device.backends:
                continue
            rules = self._rules(mine)
            for number in range(len(port.backends.device.backends)):
                where = np.full(len(mine), number, dtype=np.uint8)
                if not port.worker.submit(
                    lambda port=port, rules=rules, where=where: port.backends.remove(rules, where),  # type: ignore[misc]
                    lambda result: None,
                ):
                    log.error("%s is too far behind: rules are left, see nfcore cleanup", port.backends.device.name)

    def collect(self) -> list[MetricFamily]:
        """Give the engine's own figures."""
        flows = MetricFamily("nfcore_flows", MetricKind.GAUGE, "Tracked flows by state of their rule.", "flows")
        for state in (FlowState.PENDING, FlowState.INSTALLED, FlowState.DRAINING):
            flows.add(self.table.count(state), state=state.name.lower())
        marks = MetricFamily("nfcore_marks", MetricKind.GAUGE, "Marks by state.", "marks")
        for mark_state in MarkState:
            marks.add(self.context.marks.count(mark_state), state=mark_state.name.lower())
        in_use = MetricFamily("nfcore_marks_in_use", MetricKind.GAUGE, "Marks that mean something now.", "marks")
        name = self.context.strategy.name if self.context.strategy else "none"
        in_use.add(self.context.marks.count(MarkState.LIVE), strategy=name)
        refused = MetricFamily(
            "nfcore_not_offloaded_total",
            MetricKind.COUNTER,
            "Reports that led to no rule, by reason.",
            "flows",
        )
        for reason, number in sorted(self.not_offloaded.items()):
            refused.add(number, reason=reason_word(reason))
        return [flows, marks, in_use, refused, *self._counters(), self._rule_gauge(), self._hook_errors()]

    def _counters(self) -> list[MetricFamily]:
        words = {
            "events": "Reports of flows taken from the datapath.",
            "events_known": "Reports of flows that were tracked already.",
            "installed": "Rules installed.",
            "adopted": "Rules of an earlier run that were taken over.",
            "stale_removed": "Rules of an earlier run that were removed.",
            "reinstalled": "Rules put back because somebody else had removed them.",
            "orphans_removed": "Rules of ours on a NIC that belonged to no flow.",
            "aged": "Rules removed because their counter stood still.",
            "remove_failed": "Rules that a backend could not remove.",
        }
        families = []
        for key, text in words.items():
            family = MetricFamily(f"nfcore_{key}_total", MetricKind.COUNTER, text, "flows")
            family.add(self.counts[key])
            families.append(family)
        return families

    def _rule_gauge(self) -> MetricFamily:
        family = MetricFamily("nfcore_rules", MetricKind.GAUGE, "Installed rules.", "rules")
        installed = self.table.slots_in(FlowState.INSTALLED)
        rows = self.table.rows[installed]
        for ifindex, port in self._ports.items():
            for number, backend in enumerate(port.backends.device.backends):
                held = (rows["flow"]["ifindex"] == ifindex) & (rows["backend"] == number)
                family.add(int(np.count_nonzero(held)), interface=port.backends.device.name, backend=backend)
        return family

    def _hook_errors(self) -> MetricFamily:
        family = MetricFamily("nfcore_hook_errors_total", MetricKind.COUNTER, "Hooks that raised.", "calls")
        for (plugin, hook), number in sorted(self.host.errors.items()):
            family.add(number, plugin=plugin, hook=hook)
        return family

    def _count_reasons(self, reasons: NDArray[np.uint8]) -> None:
        for reason, number in zip(*np.unique(reasons, return_counts=True), strict=True):
            self.not_offloaded[int(reason)] += int(number)

    def _say_once(self, words: str) -> None:
        """Log a fault the first time: a million flows must not make a million lines."""
        if words not in self._said and len(self._said) < 1000:
            self._said.add(words)
            log.warning("%s", words)


def _first_of_each(identities: list[bytes]) -> NDArray[np.bool_]:
    """Mark the first appearance of each identity."""
    seen: set[bytes] = set()
    first = np.ones(len(identities), dtype=bool)
    for number, identity in enumerate(identities):
        if identity in seen:
            first[number] = False
        seen.add(identity)
    return first
