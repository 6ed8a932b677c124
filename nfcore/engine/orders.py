# SPDX-License-Identifier: Apache-2.0
"""Flows that an application orders by way of a network function: they get rules before reported flows, and keep them.

ordered ──► judged, marked (intake) ──► WAITING ──► … ──► INSTALLED          no idle timeout
▲                │ refused: no mark, switched off, …
└── tried again ◄┘ when the reason may have passed
withdrawn ──► rule removed, mark retired (removal) ──► forgotten
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FLOW_ROW, IDENTITY_BYTES, FlowBatch, ReportKind
from ..api.marks import MarkState
from ..api.network_function import NetworkFunction
from ..api.reasons import Reason
from .flow_state import WITHOUT_RULE, FlowState, Order
from .intake import Intake
from .removal import Remover
from .state import EngineState

RETRY = 1.0
"""Seconds between two searches for refused orders that may be tried again."""
PATIENCE = 30.0
"""Seconds after which a refused order is tried again, when nothing shows whether its reason has passed."""


class Orders:
    """Takes the orders of an application, and keeps trying while they stand."""

    def __init__(self, state: EngineState, remover: Remover, intake: Intake) -> None:
        self._state = state
        self._remover = remover
        self._intake = intake
        self._later: dict[bytes, bytes] = {}
        """Orders of flows whose rule of an earlier order is still being removed: identity → row, as bytes."""
        self._next_retry = 0.0

    def take(self, nf: NetworkFunction, batch: FlowBatch) -> None:
        """Take one batch: withdrawn orders first, then new ones, then targets that are gone."""
        kinds = batch.rows["kind"]
        self._withdraw(batch[kinds == ReportKind.WITHDRAWN])
        self._order(nf, batch[(kinds == ReportKind.ORDERED) | (kinds == ReportKind.ORDERED_DROP)])
        gone = batch.rows["target"][kinds == ReportKind.TARGET_GONE]
        if len(gone):
            self._remover.end_targets(nf, np.unique(gone))

    def run(self) -> None:
        """Take the orders that had to wait for a removal, and try refused ones again."""
        if self._later:
            self._take_later()
        now = self._state.clock()
        if now >= self._next_retry:
            self._next_retry = now + RETRY
            self._retry(now)

    def retry_soon(self) -> None:
        """Try all refused orders again at the next run: what refused them may have changed."""
        table = self._state.table
        refused = table.slots_in(FlowState.REFUSED)
        table.due[refused] = 0.0
        self._next_retry = 0.0

    def _withdraw(self, batch: FlowBatch) -> None:
        table = self._state.table
        if self._later:
            for row in _as_bytes(batch):
                self._later.pop(row[:IDENTITY_BYTES], None)
        slots = table.find(batch)
        slots = slots[slots >= 0]
        table.order[slots] = Order.WITHDRAWN
        without_rule = np.isin(table.state[slots], WITHOUT_RULE)
        table.remove(slots[without_rule])
        self._remover.end_rules(slots[~without_rule], Reason.WITHDRAWN)

    def _order(self, nf: NetworkFunction, batch: FlowBatch) -> None:
        if not len(batch):
            return
        table, now = self._state.table, self._state.clock()
        slots = table.find(batch)
        held = slots >= 0
        held[held] = ~np.isin(table.state[slots[held]], WITHOUT_RULE)
        # Flows with a rule: the same order is no news, and another one waits until the rule is gone.
        known, again = slots[held], batch[held]
        other = table.flow["target"][known] != again.rows["target"]
        other |= table.drops[known] != (again.rows["kind"] == ReportKind.ORDERED_DROP)
        other |= table.order[known] != Order.STANDS
        if other.any():
            self._withdraw(again[other])
            self._later |= {row[:IDENTITY_BYTES]: row for row in _as_bytes(again[other])}
        slots, batch = self._intake.enter(slots[~held], batch[~held], now)
        table.order[slots] = Order.STANDS
        table.drops[slots] = batch.rows["kind"] == ReportKind.ORDERED_DROP
        self._intake.admit(nf, slots, batch, now)

    def _take_later(self) -> None:
        batch = FlowBatch(np.frombuffer(bytearray().join(self._later.values()), dtype=FLOW_ROW))
        batch = batch[self._state.table.find(batch) < 0]
        for row in _as_bytes(batch):
            del self._later[row[:IDENTITY_BYTES]]
        self._by_function(batch, self._order)

    def _by_function(self, batch: FlowBatch, job: Callable[[NetworkFunction, FlowBatch], None]) -> None:
        for nf in self._state.context.nfs:
            mine = batch.rows["nf"] == nf.number
            if mine.any():
                job(nf, batch[mine])

    def _retry(self, now: float) -> None:
        """Judge refused orders again whose reason may have passed."""
        table = self._state.table
        refused = table.slots_in(FlowState.REFUSED)
        refused = refused[self._state.ordered(refused) & (table.due[refused] <= now)]
        refused = refused[self._may_pass(refused)]
        table.due[refused] = now + PATIENCE
        table.generation[refused] += np.uint16(1)

        def admit(nf: NetworkFunction, batch: FlowBatch) -> None:
            self._intake.admit(nf, table.find(batch), batch, now)

        self._by_function(table.batch(refused), admit)

    def _may_pass(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which refused orders may succeed now, as far as that is known without trying."""
        state, table = self._state, self._state.table
        batch, reasons = table.batch(slots), table.reason[slots]
        hopeful = np.full(len(slots), state.switched_on)
        for ifindex in np.unique(batch.rows["ifindex"]).tolist():
            here, device = batch.rows["ifindex"] == ifindex, state.devices.get(ifindex)
            if device is None or not device.accelerated:
                hopeful[here] = False
                continue
            hopeful[here] &= ~device.unsupported(batch[here])
            self._still_claimed(hopeful, np.flatnonzero(here), batch, ifindex)
        free = state.context.marks.count(MarkState.FREE) + state.context.marks.count(MarkState.QUARANTINED)
        without_mark = np.flatnonzero(hopeful & (reasons == Reason.NO_MARK))
        hopeful[without_mark[free:]] = False
        return hopeful

    def _still_claimed(
        self, hopeful: NDArray[np.bool_], rows: NDArray[np.int64], batch: FlowBatch, ifindex: int
    ) -> None:
        """Take hope from the rows that an earlier function of the device's chain must see."""
        for nf in self._state.context.nfs:
            of_nf = rows[batch.rows["nf"][rows] == nf.number]
            for earlier in self._state.context.earlier_functions(nf, ifindex):
                hopeful[of_nf[self._state.claimed(earlier, batch[of_nf])]] = False


def _as_bytes(batch: FlowBatch) -> list[bytes]:
    raw = batch.rows.tobytes()
    return [raw[begin : begin + FLOW_ROW.itemsize] for begin in range(0, len(raw), FLOW_ROW.itemsize)]
