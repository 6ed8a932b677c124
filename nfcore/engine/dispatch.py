# SPDX-License-Identifier: Apache-2.0
"""From waiting flows to installed rules: as many as budget and room allow, the hottest first."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from ..api.reasons import Reason
from ..api.rules import Outcome, RuleBatch
from ..devices.backends import InstallResult
from ..devices.device_state import DeviceState
from .event_kind import EventKind
from .flow_state import FlowState
from .removal import FORCED_ENDS, Remover
from .state import EngineState

log = logging.getLogger(__name__)
JOB_RULES = 4096
"""Rules that a worker gets at a time: some hundred milliseconds of a NIC's time, so that removals come between."""
INTERVAL = 0.05
"""Seconds between two rounds while not all that wait can go: choosing the hottest has its price."""
MOST_ATTEMPTS = 5
FIRST_BACKOFF = 0.5
"""Seconds after the first failure, doubling."""


class Dispatch:
    """Sends waiting flows to the workers."""

    def __init__(self, state: EngineState, remover: Remover) -> None:
        self._state = state
        self._remover = remover
        self._next_round = 0.0

    def run(self) -> None:
        """Send what may be sent now."""
        state, now = self._state, self._state.clock()
        count = state.table.count(FlowState.WAITING)
        if not count:
            for device in state.devices.values():
                self._refilled(device, now)
        if not count or not state.switched_on:
            return
        free = min(
            [state.places, *(min(device.budget.available(), device.room(now)) for device in state.devices.values())]
        )
        if free < count and now < self._next_round:
            return
        self._next_round = now + INTERVAL
        waiting = state.table.slots_in(FlowState.WAITING)
        waiting = waiting[state.table.due[waiting] <= now]
        for device, slots in state.by_device(waiting):
            self._send(device, slots, now)

    def _send(self, device: DeviceState, slots: NDArray[np.int64], now: float) -> None:
        """Send a device's hottest flows; the others learn what they wait for."""
        limits = {
            Reason.TABLE_FULL: self._state.places,
            Reason.NIC_FULL: device.room(now),
            Reason.BUDGET: device.budget.available(),
        }
        wanted = max(0, min(limits.values()))
        slots = self._state.by_heat(slots)
        if wanted < len(slots):
            self._put_off(slots[wanted:], min(limits, key=lambda reason: limits[reason]))
            slots = slots[:wanted]
        for begin in range(0, len(slots), JOB_RULES):
            if not self._submit(device, slots[begin : begin + JOB_RULES], now):
                self._put_off(slots[begin:], Reason.QUEUE_FULL)
                break

    def _put_off(self, slots: NDArray[np.int64], reason: Reason) -> None:
        """Note what flows wait for. Each is counted when it begins to wait."""
        table = self._state.table
        fresh = slots[table.reason[slots] == Reason.ADMIT]
        self._state.counters.defer(np.full(len(fresh), reason, dtype=np.uint8))
        self._state.events.record(EventKind.DEFERRED, self._state.opaque(fresh), reason=reason)
        kept = table.reason[slots] == Reason.VANISHED
        table.reason[slots[~kept]] = reason

    def _submit(self, device: DeviceState, slots: NDArray[np.int64], now: float) -> bool:
        rules: RuleBatch = self._state.rules(slots)
        self._state.table.move(slots, FlowState.PENDING, now)
        # Before the answer, which may come while `submit` runs.
        device.budget.take(len(slots))
        device.sent(len(slots), now)
        if not device.worker.submit(
            lambda: device.backends.install(rules), lambda result: self.done(device, slots, result)
        ):
            self._state.table.move(slots, FlowState.WAITING, now)
            device.budget.give_back(len(slots))
            return False
        return True

    def done(self, device: DeviceState, slots: NDArray[np.int64], result: InstallResult | Exception) -> None:
        """Take a worker's answer for flows that were PENDING."""
        table, now = self._state.table, self._state.clock()
        if isinstance(result, Exception):
            log.warning("%s: offload failed: %s", device.name, result)
            failed = np.full(len(slots), Outcome.FAILED, dtype=np.uint8)
            result = InstallResult(failed, np.zeros(len(slots), dtype=np.uint8), [])
        for words in result.messages:
            log.warning("%s: offload: %s", device.name, words)
        good = result.status == Outcome.INSTALLED
        doomed = np.isin(table.reason[slots], FORCED_ENDS)
        self._installed(slots[good], result.backend[good], now)
        for reason in FORCED_ENDS:
            late = doomed & (table.reason[slots] == reason)
            self._remover.end_rules(slots[late & good], reason)
            self._remover.refuse(slots[late & ~good], reason)
        slots, good, status = slots[~doomed], good[~doomed], result.status[~doomed]
        full = status == Outcome.FULL
        was_full = device.full
        if full.any():
            device.refused(now)
            self._wait_again(slots[full], Reason.NIC_FULL, now)
        elif good.any():
            device.accepted()
        if device.full != was_full:
            held = table.count(FlowState.INSTALLED)
            words = f"full, with {held:,} rules: the coldest make room" if device.full else "has room again"
            self._state.events.note(EventKind.NIC, words, device.name)
        self._remover.refuse(slots[status == Outcome.UNSUPPORTED], Reason.UNSUPPORTED)
        failed = ~good & ~full & (status != Outcome.UNSUPPORTED)
        self._tell_failures(device, result, np.flatnonzero(~doomed)[failed], slots[failed])
        self._failed(device, slots[failed], now)
        self._refilled(device, now)

    def _tell_failures(
        self, device: DeviceState, result: InstallResult, rows: NDArray[np.int64], slots: NDArray[np.int64]
    ) -> None:
        """Note failures with the backend's messages: the row's own, or what it said last, since it may say it once."""
        events = self._state.events
        if result.messages:
            device.last_message = result.messages[-1]
        common = events.text_number(device.last_message) if device.last_message and len(rows) else 0
        texts = np.full(len(rows), common, dtype=np.uint32)
        for number, row in enumerate(rows.tolist() if result.row_messages else ()):
            if row in result.row_messages:
                texts[number] = events.text_number(result.row_messages[row])
        backend = result.backend[rows]
        events.record(EventKind.FAILED, self._state.opaque(slots), reason=Reason.FAILED, backend=backend, text=texts)

    def _installed(self, slots: NDArray[np.int64], backend: NDArray[np.uint8], now: float) -> None:
        table = self._state.table
        self._state.counters.totals["installed"] += len(slots)
        table.backend[slots], table.attempts[slots] = backend, 0
        table.packets[slots] = table.bytes[slots] = 0
        table.seen[slots] = now
        back = table.reason[slots] == Reason.VANISHED
        for kind, which in ((EventKind.INSTALLED, ~back), (EventKind.PUT_BACK, back)):
            flows, marks = self._state.opaque(slots[which]), table.mark[slots[which]]
            self._state.events.record(kind, flows, mark=marks, backend=backend[which])
        table.reason[slots[~np.isin(table.reason[slots], FORCED_ENDS)]] = Reason.ADMIT
        table.move(slots, FlowState.INSTALLED, now)

    def _wait_again(self, slots: NDArray[np.int64], reason: Reason, now: float) -> None:
        table = self._state.table
        table.move(slots, FlowState.WAITING, now)
        self._put_off(slots, reason)

    def _failed(self, device: DeviceState, slots: NDArray[np.int64], now: float) -> None:
        """Try again later, with longer pauses, a few times."""
        if not len(slots):
            return
        # A rule may be on the NIC though its backend failed.
        device.look_soon(now, FIRST_BACKOFF)
        table = self._state.table
        table.attempts[slots] += 1
        spent = table.attempts[slots] >= MOST_ATTEMPTS
        self._remover.refuse(slots[spent], Reason.FAILED)
        again = slots[~spent]
        table.due[again] = now + FIRST_BACKOFF * 2.0 ** (table.attempts[again].astype(np.float64) - 1)
        self._wait_again(again, Reason.FAILED, now)

    def _refilled(self, device: DeviceState, now: float) -> None:
        """Tell how long it took to put back what had vanished from a NIC."""
        if device.refill_began is None:
            return
        table = self._state.table
        waiting = table.slots_in(FlowState.WAITING, FlowState.PENDING)
        missing = table.reason[waiting] == Reason.VANISHED
        if not (missing & (table.flow["ifindex"][waiting] == device.ifindex)).any():
            device.refill_seconds = now - device.refill_began
            device.refill_began = None
            log.info("%s: rules that had vanished are back after %.2f s", device.name, device.refill_seconds)
