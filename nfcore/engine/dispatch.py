# SPDX-License-Identifier: Apache-2.0
"""Installs rules for waiting flows: the hottest first, as many as the budget and the room on the NIC allow."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from ..api.reasons import Reason
from ..api.rules import Outcome, RuleBatch
from ..devices.backends import InstallResult
from ..devices.device_state import LONGEST_RETRY, DeviceState
from .event_kind import EventKind
from .flow_state import FlowState
from .removal import FORCED_ENDS, Remover
from .state import EngineState

log = logging.getLogger(__name__)
JOB_RULES = 4096
"""Rules in one job of a worker: a NIC needs some hundred milliseconds for them, and removals can come in between."""
INTERVAL = 0.05
"""Seconds between two rounds while there is no room for all waiting flows: finding the hottest takes time."""
MOST_ATTEMPTS = 5
FIRST_BACKOFF = 0.5
"""Seconds until the second attempt; doubles with each failure."""


class Dispatch:
    """Sends the rules of waiting flows to the workers, and takes the results."""

    def __init__(self, state: EngineState, remover: Remover) -> None:
        self._state = state
        self._remover = remover
        self._next_round = 0.0

    def run(self) -> None:
        """Send as many rules as possible now."""
        state, now = self._state, self._state.clock()
        count = state.table.count(FlowState.WAITING)
        if not count:
            for device in state.devices.values():
                self._note_refill(device, now)
        if not count or not state.switched_on:
            return
        limits = [min(device.budget.available(), device.room(now)) for device in state.devices.values()]
        if min([state.places, *limits]) < count and now < self._next_round:
            return
        self._next_round = now + INTERVAL
        waiting = state.table.slots_in(FlowState.WAITING)
        waiting = waiting[state.table.due[waiting] <= now]
        for device, slots in state.by_device(waiting):
            self._send(device, slots, now)

    def _send(self, device: DeviceState, slots: NDArray[np.int64], now: float) -> None:
        """Send the rules of a device's hottest flows; note for the others what they wait for."""
        limits = {
            Reason.TABLE_FULL: self._state.places,
            Reason.NIC_FULL: device.room(now),
            Reason.BUDGET: device.budget.available(),
        }
        wanted = max(0, min(limits.values()))
        if wanted < len(slots):
            scarce = min(limits, key=lambda reason: limits[reason])
            if scarce is not Reason.BUDGET:
                self._make_way(device, int(np.count_nonzero(self._state.ordered(slots))) - wanted)
            slots = self._state.hottest_first(slots) if wanted else slots
            self._defer(slots[wanted:], scarce)
            slots = slots[:wanted]
        else:
            slots = self._state.hottest_first(slots)
        for begin in range(0, len(slots), JOB_RULES):
            if not self._submit(device, slots[begin : begin + JOB_RULES], now):
                self._defer(slots[begin:], Reason.QUEUE_FULL)
                break

    def _make_way(self, device: DeviceState, wanted: int) -> None:
        """Remove the coldest rules of reported flows, so that so many ordered flows find room."""
        table = self._state.table
        wanted -= table.count(FlowState.DRAINING)
        if wanted <= 0:
            return
        installed = table.slots_in(FlowState.INSTALLED)
        installed = installed[(table.flow["ifindex"][installed] == device.ifindex) & ~self._state.ordered(installed)]
        coldest = np.argsort(table.rate[installed], kind="stable")[:wanted]
        self._remover.end_rules(installed[coldest], Reason.REPLACED)

    def _defer(self, slots: NDArray[np.int64], reason: Reason) -> None:
        """Note what flows wait for. Each flow is counted once, when it begins to wait."""
        table = self._state.table
        fresh = slots[table.reason[slots] == Reason.ADMIT]
        self._state.counters.defer(np.full(len(fresh), reason, dtype=np.uint8))
        self._state.events.record(EventKind.DEFERRED, self._state.flow_bytes(fresh), reason=reason)
        table.reason[slots[table.reason[slots] != Reason.VANISHED]] = reason

    def _submit(self, device: DeviceState, slots: NDArray[np.int64], now: float) -> bool:
        """Queue the installation of rules; False when the worker's queue is full."""
        rules: RuleBatch = self._state.rules(slots)
        self._state.table.move(slots, FlowState.PENDING, now)
        # Before `submit`: the result may come before it returns.
        device.budget.take(len(slots))
        device.sent(len(slots), now)
        if not device.worker.submit(
            lambda: device.backends.install(rules), lambda result: self._take_result(device, slots, result)
        ):
            self._state.table.move(slots, FlowState.WAITING, now)
            device.budget.give_back(len(slots))
            return False
        return True

    def _take_result(self, device: DeviceState, slots: NDArray[np.int64], result: InstallResult | Exception) -> None:
        """Take a worker's result for flows that were PENDING."""
        table, now = self._state.table, self._state.clock()
        if isinstance(result, Exception):
            log.warning("%s: offload failed: %s", device.name, result)
            failed = np.full(len(slots), Outcome.FAILED, dtype=np.uint8)
            result = InstallResult(failed, np.zeros(len(slots), dtype=np.uint8), [])
        for message in result.messages:
            log.warning("%s: offload: %s", device.name, message)
        good = result.status == Outcome.INSTALLED
        forced = np.isin(table.reason[slots], FORCED_ENDS)
        self._note_installed(slots[good], result.backend[good], now)
        self._end_forced(slots[forced], good[forced])
        rows = np.flatnonzero(~forced)
        status = result.status[rows]
        self._wait_again(slots[rows[status == Outcome.FULL]], Reason.NIC_FULL, now)
        self._note_room(device, status, now)
        if (status == Outcome.UNSUPPORTED).any():
            device.unsupported_again(now)
        self._remover.refuse(slots[rows[status == Outcome.UNSUPPORTED]], Reason.UNSUPPORTED)
        failed_rows = rows[~np.isin(status, (Outcome.INSTALLED, Outcome.FULL, Outcome.UNSUPPORTED))]
        self._record_failures(device, result, failed_rows, slots[failed_rows])
        self._retry(device, slots[failed_rows], now)
        self._note_refill(device, now)

    def _end_forced(self, slots: NDArray[np.int64], installed: NDArray[np.bool_]) -> None:
        """End flows that were to end while the worker had their rules. installed: whether each has its rule now."""
        table = self._state.table
        for reason in FORCED_ENDS:
            due = table.reason[slots] == reason
            self._remover.end_rules(slots[due & installed], reason)
            self._remover.refuse(slots[due & ~installed], reason)

    def _note_room(self, device: DeviceState, status: NDArray[np.uint8], now: float) -> None:
        """Note whether the NIC had room, and record an event when that has changed."""
        was_full = device.full
        if (status == Outcome.FULL).any():
            device.refused(now)
        elif (status == Outcome.INSTALLED).any():
            device.accepted()
        if device.full != was_full:
            held = self._state.table.count(FlowState.INSTALLED)
            message = f"full, with {held:,} rules: the coldest make room" if device.full else "has room again"
            self._state.events.note(EventKind.NIC, message, device.name)

    def _record_failures(
        self, device: DeviceState, result: InstallResult, rows: NDArray[np.int64], slots: NDArray[np.int64]
    ) -> None:
        """Record failures with the backend's message for the row, or with its last one: it may give a message once."""
        events = self._state.events
        if result.messages:
            device.last_message = result.messages[-1]
        last = events.text_number(device.last_message) if device.last_message and len(rows) else 0
        texts = np.full(len(rows), last, dtype=np.uint32)
        for place, row in enumerate(rows.tolist() if result.row_messages else ()):
            if row in result.row_messages:
                texts[place] = events.text_number(result.row_messages[row])
        backend = result.backend[rows]
        events.record(
            EventKind.FAILED, self._state.flow_bytes(slots), reason=Reason.FAILED, backend=backend, text=texts
        )

    def _note_installed(self, slots: NDArray[np.int64], backend: NDArray[np.uint8], now: float) -> None:
        """Move flows whose rules are on the NIC now to INSTALLED."""
        table = self._state.table
        self._state.counters.totals["installed"] += len(slots)
        table.backend[slots], table.attempts[slots] = backend, 0
        table.packets[slots] = table.bytes[slots] = 0
        table.seen[slots] = now
        back = table.reason[slots] == Reason.VANISHED
        for kind, which in ((EventKind.INSTALLED, ~back), (EventKind.PUT_BACK, back)):
            flows, marks = self._state.flow_bytes(slots[which]), table.mark[slots[which]]
            self._state.events.record(kind, flows, mark=marks, backend=backend[which])
        table.reason[slots[~np.isin(table.reason[slots], FORCED_ENDS)]] = Reason.ADMIT
        table.move(slots, FlowState.INSTALLED, now)

    def _wait_again(self, slots: NDArray[np.int64], reason: Reason, now: float) -> None:
        self._state.table.move(slots, FlowState.WAITING, now)
        self._defer(slots, reason)

    def _retry(self, device: DeviceState, slots: NDArray[np.int64], now: float) -> None:
        """Let failed flows wait for another attempt, longer each time; refuse them after the last."""
        if not len(slots):
            return
        # A rule may be on the NIC though its backend failed.
        device.poll_soon(now, FIRST_BACKOFF)
        table = self._state.table
        table.attempts[slots] += 1
        spent = table.attempts[slots] >= MOST_ATTEMPTS
        if spent.any():
            device.failed_retry = min(device.failed_retry, now + LONGEST_RETRY)
        self._remover.refuse(slots[spent], Reason.FAILED)
        again = slots[~spent]
        table.due[again] = now + FIRST_BACKOFF * 2.0 ** (table.attempts[again].astype(np.float64) - 1)
        self._wait_again(again, Reason.FAILED, now)

    def _note_refill(self, device: DeviceState, now: float) -> None:
        """Log how long it took to put back rules that had vanished from a NIC, once all are back."""
        if device.refill_began is None:
            return
        table = self._state.table
        waiting = table.slots_in(FlowState.WAITING, FlowState.PENDING)
        missing = table.reason[waiting] == Reason.VANISHED
        if not (missing & (table.flow["ifindex"][waiting] == device.ifindex)).any():
            device.refill_seconds = now - device.refill_began
            device.refill_began = None
            log.info("%s: rules that had vanished are back after %.2f s", device.name, device.refill_seconds)
