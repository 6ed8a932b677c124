# SPDX-License-Identifier: Apache-2.0
"""What the NIC holds against what the flow table says, each time that the counters are read.

dump ─► counters and rates ─► gone without our doing: put back ─► idle, or colder than what waits: removed
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FLOW_KEY
from ..api.reasons import Reason
from ..api.rules import RuleBatch, split_cookies
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
    """Give the bytes of the flow keys that flows, as well as rules with counters, begin with."""
    raw = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    return raw[:, : FLOW_KEY.itemsize]


class Reconciler:
    """Reads the counters of every device, and acts on what it finds."""

    def __init__(self, state: EngineState, remover: Remover) -> None:
        self._state = state
        self._remover = remover

    def run(self) -> None:
        """Have the counters read that are due; never waits."""
        now = self._state.clock()
        for device in self._state.devices.values():
            if now >= device.next_poll:
                self._poll(device, now)

    def _poll(self, device: DeviceState, now: float) -> None:
        device.next_poll = now + min(max(self._patience(device) / 4, SHORTEST_POLL), LONGEST_POLL)
        if device.polling or not device.accelerated:
            return
        self._remover.end_forced(device)

        def done(result: Dump | Exception) -> None:
            device.polling = False
            if isinstance(result, Exception):
                log.warning("%s: counters cannot be read: %s", device.name, result)
            else:
                self.counted(device, result, now)

        # The answer may come before `submit` returns.
        device.polling = True
        if not device.worker.submit(device.backends.dump, done):
            device.polling = False

    def _patience(self, device: DeviceState) -> float:
        held = self._state.table.count(*OCCUPYING)
        room = held if device.full else self._state.offload.max_rules
        return idle_timeout_at(self._state.offload.idle_timeout, held, room)

    def counted(self, device: DeviceState, dump: Dump, asked: float) -> None:
        """Compare the flow table with what the NIC holds. `asked`: since when the dump may have been read."""
        state, table, now = self._state, self._state.table, self._state.clock()
        ours, slots, _ = split_cookies(dump.rows["rule"]["cookie"])
        known = self._accounted_for(device, dump)
        self._remove_orphans(device, dump, ours & ~known)
        leaving = known.copy()
        leaving[leaving] &= table.state[slots[leaving]] == FlowState.DRAINING
        self._state.count(device, slots[leaving], counts_of(dump.rows[leaving]))
        known[known] &= table.state[slots[known]] == FlowState.INSTALLED
        slots = slots[known]
        self._note(device, slots, dump.rows[known], asked)
        held = table.slots_in(FlowState.INSTALLED)
        held = held[(table.flow["ifindex"][held] == device.ifindex) & np.isin(table.backend[held], dump.answered)]
        there = np.zeros(len(table.state), dtype=bool)
        there[slots] = True
        self._vanished(device, held[~there[held]], now)
        held = held[there[held]]
        held = held[~np.isin(table.reason[held], FORCED_ENDS)]
        # All that the NIC had counted `counter_lag` before the dump shows in it; the dump itself may be old by now.
        silence = asked - table.seen[held] - state.offload.counter_lag
        idle = silence >= self._patience(device)
        self._remover.end_rules(held[idle], Reason.IDLE)
        self._replace(device, held[~idle])
        device.polled = asked
        device.counted[dump.answered] = asked

    def _accounted_for(self, device: DeviceState, dump: Dump) -> NDArray[np.bool_]:
        """Rules of ours that belong to flows which are on their way to the NIC, in it, or on their way out."""
        table = self._state.table
        known, slots, generations = split_cookies(dump.rows["rule"]["cookie"])
        known &= slots < len(table.state)
        known[known] &= table.generation[slots[known]] == generations[known]
        known[known] &= table.flow["ifindex"][slots[known]] == device.ifindex
        # The cookies of a run before this, which found the NIC deaf at its start, may be the same.
        known[known] &= table.mark[slots[known]] == dump.rows["rule"]["mark"][known]
        known[known] &= (_keys(dump.rows)[known] == _keys(table.batch(slots[known]).rows)).all(axis=1)
        states, backend = table.state[slots[known]], table.backend[slots[known]]
        # Which backend takes a rule that is on its way is not known yet.
        in_place = np.isin(states, (FlowState.INSTALLED, FlowState.DRAINING)) & (backend == dump.backend[known])
        known[known] &= in_place | (states == FlowState.PENDING)
        return known

    def _note(self, device: DeviceState, slots: NDArray[np.int64], rows: NDArray[np.void], asked: float) -> None:
        """Keep the counters, and how fast they grow."""
        table = self._state.table
        before = table.packets[slots]
        packets = rows["packets"]
        # A counter that is less than it was is another rule's, or began anew: what it shows is what is new.
        grown = np.where(packets >= before, packets - before, packets).astype(np.float64)
        counted = device.counted[table.backend[slots]]
        interval = np.maximum(asked - counted, SHORTEST_POLL)
        rates = grown / interval
        # Two dumps tell a rate when the counter had begun to move by the first. Until then the slow path's stands.
        settled = counted - table.since[slots] - self._state.offload.counter_lag
        average = np.where(settled < interval, rates, (table.rate[slots] + rates) / 2)
        table.rate[slots] = np.where(settled >= 0, average, table.rate[slots])
        table.seen[slots[packets != before]] = self._state.clock()
        self._state.count(device, slots, counts_of(rows))

    def _vanished(self, device: DeviceState, slots: NDArray[np.int64], now: float) -> None:
        """Let flows wait again whose rules the NIC no longer has though nobody here removed them."""
        state = self._state
        device.freed(len(slots))
        state.end_counts(device, slots)
        doomed = np.isin(state.table.reason[slots], FORCED_ENDS)
        state.table.move(slots[doomed], FlowState.DRAINING, now)
        self._remover.gone(slots[doomed], now)
        slots = slots[~doomed]
        if not len(slots):
            return
        state.counters.totals["vanished"] += len(slots)
        state.events.record(
            EventKind.VANISHED,
            state.opaque(slots),
            reason=Reason.VANISHED,
            mark=state.table.mark[slots],
            backend=state.table.backend[slots],
        )
        if device.refill_began is None:
            device.refill_began = now
            log.warning("%s: %d rules are gone without our doing; putting them back", device.name, len(slots))
        # Their packets are on the slow path already, which must send them where their marks did.
        self._remover.restore(state.table.batch(slots))
        state.table.reason[slots], state.table.due[slots] = Reason.VANISHED, 0.0
        state.table.seen[slots] = now
        state.table.move(slots, FlowState.WAITING, now)

    def _remove_orphans(self, device: DeviceState, dump: Dump, which: NDArray[np.bool_]) -> None:
        """Take rules of ours off the NIC that no flow accounts for, such as those whose answer was lost."""
        if not which.any():
            return
        rules, backend = RuleBatch(np.ascontiguousarray(dump.rows["rule"][which])), dump.backend[which]
        shown = counts_of(dump.rows[which])

        def done(result: Removal | Exception) -> None:
            if isinstance(result, Exception) or not result.gone.any():
                return
            number = int(np.count_nonzero(result.gone))
            self._state.counters.totals["orphans_removed"] += number
            words = f"{number:,} rules of ours that belonged to no flow were removed"
            self._state.events.note(EventKind.NIC, words, device.name)
            last, of = np.maximum(shown, result.counted)[result.gone], backend[result.gone]
            device.rule_counters.count(of, np.zeros_like(last), last)
            device.rule_counters.end(of, last)

        device.worker.submit(lambda: device.backends.remove(rules, backend), done)

    def _replace(self, device: DeviceState, installed: NDArray[np.int64]) -> None:
        """Let the coldest rules go when there is no room for waiting flows that are much hotter, or none at all."""
        state, table = self._state, self._state.table
        # More than `max_rules` after a reload that lowered it; what goes already counts.
        surplus = max(0, -state.places - table.count(FlowState.DRAINING))
        if not surplus and not self._is_crowded(device):
            return
        installed = installed[np.argsort(table.rate[installed], kind="stable")]
        self._remover.end_rules(installed[:surplus], Reason.REPLACED)
        installed = installed[surplus:]
        if not self._is_crowded(device):
            return
        # Of rules that count nothing it is not known who deserves a place more.
        installed = installed[~np.isin(table.backend[installed], device.blind)]
        # Only of those that two dumps have told the rate.
        installed = installed[
            device.counted[table.backend[installed]] - table.since[installed] >= state.offload.counter_lag
        ]
        waiting = table.slots_in(FlowState.WAITING)
        waiting = waiting[table.flow["ifindex"][waiting] == device.ifindex]
        # Places that are being vacated already are for the first of them.
        rates = np.sort(state.heat(waiting))[::-1][table.count(FlowState.DRAINING) :]
        count = min(replaceable(table.rate[installed].astype(np.float64), rates), device.budget.available())
        self._remover.end_rules(installed[:count], Reason.REPLACED)

    def _is_crowded(self, device: DeviceState) -> bool:
        """Whether flows wait and there is no room for them."""
        crowded = self._state.places <= 0 or (device.full and not device.spare)
        return crowded and self._state.table.count(FlowState.WAITING) > 0
