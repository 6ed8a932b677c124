# SPDX-License-Identifier: Apache-2.0
"""Takes reports of flows: updates known flows, judges new ones, and gives them marks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..api.flows import WHOLE_FLOW, FlowBatch, ReportKind
from ..api.network_function import NetworkFunction
from ..api.reasons import Reason
from .event_kind import EventKind
from .flow_index import last_appearances
from .flow_state import WITHOUT_RULE, FlowState, Order
from .removal import Remover
from .state import ACTIVE, EngineState

SHORTEST_INTERVAL = 1e-3
"""Shortest time in seconds between two reports for the computation of a rate: reports are read in batches."""
RULE_EFFECT_DELAY = 1.0
"""Seconds after the installation of a rule from which on a report of its flow means that the rule does not work."""


class Intake:
    """Turns reports into flows that wait for a rule, or that get none for a reason."""

    def __init__(self, state: EngineState, remover: Remover) -> None:
        self._state = state
        self._remover = remover
        self._next_expiry = 0.0

    def take(self, nf: NetworkFunction, batch: FlowBatch) -> None:
        """Take one batch of reports."""
        now = self._state.clock()
        final = FlowBatch.empty()
        if (changed := batch.rows["kind"] != ReportKind.SHOWN).any():
            final = batch[changed & last_appearances(batch)]
            self._count_known(batch[changed])
            self._end_connections(batch[changed])
            batch = batch[~changed]
        # A connection may have taken over the addresses of another meanwhile: the last report tells its target.
        latest = last_appearances(batch)
        if not latest.all():
            self._count_known(batch[~latest])
            batch = batch[latest]
        slots, batch = self._update_known(nf, batch, now)
        slots, batch = self.enter(slots, batch, now)
        self.admit(nf, slots, batch, now)
        if len(final):  # short connections: shown and closed within one batch, without a new one behind them
            self._end_connections(final)

    def admit(self, nf: NetworkFunction, slots: NDArray[np.int64], batch: FlowBatch, now: float) -> None:
        """Judge tracked flows without a rule: those that may have one get marks and wait for it."""
        reasons = self._judge(nf, batch)
        refused = reasons != 0
        self._state.marks.release_unused(batch.rows["mark"][refused])
        self._remover.refuse(slots[refused], reasons[refused])
        slots, batch = slots[~refused], batch[~refused]
        if len(batch):
            self._mark(nf, slots, batch, now)

    def _update_known(self, nf: NetworkFunction, batch: FlowBatch, now: float) -> tuple[NDArray[np.int64], FlowBatch]:
        """Update the known flows. Returns those that may get a rule now: new ones, slot -1, and those without one."""
        table = self._state.table
        slots = table.find(batch)
        known = slots >= 0
        candidates = ~known
        if known.any():
            batch.rows["rate"][known] = self._rates(slots[known], batch[known], now)
            candidates[known] = np.isin(table.state[slots[known]], WITHOUT_RULE)
            self._update_tracked(nf, slots[~candidates], batch[~candidates], now)
        return slots[candidates], batch[candidates]

    def _rates(self, slots: NDArray[np.int64], batch: FlowBatch, now: float) -> NDArray[np.float32]:
        """Packets a second of each flow since its report before this one."""
        table = self._state.table
        packets = batch.rows["packets"].astype(np.float64)
        before = table.flow["packets"][slots].astype(np.float64)
        # Fewer than before: the datapath has started its count again.
        shown = np.where(packets > before, packets - before, packets)
        return (shown / np.maximum(now - table.seen[slots], SHORTEST_INTERVAL)).astype(np.float32)

    def _count_known(self, batch: FlowBatch) -> None:
        """Count reports that lead to no new rule, and return the marks that XDP took for them."""
        self._state.marks.release_unused(batch.rows["mark"])
        self._state.counters.totals["events_known"] += len(batch)

    def _update_tracked(self, nf: NetworkFunction, slots: NDArray[np.int64], batch: FlowBatch, now: float) -> None:
        """Update flows that have a rule or wait for one."""
        table = self._state.table
        self._count_known(batch)
        states = table.state[slots]
        table.flow["cpu"][slots] = batch.rows["cpu"]
        waiting = states == FlowState.WAITING
        table.rate[slots[waiting]] = batch.rows["rate"][waiting]
        table.seen[slots[waiting]] = now
        table.flow["packets"][slots[waiting]] = batch.rows["packets"][waiting]
        # A rule that is there keeps the tags of its flow's first report: with others it ends when it is idle.
        table.flow["vlans"][slots[waiting]] = batch.rows["vlans"][waiting]
        differ = table.flow["target"][slots] != batch.rows["target"]
        self._settle(nf, slots[differ], batch.rows["target"][differ])
        # A rule that works keeps its flow from being reported.
        useless = (states == FlowState.INSTALLED) & (table.since[slots] < now - RULE_EFFECT_DELAY)
        for device, _ in self._state.by_device(slots[useless]):
            device.poll_soon(now, RULE_EFFECT_DELAY)

    def _settle(self, nf: NetworkFunction, slots: NDArray[np.int64], reported: NDArray[np.uint64]) -> None:
        """Settle where flows go whose rules say one target, and the slow path another."""
        if not len(slots):
            return
        flows = self._state.table.batch(slots)
        moved = nf.have_moved(flows, reported)
        self._remover.end_rules(slots[moved], Reason.MOVED)
        self._remover.restore(flows[~moved])

    def _end_connections(self, batch: FlowBatch) -> None:
        """End the rules of connections that are closed or whose 5-tuple a new connection uses for another target."""
        table, rows = self._state.table, batch.rows
        slots = table.find(batch)
        active = slots >= 0
        active[active] = np.isin(table.state[slots[active]], ACTIVE)
        closed = rows["kind"] == ReportKind.ENDED
        moved = active & (rows["kind"] == ReportKind.MOVED)
        moved[moved] = table.flow["target"][slots[moved]] != rows["target"][moved]
        self._remover.end_rules(np.unique(slots[closed & active]), Reason.ENDED)
        self._remover.end_rules(np.unique(slots[moved]), Reason.MOVED)

    def enter(self, slots: NDArray[np.int64], batch: FlowBatch, now: float) -> tuple[NDArray[np.int64], FlowBatch]:
        """Track the new flows of a batch, slot -1, and renew the rows of those without a rule.

        Returns all flows that are tracked: those without a place are left out.
        """
        table = self._state.table
        fresh = np.flatnonzero(slots < 0)
        known = slots[slots >= 0]
        self._make_room(len(fresh), known)
        if (beyond := fresh[max(table.room, 0) :]).size:
            self._state.counters.refuse(np.full(len(beyond), Reason.TABLE_FULL, dtype=np.uint8))
            self._state.events.record(EventKind.REFUSED, batch[beyond].rows, reason=Reason.TABLE_FULL)
            self._state.marks.release_unused(batch.rows["mark"][beyond])
            kept = np.ones(len(batch), dtype=bool)
            kept[beyond] = False
            slots, batch, fresh = slots[kept], batch[kept], np.flatnonzero(slots[kept] < 0)
        table.flow.view(WHOLE_FLOW)[known] = batch.rows.view(WHOLE_FLOW)[slots >= 0]
        table.rate[known] = batch.rows["rate"][slots >= 0]
        table.seen[known] = now
        # So that the cookies of its next rules differ from those of its last.
        table.generation[known] += np.uint16(1)
        slots[fresh] = table.insert(batch[fresh], FlowState.REFUSED, now)
        return slots, batch

    def _make_room(self, wanted: int, keep: NDArray[np.int64]) -> None:
        """Forget flows without a rule: ended ones, then those not reported for longest. keep: slots that stay."""
        table = self._state.table
        if table.room >= wanted:
            return
        without = np.setdiff1d(table.slots_in(*WITHOUT_RULE), keep)
        without = without[table.order[without] == Order.NONE]
        # More than needed, so that not every batch has to search for them.
        count = min(len(without), max(wanted - table.room, self._state.offload.remembered // 8))
        if count:
            age = np.where(table.state[without] == FlowState.ENDED, -np.inf, table.seen[without])
            table.remove(without[np.argpartition(age, count - 1)[:count]])

    def _judge(self, nf: NetworkFunction, batch: FlowBatch) -> NDArray[np.uint8]:
        """Give the reason why each flow gets no rule, 0 if it may get one. Every policy sees every flow."""
        state = self._state
        reasons = np.zeros(len(batch), dtype=np.uint8)
        if not len(batch):
            return reasons
        for ifindex in np.unique(batch.rows["ifindex"]).tolist():
            here, device = batch.rows["ifindex"] == ifindex, state.devices.get(ifindex)
            if device is None or not device.accelerated:
                reasons[here] = Reason.NO_BACKEND
            else:
                reasons[here & device.unsupported(batch)] = Reason.UNSUPPORTED
                for earlier in state.context.earlier_functions(nf, ifindex):
                    reasons[np.flatnonzero(here)[state.claimed(earlier, batch[here])]] = Reason.EARLIER
        if not state.switched_on:
            reasons[reasons == 0] = Reason.SWITCHED_OFF
        for plugin in state.plugins.implementing("on_new_flow"):
            done, result = state.plugins.try_call(plugin, "on_new_flow", batch=batch)
            if done and result is None:
                continue
            if not done:
                # The policy might have refused any of the flows, and the slow path is right for all of them.
                result = np.full(len(batch), Reason.HOOK_FAILED, dtype=np.uint8)
            reasons = np.where(reasons == 0, result, reasons).astype(np.uint8)
        return reasons

    def _mark(self, nf: NetworkFunction, slots: NDArray[np.int64], batch: FlowBatch, now: float) -> None:
        """Allocate and publish marks for flows, and let these wait for their rules."""
        state = self._state
        table = state.table
        drops = table.drops[slots]
        self._wait(slots[drops], 0, now)
        slots, batch = slots[~drops], batch[~drops]
        marks = state.marks.allocate(batch)
        if not (given := marks != 0).all():
            self._remover.refuse(slots[~given], Reason.NO_MARK)
            slots, batch, marks = slots[given], batch[given], marks[given]
        if not len(batch):
            return
        published, reason = state.marks.publish(nf, batch, marks)
        if not published.all():
            self._remover.refuse(slots[~published], reason)
            slots, marks = slots[published], marks[published]
        self._wait(slots, marks, now)

    def _wait(self, slots: NDArray[np.int64], marks: NDArray[np.uint32] | int, now: float) -> None:
        table = self._state.table
        table.mark[slots], table.attempts[slots] = marks, 0
        table.reason[slots], table.due[slots] = Reason.ADMIT, 0.0
        table.move(slots, FlowState.WAITING, now)

    def shed(self) -> None:
        """Refuse the coldest waiting flows when more wait than `most_waiting`."""
        state, table = self._state, self._state.table
        if table.count(FlowState.WAITING) <= state.most_waiting:
            return
        waiting = table.slots_in(FlowState.WAITING)
        # Not those whose rules vanished: they deserved a rule, and there are at most `max_rules` of them.
        waiting = waiting[(table.reason[waiting] != Reason.VANISHED) & ~state.ordered(waiting)]
        surplus = len(waiting) - state.most_waiting
        if surplus <= 0:
            return
        self._remover.refuse(state.hottest_first(waiting)[-surplus:], Reason.SHED)

    def expire(self) -> None:
        """Refuse waiting flows that were not reported for `idle_timeout`."""
        state, table, now = self._state, self._state.table, self._state.clock()
        if now < self._next_expiry or not table.count(FlowState.WAITING):
            return
        self._next_expiry = now + state.offload.idle_timeout / 16
        waiting = table.slots_in(FlowState.WAITING)
        is_silent = now - table.seen[waiting] >= state.offload.idle_timeout
        silent = waiting[is_silent & ~state.ordered(waiting)]
        # Others may have pushed them out of the slow path's tables since their rules vanished.
        self._remover.restore(table.batch(silent[table.reason[silent] == Reason.VANISHED]))
        self._remover.refuse(silent, Reason.SHED)
