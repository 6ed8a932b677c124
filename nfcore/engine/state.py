# SPDX-License-Identifier: Apache-2.0
"""The data that the engine's stages share: flow table, devices, marks, counters, events and the clock.

    intake ──► dispatch ──► reconcile ──► removal
    reported   waiting      installed     draining, then remembered without a rule

This file holds data and views of it. What moves a flow to its next state is in the file of the stage that does so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..api.config import OffloadTable
from ..api.context import Context
from ..api.flows import WHOLE_FLOW, FlowBatch
from ..api.network_function import NetworkFunction
from ..api.rules import RULE_ROW, Action, RuleBatch, make_cookies
from ..devices.device_state import DeviceState
from ..devices.rule_counters import Counts
from ..hooks.manager import PluginManager
from .counters import EngineCounters
from .event_log import EventLog
from .eviction import hottest, waiting_rates
from .flow_state import FlowState, Order
from .flow_table import FlowTable
from .mark_lifecycle import MarkLifecycle

OCCUPYING = (FlowState.PENDING, FlowState.INSTALLED, FlowState.DRAINING)
"""States that take a place in the NIC's table."""
ACTIVE = (*OCCUPYING, FlowState.WAITING)
"""States in which a flow has a mark."""
FEW_WAITING = 16
"""Flows that may wait even when marks are scarce."""


@dataclass
class EngineState:
    """The engine's data. Only the engine's thread touches it."""

    context: Context
    plugins: PluginManager
    clock: Callable[[], float]
    table: FlowTable
    counters: EngineCounters
    marks: MarkLifecycle
    events: EventLog
    devices: Mapping[int, DeviceState] = field(default_factory=dict)
    """By ifindex."""
    ports: Mapping[int, int] = field(default_factory=dict)
    """ifindex of a port → that of the device whose packets it receives, such as a bond's."""
    switched_on: bool = True
    """False after `nfcore offload off`: no flow gets a rule."""

    @property
    def offload(self) -> OffloadTable:
        """The `[offload]` table of the TOML that is in effect."""
        return self.context.config.offload

    @property
    def places(self) -> int:
        """How many more rules `max_rules` allows; negative after a reload that has lowered it."""
        return self.offload.max_rules - self.table.count(*OCCUPYING)

    @property
    def most_waiting(self) -> int:
        """How many flows may wait for a rule: fewer where each has a mark of its own, so that new flows find marks."""
        if self.marks.of_targets:
            return self.offload.waiting
        return min(self.offload.waiting, max(FEW_WAITING, (self.context.marks.size - self.offload.max_rules) // 4))

    def rules(self, slots: NDArray[np.int64]) -> RuleBatch:
        """Make the rules of tracked flows: each sets the flow's mark, or drops."""
        rows = np.zeros(len(slots), dtype=RULE_ROW)
        flows = self.table.batch(slots).rows
        rows["key"], rows["family"], rows["vlans"] = flows["key"], flows["family"], flows["vlans"]
        rows["action"] = np.where(self.table.drops[slots], Action.DROP, Action.SET_MARK)
        rows["mark"] = self.table.mark[slots]
        rows["cookie"] = make_cookies(slots, self.table.generation[slots], self.table.order[slots] != Order.NONE)
        return RuleBatch(rows)

    def claimed(self, nf: NetworkFunction, batch: FlowBatch) -> NDArray[np.bool_]:
        """Which flows an earlier function of the chain must see."""
        return nf.claims(batch) if len(batch) else np.zeros(0, dtype=bool)

    def name_devices(self, batch: FlowBatch) -> None:
        """Give reports that came by way of a device's port the device's own ifindex."""
        ifindexes = batch.rows["ifindex"]
        for port, device in self.ports.items():
            ifindexes[ifindexes == port] = device

    def flow_bytes(self, slots: NDArray[np.int64]) -> NDArray[np.void]:
        """Copy tracked flows as plain bytes, for the event log: numpy copies these at once, not field by field."""
        return self.table.flow.view(WHOLE_FLOW)[slots]

    def by_device(self, slots: NDArray[np.int64]) -> list[tuple[DeviceState, NDArray[np.int64]]]:
        """Group tracked flows by their device."""
        if len(self.devices) == 1:
            (device,) = self.devices.values()
            return [(device, slots)] if len(slots) else []
        ifindexes = self.table.flow["ifindex"][slots]
        present = [ifindex for ifindex in np.unique(ifindexes).tolist() if ifindex in self.devices]
        return [(self.devices[ifindex], slots[ifindexes == ifindex]) for ifindex in present]

    def highest_rates(self, waiting: NDArray[np.int64]) -> NDArray[np.float64]:
        """The highest rate, in packets a second, that each of these waiting flows can still have."""
        table = self.table
        packets, seen = table.flow["packets"][waiting], table.seen[waiting]
        return waiting_rates(table.rate[waiting], packets, seen, self.offload.min_packets, self.clock())

    def hottest_first(self, waiting: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sort waiting flows: ordered ones in their order, then the others, the hottest first."""
        ordered = self.ordered(waiting)
        others = waiting[~ordered]
        hottest_others = hottest(self.highest_rates(others), self.table.flow["packets"][others], len(others))
        return np.concatenate([waiting[ordered], others[hottest_others]])

    def ordered(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which flows have an order that stands."""
        standing: NDArray[np.bool_] = self.table.order[slots] == Order.STANDS
        return standing

    def count(self, device: DeviceState, slots: NDArray[np.int64], now: Counts) -> None:
        """Add what the rules of tracked flows have counted since the last time. now: the NIC's counters, (slots, 2)."""
        device.rule_counters.count(self.table.backend[slots], self.table.counts(slots), now)
        self.table.packets[slots], self.table.bytes[slots] = now[:, 0], now[:, 1]

    def end_counters(self, device: DeviceState, slots: NDArray[np.int64]) -> None:
        """Keep what rules have counted that are gone now."""
        counts = self.table.counts(slots)
        device.rule_counters.end(self.table.backend[slots], counts)
        for nf in self.context.nfs:
            if nf.orders and (mine := self.table.flow["nf"][slots] == nf.number).any():
                idle = np.where(counts[:, 0] > 0, self.clock() - self.table.seen[slots], np.inf)
                nf.rules_ended(self.table.batch(slots[mine]), counts[mine], idle[mine])
        self.table.end_counters(slots)
