# SPDX-License-Identifier: Apache-2.0
"""Compares the NIC's rules with the flow table, each time that the counters are read.

dump ─► counters and rates ─► vanished rules: put back ─► idle rules, and those colder than waiting flows: removed
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FLOW_KEY
from ..api.reasons import Reason
from ..api.rules import Action, RuleBatch, split_cookies
from ..devices.backends import Dump, Removal
from ..devices.device_state import DeviceState
from ..devices.rule_counters import counts_of
from .event_kind import EventKind
from .eviction import idle_timeout_at, replaceable
from .flow_state import FlowState
from .removal import FORCED_ENDS, Remover
from .state import OCCUPYING, EngineState

log = logging.getLogger(__name__)
SHORTEST_POLL, LONGEST_POLL = 0.1, 5.0
"""Seconds between two readings of the counters."""


def _keys(rows: NDArray[np.void]) -> NDArray[np.uint8]:
    """Give the bytes of the flow keys with which the rows begin, be they of flows or of rules with counters."""
    raw = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    return raw[:, : FLOW_KEY.itemsize]


class Reconciler:
    """Reads the counters of every device, and removes or restores rules by what it finds."""

    def __init__(self, state: EngineState, remover: Remover) -> None:
        self._state = state
        self._remover = remover

    def run(self) -> None:
        """Let the workers read the counters that are due; never waits."""
        now = self._state.clock()
        for device in self._state.devices.values():
            if now >= device.next_poll:
                self._poll(device, now)

    def _poll(self, device: DeviceState, now: float) -> None:
        device.next_poll = now + min(max(self._idle_timeout(device) / 4, SHORTEST_POLL), LONGEST_POLL)
        if device.polling or not device.accelerated:
            return
        self._remover.end_forced(device)

        def done(result: Dump | Exception) -> None:
            device.polling = False
            if isinstance(result, Exception):
                log.warning("%s: counters cannot be read: %s", device.name, result)
            else:
                self._compare(device, result, now)

        # Set first: `done` may be called before `submit` returns.
        device.polling = True
        if not device.worker.submit(device.backends.dump, done):
            device.polling = False

    def _idle_timeout(self, device: DeviceState) -> float:
        held = self._state.table.count(*OCCUPYING)
        room = held if device.full else self._state.offload.max_rules
        return idle_timeout_at(self._state.offload.idle_timeout, held, room)

    def _compare(self, device: DeviceState, dump: Dump, requested: float) -> None:
        """Compare the flow table with what the NIC holds. requested: the dump was read then or later."""
        table = self._state.table
        own, slots, _ = split_cookies(dump.rows["rule"]["cookie"])
        known = self._accounted_for(device, dump)
        self._remove_orphans(device, dump, own & ~known)
        rows = np.flatnonzero(known)
        states = table.state[slots[rows]]
        draining, installed = rows[states == FlowState.DRAINING], rows[states == FlowState.INSTALLED]
        self._state.count(device, slots[draining], counts_of(dump.rows[draining]))
        self._update(device, slots[installed], dump.rows[installed], requested)
        held = self._put_back_vanished(device, dump, slots[installed])
        held = held[~np.isin(table.reason[held], FORCED_ENDS)]
        # Packets that came up to `counter_lag` before the dump may be missing in it.
        silence = requested - table.seen[held] - self._state.offload.counter_lag
        idle = (silence >= self._idle_timeout(device)) & ~self._state.ordered(held)
        self._remover.end_rules(held[idle], Reason.IDLE)
        self._replace(device, held[~idle])
        device.polled_at = requested
        device.counted_at[dump.complete] = requested

    def _accounted_for(self, device: DeviceState, dump: Dump) -> NDArray[np.bool_]:
        """Which rows are rules of tracked flows: PENDING, INSTALLED or DRAINING."""
        table = self._state.table
        known, slots, generations = split_cookies(dump.rows["rule"]["cookie"])
        known &= slots < len(table.state)
        known[known] &= table.generation[slots[known]] == generations[known]
        known[known] &= table.flow["ifindex"][slots[known]] == device.ifindex
        # Rules of an earlier run may have the same cookies, if the NIC could not be read when this run started.
        known[known] &= table.mark[slots[known]] == dump.rows["rule"]["mark"][known]
        known[known] &= table.drops[slots[known]] == (dump.rows["rule"]["action"][known] == Action.DROP)
        known[known] &= (_keys(dump.rows)[known] == _keys(table.batch(slots[known]).rows)).all(axis=1)
        known[known] &= (dump.rows["rule"]["vlans"][known] == table.flow["vlans"][slots[known]]).all(axis=1)
        states, backend = table.state[slots[known]], table.backend[slots[known]]
        # Which backend takes the rule of a PENDING flow is not known yet.
        in_place = np.isin(states, (FlowState.INSTALLED, FlowState.DRAINING)) & (backend == dump.backend[known])
        known[known] &= in_place | (states == FlowState.PENDING)
        return known

    def _update(self, device: DeviceState, slots: NDArray[np.int64], rows: NDArray[np.void], requested: float) -> None:
        """Take over the counters of installed rules, and compute the flows' rates."""
        table = self._state.table
        before = table.packets[slots]
        packets = rows["packets"]
        # A counter below its last value is another rule's or has been reset: all that it shows is new.
        grown = np.where(packets >= before, packets - before, packets).astype(np.float64)
        counted = device.counted_at[table.backend[slots]]
        interval = np.maximum(requested - counted, SHORTEST_POLL)
        rates = grown / interval
        # The first dump that shows the counter at work starts the measurement; until then the slow path's rate stays.
        settled = counted - table.since[slots] - self._state.offload.counter_lag
        average = np.where(settled < interval, rates, (table.rate[slots] + rates) / 2)
        table.rate[slots] = np.where(settled >= 0, average, table.rate[slots])
        table.seen[slots[packets != before]] = self._state.clock()
        self._state.count(device, slots, counts_of(rows))

    def _put_back_vanished(self, device: DeviceState, dump: Dump, present: NDArray[np.int64]) -> NDArray[np.int64]:
        """Let flows wait again whose rules are missing. present: slots of the rules in the dump. Returns those kept."""
        table = self._state.table
        held = table.slots_in(FlowState.INSTALLED)
        held = held[(table.flow["ifindex"][held] == device.ifindex) & np.isin(table.backend[held], dump.complete)]
        is_present = np.zeros(len(table.state), dtype=bool)
        is_present[present] = True
        self._vanished(device, held[~is_present[held]], self._state.clock())
        kept: NDArray[np.int64] = held[is_present[held]]
        return kept

    def _vanished(self, device: DeviceState, slots: NDArray[np.int64], now: float) -> None:
        """Let flows wait again whose rules are gone from the NIC, though nfcore did not remove them."""
        state, table = self._state, self._state.table
        device.freed(len(slots))
        state.end_counters(device, slots)
        self._remover.note_moved(slots)
        forced = np.isin(table.reason[slots], FORCED_ENDS)
        table.move(slots[forced], FlowState.DRAINING, now)
        self._remover.begin_grace(slots[forced], now)
        slots = slots[~forced]
        if not len(slots):
            return
        state.counters.totals["vanished"] += len(slots)
        state.events.record(
            EventKind.VANISHED,
            state.flow_bytes(slots),
            reason=Reason.VANISHED,
            mark=table.mark[slots],
            backend=table.backend[slots],
        )
        if device.refill_began is None:
            device.refill_began = now
            log.warning("%s: %d rules have vanished from the NIC; putting them back", device.name, len(slots))
        # Their packets take the slow path already, which must send them where their marks did.
        self._remover.restore(table.batch(slots))
        table.reason[slots], table.due[slots] = Reason.VANISHED, 0.0
        table.seen[slots] = now
        table.move(slots, FlowState.WAITING, now)

    def _remove_orphans(self, device: DeviceState, dump: Dump, which: NDArray[np.bool_]) -> None:
        """Remove nfcore's rules that belong to no tracked flow, such as those that a backend reported as failed."""
        if not which.any():
            return
        rules, backend = RuleBatch(np.ascontiguousarray(dump.rows["rule"][which])), dump.backend[which]
        shown = counts_of(dump.rows[which])

        def done(result: Removal | Exception) -> None:
            if isinstance(result, Exception) or not result.gone.any():
                return
            count = int(np.count_nonzero(result.gone))
            self._state.counters.totals["orphans_removed"] += count
            message = f"{count:,} of nfcore's rules that belonged to no flow were removed"
            self._state.events.note(EventKind.NIC, message, device.name)
            last, holders = np.maximum(shown, result.counted)[result.gone], backend[result.gone]
            device.rule_counters.count(holders, np.zeros_like(last), last)
            device.rule_counters.end(holders, last)

        device.worker.submit(lambda: device.backends.remove(rules, backend), done)

    def _replace(self, device: DeviceState, installed: NDArray[np.int64]) -> None:
        """Remove the coldest rules: those beyond `max_rules`, and those whose place much hotter flows wait for."""
        state, table = self._state, self._state.table
        # Rules beyond `max_rules` after a reload that lowered it, less those that are being removed already.
        surplus = max(0, -state.places - table.count(FlowState.DRAINING))
        if not surplus and not self._is_crowded(device):
            return
        installed = installed[np.lexsort((table.rate[installed], state.ordered(installed)))]
        self._remover.end_rules(installed[:surplus], Reason.REPLACED)
        # Ordered flows keep their places, and those that wait for one get it by `Dispatch`.
        installed = installed[surplus:]
        installed = installed[~state.ordered(installed)]
        if not self._is_crowded(device):
            return
        # Only rules whose rate is known: their backend has counters, and these have been read since the installation.
        installed = installed[~np.isin(table.backend[installed], device.without_counters)]
        counted = device.counted_at[table.backend[installed]]
        installed = installed[counted - table.since[installed] >= state.offload.counter_lag]
        waiting = table.slots_in(FlowState.WAITING)
        waiting = waiting[(table.flow["ifindex"][waiting] == device.ifindex) & ~state.ordered(waiting)]
        # The hottest of them get the places of the rules that are being removed already.
        rates = np.sort(state.highest_rates(waiting))[::-1][table.count(FlowState.DRAINING) :]
        count = min(replaceable(table.rate[installed].astype(np.float64), rates), device.budget.available())
        self._remover.end_rules(installed[:count], Reason.REPLACED)

    def _is_crowded(self, device: DeviceState) -> bool:
        """Whether flows wait and there is no room for them."""
        crowded = self._state.places <= 0 or (device.full and not device.spare)
        return crowded and self._state.table.count(FlowState.WAITING) > 0
