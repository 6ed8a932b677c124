# SPDX-License-Identifier: Apache-2.0
"""What the engine's three stages share: the flow table, the devices, the marks, the books and the clock.

intake ──► dispatch ──► retirement
reports    waiting      installed ─► drained ─► forgotten
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..api.config import OffloadTable
from ..api.context import Context
from ..api.flows import WHOLE_FLOW, FlowBatch
from ..api.reasons import Reason
from ..api.rules import RULE_ROW, Action, RuleBatch, make_cookies
from ..devices.device_state import Port
from ..hooks.manager import PluginHost
from .counters import Ledger
from .event_log import EventKind, EventLog
from .eviction import hottest, waiting_rates
from .flow_table import FlowState, FlowTable
from .mark_lifecycle import MarkDesk

IN_HARDWARE = (FlowState.PENDING, FlowState.INSTALLED, FlowState.DRAINING)
"""States that take a place in the NIC."""
ACTIVE = (*IN_HARDWARE, FlowState.WAITING)
"""States in which a flow has a mark."""
FEW_WAITING = 16
"""Flows that may wait however tight marks are."""


@dataclass
class Floor:
    """The engine's common ground. Everything on it is touched by one thread only."""

    context: Context
    host: PluginHost
    clock: Callable[[], float]
    table: FlowTable
    ledger: Ledger
    marks: MarkDesk
    events: EventLog
    ports: Mapping[int, Port] = field(default_factory=dict)
    """By ifindex."""
    switched_on: bool = True
    """False: no flow gets a rule (`nfcore offload off`)."""

    @property
    def offload(self) -> OffloadTable:
        """The TOML's `[offload]` as it is in effect."""
        return self.context.config.offload

    @property
    def places(self) -> int:
        """How many more rules `max_rules` allows."""
        return self.offload.max_rules - self.table.count(*IN_HARDWARE)

    @property
    def most_waiting(self) -> int:
        """How many flows may wait for a rule. Where each has a mark of its own, some marks must be left for others."""
        if self.marks.of_targets:
            return self.offload.waiting
        return min(self.offload.waiting, max(FEW_WAITING, (self.context.marks.size - self.offload.max_rules) // 4))

    def rules(self, slots: NDArray[np.int64]) -> RuleBatch:
        """Describe the rules of tracked flows."""
        rows = np.zeros(len(slots), dtype=RULE_ROW)
        flows = self.table.batch(slots).rows
        rows["key"], rows["family"] = flows["key"], flows["family"]
        rows["action"], rows["mark"] = Action.SET_MARK, self.table.mark[slots]
        rows["cookie"] = make_cookies(slots, self.table.generation[slots])
        return RuleBatch(rows)

    def opaque(self, slots: NDArray[np.int64]) -> NDArray[np.void]:
        """Give tracked flows as opaque bytes, as the event log takes them: copied at once and not field by field."""
        return self.table.flow.view(WHOLE_FLOW)[slots]

    def by_port(self, slots: NDArray[np.int64]) -> list[tuple[Port, NDArray[np.int64]]]:
        """Sort tracked flows by their device."""
        if len(self.ports) == 1:
            (port,) = self.ports.values()
            return [(port, slots)] if len(slots) else []
        of = self.table.flow["ifindex"][slots]
        return [(self.ports[index], slots[of == index]) for index in np.unique(of).tolist() if index in self.ports]

    def settle(self, slots: NDArray[np.int64], reason: Reason | NDArray[np.uint8]) -> None:
        """End flows that have no rule: what their marks mean and the marks go; the reason is remembered."""
        if not len(slots):
            return
        marked = slots[self.table.mark[slots] != 0]
        numbers = self.table.flow["nf"][marked]
        for number in np.unique(numbers).tolist():
            self.marks.undo(number, self.table.mark[marked[numbers == number]])
        self.table.mark[slots] = 0
        self.table.attempts[slots] = 0
        self.table.reason[slots] = reason
        self.table.move(slots, FlowState.REFUSED, self.clock())

    def refuse(self, slots: NDArray[np.int64], reason: Reason | NDArray[np.uint8]) -> None:
        """Settle flows whose reports lead to no rule, and count them."""
        self.ledger.refuse(np.full(len(slots), reason, dtype=np.uint8))
        self.events.record(EventKind.REFUSED, self.opaque(slots), reason=reason)
        self.settle(slots, reason)

    def heat(self, waiting: NDArray[np.int64]) -> NDArray[np.float64]:
        """Packets a second that each of these waiting flows can be good for."""
        table = self.table
        packets, seen = table.flow["packets"][waiting], table.seen[waiting]
        return waiting_rates(table.rate[waiting], packets, seen, self.offload.min_packets, self.clock())

    def by_heat(self, waiting: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sort waiting flows, the hottest first."""
        return waiting[hottest(self.heat(waiting), self.table.flow["packets"][waiting], len(waiting))]

    def restore(self, flows: FlowBatch) -> NDArray[np.bool_]:
        """Let the slow path know flows as the marks had them; whether it does, per row."""
        known = np.ones(len(flows), dtype=bool)
        for nf in self.context.nfs:
            mine = flows.rows["nf"] == nf.number
            if mine.any():
                known[mine], _ = self.host.attempt(nf.name, "restore_flows", batch=flows[mine])
        return known
