# SPDX-License-Identifier: Apache-2.0
"""From waiting flows to installed rules: as many as budget and room allow, the hottest first."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..api.reasons import Reason
from ..api.rules import Outcome, RuleBatch
from ..devices.device_state import Port
from ..devices.worker import InstallResult
from .event_log import EventKind
from .flow_table import FlowState
from .reconcile import DOOMED
from .state import Floor

log = logging.getLogger(__name__)
JOB_RULES = 4096
"""Rules that a worker gets at a time: some hundred milliseconds of a NIC's time, so that removals come between."""
INTERVAL = 0.05
"""Seconds between two rounds while not all that wait can go: choosing the hottest has its price."""
MOST_ATTEMPTS = 5
FIRST_BACKOFF = 0.5
"""Seconds after the first failure, doubling."""


class Dispatch:
    """Sends waiting flows to the workers. `end` takes rules away whose time was up before they were there."""

    def __init__(self, floor: Floor, end: Callable[[NDArray[np.int64], Reason], None]) -> None:
        self._floor = floor
        self._end = end
        self._next_round = 0.0

    def run(self) -> None:
        """Send what may be sent now."""
        floor, now = self._floor, self._floor.clock()
        count = floor.table.count(FlowState.WAITING)
        if not count:
            for port in floor.ports.values():
                self._refilled(port, now)
        if not count or not floor.switched_on:
            return
        free = min([floor.places, *(min(port.budget.available(), port.room(now)) for port in floor.ports.values())])
        if free < count and now < self._next_round:
            return
        self._next_round = now + INTERVAL
        waiting = floor.table.slots_in(FlowState.WAITING)
        waiting = waiting[floor.table.due[waiting] <= now]
        for port, slots in floor.by_port(waiting):
            self._send(port, slots, now)

    def _send(self, port: Port, slots: NDArray[np.int64], now: float) -> None:
        """Send a port's hottest flows; the others learn what they wait for."""
        limits = {
            Reason.TABLE_FULL: self._floor.places,
            Reason.NIC_FULL: port.room(now),
            Reason.BUDGET: port.budget.available(),
        }
        wanted = max(0, min(limits.values()))
        slots = self._floor.by_heat(slots)
        if wanted < len(slots):
            self._put_off(slots[wanted:], min(limits, key=lambda reason: limits[reason]))
            slots = slots[:wanted]
        for begin in range(0, len(slots), JOB_RULES):
            if not self._submit(port, slots[begin : begin + JOB_RULES], now):
                self._put_off(slots[begin:], Reason.QUEUE_FULL)
                break

    def _put_off(self, slots: NDArray[np.int64], reason: Reason) -> None:
        """Note what flows wait for. Each is counted when it begins to wait."""
        table = self._floor.table
        fresh = slots[table.reason[slots] == Reason.ADMIT]
        self._floor.ledger.defer(np.full(len(fresh), reason, dtype=np.uint8))
        self._floor.events.record(EventKind.DEFERRED, self._floor.opaque(fresh), reason=reason)
        kept = table.reason[slots] == Reason.VANISHED
        table.reason[slots[~kept]] = reason

    def _submit(self, port: Port, slots: NDArray[np.int64], now: float) -> bool:
        rules: RuleBatch = self._floor.rules(slots)
        self._floor.table.move(slots, FlowState.PENDING, now)
        # Before the answer, which may come while `submit` runs.
        port.budget.take(len(slots))
        port.sent(len(slots), now)
        if not port.worker.submit(lambda: port.backends.install(rules), lambda result: self.done(port, slots, result)):
            self._floor.table.move(slots, FlowState.WAITING, now)
            port.budget.give_back(len(slots))
            return False
        return True

    def done(self, port: Port, slots: NDArray[np.int64], result: InstallResult | Exception) -> None:
        """Take a worker's answer for flows that were PENDING."""
        ledger, table, now = self._floor.ledger, self._floor.table, self._floor.clock()
        if isinstance(result, Exception):
            ledger.say_once(f"offload failed: {result}")
            failed = np.full(len(slots), Outcome.FAILED, dtype=np.uint8)
            result = InstallResult(failed, np.zeros(len(slots), dtype=np.uint8), [])
        for words in result.words:
            ledger.say_once(f"offload: {words}")
        good = result.status == Outcome.INSTALLED
        doomed = np.isin(table.reason[slots], DOOMED)
        self._installed(slots[good], result.backend[good], now)
        for reason in DOOMED:
            late = doomed & (table.reason[slots] == reason)
            self._end(slots[late & good], reason)
            self._floor.refuse(slots[late & ~good], reason)
        slots, good, status = slots[~doomed], good[~doomed], result.status[~doomed]
        full = status == Outcome.FULL
        was_full = port.full
        if full.any():
            port.refused(now)
            self._wait_again(slots[full], Reason.NIC_FULL, now)
        elif good.any():
            port.accepted()
        if port.full != was_full:
            held = table.count(FlowState.INSTALLED)
            words = f"full, with {held:,} rules: the coldest make room" if port.full else "has room again"
            self._floor.events.note(EventKind.NIC, words, port.name)
        self._floor.refuse(slots[status == Outcome.UNSUPPORTED], Reason.UNSUPPORTED)
        failed = ~good & ~full & (status != Outcome.UNSUPPORTED)
        self._tell_failures(port, result, np.flatnonzero(~doomed)[failed], slots[failed])
        self._failed(port, slots[failed], now)
        self._refilled(port, now)

    def _tell_failures(
        self, port: Port, result: InstallResult, rows: NDArray[np.int64], slots: NDArray[np.int64]
    ) -> None:
        """Note failures with the backend's words: the row's own, or what it said last, since it may say it once."""
        events = self._floor.events
        if result.words:
            port.last_words = result.words[-1]
        common = events.text(port.last_words) if port.last_words and len(rows) else 0
        words = np.full(len(rows), common, dtype=np.uint32)
        for number, row in enumerate(rows.tolist() if result.said else ()):
            if row in result.said:
                words[number] = events.text(result.said[row])
        backend = result.backend[rows]
        events.record(EventKind.FAILED, self._floor.opaque(slots), reason=Reason.FAILED, backend=backend, words=words)

    def _installed(self, slots: NDArray[np.int64], backend: NDArray[np.uint8], now: float) -> None:
        table = self._floor.table
        self._floor.ledger.counts["installed"] += len(slots)
        table.backend[slots], table.attempts[slots] = backend, 0
        table.packets[slots] = table.bytes[slots] = 0
        table.seen[slots] = now
        back = table.reason[slots] == Reason.VANISHED
        for kind, which in ((EventKind.INSTALLED, ~back), (EventKind.PUT_BACK, back)):
            flows, marks = self._floor.opaque(slots[which]), table.mark[slots[which]]
            self._floor.events.record(kind, flows, mark=marks, backend=backend[which])
        table.reason[slots[~np.isin(table.reason[slots], DOOMED)]] = Reason.ADMIT
        table.move(slots, FlowState.INSTALLED, now)

    def _wait_again(self, slots: NDArray[np.int64], reason: Reason, now: float) -> None:
        table = self._floor.table
        table.move(slots, FlowState.WAITING, now)
        self._put_off(slots, reason)

    def _failed(self, port: Port, slots: NDArray[np.int64], now: float) -> None:
        """Try again later, with longer pauses, a few times."""
        if not len(slots):
            return
        # A rule may be on the NIC though its backend failed.
        port.look_soon(now, FIRST_BACKOFF)
        table = self._floor.table
        table.attempts[slots] += 1
        spent = table.attempts[slots] >= MOST_ATTEMPTS
        self._floor.refuse(slots[spent], Reason.FAILED)
        again = slots[~spent]
        table.due[again] = now + FIRST_BACKOFF * 2.0 ** (table.attempts[again].astype(np.float64) - 1)
        self._wait_again(again, Reason.FAILED, now)

    def _refilled(self, port: Port, now: float) -> None:
        """Tell how long it took to put back what had vanished from a NIC."""
        if port.refill_began is None:
            return
        table = self._floor.table
        waiting = table.slots_in(FlowState.WAITING, FlowState.PENDING)
        missing = table.reason[waiting] == Reason.VANISHED
        if not (missing & (table.flow["ifindex"][waiting] == port.ifindex)).any():
            port.refill_seconds = now - port.refill_began
            port.refill_began = None
            log.info("%s: rules that had vanished are back after %.2f s", port.name, port.refill_seconds)
