# SPDX-License-Identifier: Apache-2.0
"""From the report of a flow to one that waits for its rule: known or new, judged, marked, published."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..api.flows import WHOLE_FLOW, FlowBatch, ReportKind
from ..api.network_function import NetworkFunction
from ..api.reasons import Reason
from .event_kind import EventKind
from .flow_index import first_appearances
from .flow_state import FlowState
from .removal import Remover
from .state import ACTIVE, EngineState

SHORTEST_INTERVAL = 1e-3
"""Seconds between two reports that a rate is computed from, at least: they are read in batches."""
SUSPICIOUS = 1.0
"""Seconds after which a flow with a rule is no longer reported, unless its rule does nothing."""


class Intake:
    """Takes reports."""

    def __init__(self, state: EngineState, remover: Remover) -> None:
        self._state = state
        self._remover = remover
        self._next_expiry = 0.0

    def take(self, nf: NetworkFunction, batch: FlowBatch) -> None:
        """Take one batch of reports."""
        state, table, now = self._state, self._state.table, self._state.clock()
        if (edges := batch.rows["kind"] != ReportKind.SHOWN).any():
            self._edges(batch[edges])
            batch = batch[~edges]
        first = first_appearances(batch)
        if not first.all():
            self._known(batch[~first])
            batch = batch[first]
        slots = table.find(batch)
        there = slots >= 0
        again = np.zeros(len(batch), dtype=bool)
        if there.any():
            batch.rows["rate"][there] = self._rates(slots[there], batch[there], now)
            again[there] = table.state[slots[there]] == FlowState.REFUSED
            tracked = there & ~again
            self._tracked(slots[tracked], batch[tracked], now)
        candidates = ~there | again
        slots, batch = self._enter(slots[candidates], batch[candidates], now)
        reasons = self._judge(batch)
        state.marks.give_back(batch.rows["mark"][reasons != 0])
        self._remover.refuse(slots[reasons != 0], reasons[reasons != 0])
        slots, batch = slots[reasons == 0], batch[reasons == 0]
        if len(batch):
            self._mark(nf, slots, batch, now)

    def _rates(self, slots: NDArray[np.int64], batch: FlowBatch, now: float) -> NDArray[np.float32]:
        """Packets a second since the reports before these."""
        table = self._state.table
        packets = batch.rows["packets"].astype(np.float64)
        before = table.flow["packets"][slots].astype(np.float64)
        # Fewer than before: the datapath has begun to count anew.
        shown = np.where(packets > before, packets - before, packets)
        return (shown / np.maximum(now - table.seen[slots], SHORTEST_INTERVAL)).astype(np.float32)

    def _known(self, batch: FlowBatch) -> None:
        self._state.marks.give_back(batch.rows["mark"])
        self._state.counters.totals["events_known"] += len(batch)

    def _tracked(self, slots: NDArray[np.int64], batch: FlowBatch, now: float) -> None:
        """Flows that have a rule or wait for one, and were reported nevertheless."""
        table = self._state.table
        self._known(batch)
        states = table.state[slots]
        table.flow["cpu"][slots] = batch.rows["cpu"]
        waiting = states == FlowState.WAITING
        table.rate[slots[waiting]] = batch.rows["rate"][waiting]
        table.seen[slots[waiting]] = now
        table.flow["packets"][slots[waiting]] = batch.rows["packets"][waiting]
        elsewhere = table.flow["target"][slots] != batch.rows["target"]
        self._remover.end_rules(slots[elsewhere], Reason.MOVED)
        # A rule that works keeps its flow from being reported.
        useless = (states == FlowState.INSTALLED) & (table.since[slots] < now - SUSPICIOUS)
        for device, _ in self._state.by_device(slots[useless]):
            device.look_soon(now, SUSPICIOUS)

    def _edges(self, batch: FlowBatch) -> None:
        """End the rules of connections that end, and of those whose addresses a new one uses for another target."""
        table = self._state.table
        self._known(batch)
        slots = table.find(batch)
        slots, batch = slots[slots >= 0], batch[slots >= 0]
        ended = np.unique(slots[batch.rows["kind"] == ReportKind.ENDED])
        self._remover.end_rules(ended[np.isin(table.state[ended], ACTIVE)], Reason.ENDED)
        moved = batch.rows["kind"] == ReportKind.MOVED
        moved &= table.flow["target"][slots] != batch.rows["target"]
        moved_slots = np.unique(slots[moved])
        self._remover.end_rules(moved_slots[np.isin(table.state[moved_slots], ACTIVE)], Reason.MOVED)

    def _enter(self, slots: NDArray[np.int64], batch: FlowBatch, now: float) -> tuple[NDArray[np.int64], FlowBatch]:
        """Track those that are new; those for which there is no place are left out."""
        table = self._state.table
        fresh = np.flatnonzero(slots < 0)
        known = slots[slots >= 0]
        self._make_room(len(fresh), known)
        if (beyond := fresh[max(table.room, 0) :]).size:
            self._state.counters.refuse(np.full(len(beyond), Reason.TABLE_FULL, dtype=np.uint8))
            self._state.events.record(EventKind.REFUSED, batch[beyond].rows, reason=Reason.TABLE_FULL)
            self._state.marks.give_back(batch.rows["mark"][beyond])
            kept = np.ones(len(batch), dtype=bool)
            kept[beyond] = False
            slots, batch, fresh = slots[kept], batch[kept], np.flatnonzero(slots[kept] < 0)
        table.flow.view(WHOLE_FLOW)[known] = batch.rows.view(WHOLE_FLOW)[slots >= 0]
        table.rate[known] = batch.rows["rate"][slots >= 0]
        table.seen[known] = now
        # Another life, whose rules must not be taken for those of the last.
        table.generation[known] += np.uint16(1)
        slots[fresh] = table.insert(batch[fresh], FlowState.REFUSED, now)
        return slots, batch

    def _make_room(self, wanted: int, keep: NDArray[np.int64]) -> None:
        """Forget flows without a rule that were not heard of for longest."""
        table = self._state.table
        if table.room >= wanted:
            return
        refused = np.setdiff1d(table.slots_in(FlowState.REFUSED), keep)
        # Some more than needed, so that not every batch has to look for them.
        goners = min(len(refused), max(wanted - table.room, self._state.offload.remembered // 8))
        if goners:
            oldest = np.argpartition(table.seen[refused], goners - 1)[:goners]
            table.remove(refused[oldest])

    def _judge(self, batch: FlowBatch) -> NDArray[np.uint8]:
        """A reason per flow, 0 where nothing speaks against a rule. Every policy sees every flow."""
        state = self._state
        reasons = np.zeros(len(batch), dtype=np.uint8)
        if not len(batch):
            return reasons
        for ifindex in np.unique(batch.rows["ifindex"]).tolist():
            mine, device = batch.rows["ifindex"] == ifindex, state.devices.get(ifindex)
            if device is None or not device.accelerated:
                reasons[mine] = Reason.NO_BACKEND
            else:
                reasons[mine & device.unsupported(batch)] = Reason.UNSUPPORTED
        if not state.switched_on:
            reasons[reasons == 0] = Reason.SWITCHED_OFF
        for plugin in state.plugins.implementing("on_new_flow"):
            done, answer = state.plugins.try_call(plugin, "on_new_flow", batch=batch)
            if done and answer is None:
                continue
            if not done:
                # What a broken policy would have said is not known, and the slow path is always right.
                answer = np.full(len(batch), Reason.HOOK_FAILED, dtype=np.uint8)
            reasons = np.where(reasons == 0, answer, reasons).astype(np.uint8)
        return reasons

    def _mark(self, nf: NetworkFunction, slots: NDArray[np.int64], batch: FlowBatch, now: float) -> None:
        """Give flows their marks, have them published, and let them wait for their rules."""
        state = self._state
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
        table = state.table
        table.mark[slots], table.attempts[slots] = marks, 0
        table.reason[slots], table.due[slots] = Reason.ADMIT, 0.0
        table.move(slots, FlowState.WAITING, now)

    def shed(self) -> None:
        """Let the coldest go when more flows wait than may."""
        state, table = self._state, self._state.table
        if table.count(FlowState.WAITING) <= state.most_waiting:
            return
        waiting = table.slots_in(FlowState.WAITING)
        # Those that had a rule have shown what they are worth, and are no more than there are rules.
        waiting = waiting[table.reason[waiting] != Reason.VANISHED]
        surplus = len(waiting) - state.most_waiting
        if surplus <= 0:
            return
        self._remover.refuse(state.by_heat(waiting)[-surplus:], Reason.SHED)

    def expire(self) -> None:
        """Let waiting flows go that have not been heard of for as long as an idle rule may live."""
        state, table, now = self._state, self._state.table, self._state.clock()
        if now < self._next_expiry or not table.count(FlowState.WAITING):
            return
        self._next_expiry = now + state.offload.idle_timeout / 16
        waiting = table.slots_in(FlowState.WAITING)
        self._remover.refuse(waiting[now - table.seen[waiting] >= state.offload.idle_timeout], Reason.SHED)
