# SPDX-License-Identifier: Apache-2.0
"""Ends flows: refuses those without a rule, removes the rules of the others, and then retires the marks.

restore_flows ─► rule removed ─► grace period ─► entry of the mark retired ─► mark in quarantine
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FlowBatch
from ..api.network_function import NetworkFunction
from ..api.reasons import Reason
from ..devices.backends import Removal
from ..devices.device_state import DeviceState
from .event_kind import EventKind
from .flow_state import FlowState, Order
from .state import ACTIVE, OCCUPYING, EngineState

FORCED_ENDS = (
    Reason.TARGET_GONE,
    Reason.MOVED,
    Reason.SWITCHED_OFF,
    Reason.WITHDRAWN,
    Reason.EARLIER,
    Reason.FORGOTTEN,
)
"""Reasons for which a removal is retried until the rule is gone. A PENDING rule is removed once it is installed."""
NO_RESTORE = (Reason.TARGET_GONE, Reason.MOVED, Reason.WITHDRAWN, Reason.FORGOTTEN)
"""Reasons for which the slow path must choose the flow's target again."""


class Ended(NamedTuple):
    """How many flows have ended because their target is gone."""

    accelerated: int
    """Flows that had a rule, or whose rule was being installed."""
    waiting: int
    """Flows that waited for a rule."""


class Remover:
    """Ends flows, and retires their marks when no rule sets them any more and the grace period is over."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._graces: deque[tuple[float, NDArray[np.int64]]] = deque()
        """End of a grace period, and the flows whose rules are gone, by slot."""
        self._mark_graces: deque[tuple[float, dict[int, NDArray[np.uint32]]]] = deque()
        """End of a grace period, and marks of gone targets, by number of the NF."""

    def run(self) -> None:
        """Retire the marks whose grace period has passed."""
        now = self._state.clock()
        while self._graces and self._graces[0][0] <= now:
            slots = self._graces.popleft()[1]
            self._retire(slots, self._state.table.reason[slots])
        while self._mark_graces and self._mark_graces[0][0] <= now:
            self._state.marks.retire_targets(self._mark_graces.popleft()[1])
        if not self._mark_graces and self._state.marks.ending:
            self._begin_mark_graces(now)

    def _begin_mark_graces(self, now: float) -> None:
        table = self._state.table
        unused = self._state.marks.unused(table.mark[table.slots_in(*ACTIVE)])
        if unused:
            self._mark_graces.append((now + self._state.offload.grace, unused))

    # Without a rule

    def refuse(self, slots: NDArray[np.int64], reason: Reason | NDArray[np.uint8]) -> None:
        """Note that flows get no rule, count them, and retire their marks."""
        self._state.counters.refuse(np.full(len(slots), reason, dtype=np.uint8))
        self._state.events.record(EventKind.REFUSED, self._state.flow_bytes(slots), reason=reason)
        self._retire(slots, reason)

    def _retire(self, slots: NDArray[np.int64], reason: Reason | NDArray[np.uint8]) -> None:
        """Retire the marks of flows without a rule, and remember the flows with the reason.

        Flows whose order is withdrawn are forgotten.
        """
        if not len(slots):
            return
        state, table = self._state, self._state.table
        marked = slots[table.mark[slots] != 0]
        numbers = table.flow["nf"][marked]
        for number in np.unique(numbers).tolist():
            state.marks.retire(number, table.mark[marked[numbers == number]])
        self._let_go(marked)
        table.mark[slots] = 0
        table.attempts[slots] = 0
        table.reason[slots] = reason
        withdrawn = table.order[slots] == Order.WITHDRAWN
        table.remove(slots[withdrawn])
        # An order stands also without packets.
        ended = (table.reason[slots] == Reason.ENDED) & (table.order[slots] == Order.NONE)
        table.move(slots[ended], FlowState.ENDED, state.clock())
        table.move(slots[~ended & ~withdrawn], FlowState.REFUSED, state.clock())

    def _let_go(self, slots: NDArray[np.int64]) -> None:
        """Let the network functions forget what they keep for flows with rules, unless another device has one."""
        flows = self._state.table.batch(slots)
        flows = flows[~self._held_elsewhere(flows, slots)]
        for nf in self._state.context.nfs:
            mine = flows.rows["nf"] == nf.number
            if mine.any():
                nf.let_go(flows[mine])

    def _held_elsewhere(self, flows: FlowBatch, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which flows also arrive on another device, and have a rule there or wait for one. slots: those that end."""
        table, held = self._state.table, np.zeros(len(flows), dtype=bool)
        for ifindex in self._state.devices if len(self._state.devices) > 1 else ():
            there = FlowBatch(flows.rows.copy())
            there.rows["ifindex"] = ifindex
            twins = table.find(there)
            held |= (twins >= 0) & np.isin(table.state[twins], ACTIVE) & ~np.isin(twins, slots)
        return held

    def note_moved(self, slots: NDArray[np.int64]) -> None:
        """Note that flows whose rules have vanished must end where a new connection has their addresses."""
        flows = self._state.table.batch(slots)
        for nf in self._state.context.nfs:
            mine = np.flatnonzero(flows.rows["nf"] == nf.number)
            if len(mine):
                self._force(slots[mine[nf.have_moved(flows[mine])]], Reason.MOVED)

    def restore(self, flows: FlowBatch) -> NDArray[np.bool_]:
        """Make the slow path send flows to the targets of their marks. Returns whether it does, per row."""
        restored = np.ones(len(flows), dtype=bool)
        for nf in self._state.context.nfs:
            mine = flows.rows["nf"] == nf.number
            if mine.any():
                restored[mine], _ = self._state.plugins.try_call(nf.name, "restore_flows", batch=flows[mine])
        return restored

    # With a rule

    def end_rules(self, slots: NDArray[np.int64], reason: Reason) -> None:
        """End flows that have a rule, wait for one or are about to get one."""
        state, table = self._state, self._state.table
        if not len(slots):
            return
        if reason in (Reason.MOVED, Reason.FORGOTTEN):
            self._let_go(slots)
        states = table.state[slots]
        self.refuse(slots[states == FlowState.WAITING], reason)
        # The worker has these rules. After an installation the rule is removed; a removal that fails is retried.
        under_way = np.isin(states, (FlowState.PENDING, FlowState.DRAINING))
        self._force(slots[under_way], reason)
        installed = slots[states == FlowState.INSTALLED]
        self._force(installed, reason)
        restorable = ~np.isin(table.reason[installed], NO_RESTORE) & (reason not in NO_RESTORE)
        # A flow that cannot be restored now would lose its target: it keeps its rule.
        ready = ~restorable
        ready[restorable] = self.restore(table.batch(installed[restorable]))
        installed = installed[ready]
        if reason not in FORCED_ENDS:
            table.reason[installed] = reason
        table.move(installed, FlowState.DRAINING, state.clock())
        for device, mine in state.by_device(installed):
            self._remove(device, mine)

    def _force(self, slots: NDArray[np.int64], reason: Reason) -> None:
        """Note a forced end as the flows' reason. A reason of NO_RESTORE stays: such a flow must never be restored."""
        if reason in FORCED_ENDS:
            reasons = self._state.table.reason
            reasons[slots[~np.isin(reasons[slots], NO_RESTORE)]] = reason

    def _remove(self, device: DeviceState, slots: NDArray[np.int64]) -> None:
        """Let the worker remove the rules of DRAINING flows."""
        state, table = self._state, self._state.table
        rules, backend = state.rules(slots), table.backend[slots].copy()

        def done(result: Removal | Exception) -> None:
            now = state.clock()
            gone = np.zeros(len(slots), dtype=bool)
            if not isinstance(result, Exception):
                gone = result.gone
                # A NIC that reads its counters only now and then may report less than an earlier dump has shown.
                state.count(device, slots[gone], np.maximum(table.counts(slots[gone]), result.counted[gone]))
                state.end_counters(device, slots[gone])
            device.freed(int(np.count_nonzero(gone)))
            self.begin_grace(slots[gone], now)
            left = slots[~gone]
            state.counters.totals["remove_failed"] += len(left)
            text = state.events.text_number("its rule could not be removed") if len(left) else 0
            state.events.record(
                EventKind.FAILED, state.flow_bytes(left), reason=table.reason[left], backend=backend[~gone], text=text
            )
            self._keep(left, now)

        if not device.worker.submit(lambda: device.backends.remove(rules, backend), done):
            self._keep(slots, state.clock())

    def begin_grace(self, slots: NDArray[np.int64], now: float) -> None:
        """Start the grace period of flows whose rules are gone from the NIC."""
        if len(slots):
            table = self._state.table
            self._state.counters.end(table.reason[slots])
            self._state.events.ended(
                self._state.flow_bytes(slots),
                table.reason[slots],
                mark=table.mark[slots],
                backend=table.backend[slots],
                # Of all rules that the flow had: `end_counters` has added the last one's.
                packets=table.past_packets[slots],
                bytes_=table.past_bytes[slots],
            )
            self._graces.append((now + self._state.offload.grace, slots))

    def _keep(self, slots: NDArray[np.int64], now: float) -> None:
        """Track flows as INSTALLED again whose rules are still on the NIC: the next poll of the counters finds them."""
        table = self._state.table
        table.move(slots, FlowState.INSTALLED, now)
        table.reason[slots[~np.isin(table.reason[slots], FORCED_ENDS)]] = Reason.ADMIT

    def end_targets(self, nf: NetworkFunction, targets: NDArray[np.uint64]) -> Ended:
        """End all flows to targets that no longer exist. The NF has made the marks void already."""
        table = self._state.table
        self._state.marks.begin_retire(nf, targets)
        slots = table.slots_in(FlowState.WAITING, *OCCUPYING)
        mine = slots[(table.flow["nf"][slots] == nf.number) & np.isin(table.flow["target"][slots], targets)]
        states = table.state[mine]
        accelerated = int(np.count_nonzero(np.isin(states, (FlowState.INSTALLED, FlowState.PENDING))))
        ended = Ended(accelerated, int(np.count_nonzero(states == FlowState.WAITING)))
        self.end_rules(mine, Reason.TARGET_GONE)
        return ended

    def left_on_nic(self, reason: Reason) -> int:
        """How many rules that were ended for a reason may still be on a NIC."""
        table = self._state.table
        held = table.slots_in(*OCCUPYING)
        held = held[table.reason[held] == reason]
        if not len(held):
            return 0
        return len(np.setdiff1d(held, np.concatenate([slots for _, slots in self._graces] or [held[:0]])))

    def end_forced(self, device: DeviceState) -> None:
        """Retry removals that failed and that are forced."""
        table = self._state.table
        installed = table.slots_in(FlowState.INSTALLED)
        installed = installed[np.isin(table.reason[installed], FORCED_ENDS)]
        installed = installed[table.flow["ifindex"][installed] == device.ifindex]
        for reason in FORCED_ENDS:
            self.end_rules(installed[table.reason[installed] == reason], reason)
