# SPDX-License-Identifier: Apache-2.0
"""The end of rules: counters that stand still, places that hotter flows deserve, targets that are gone.

    restore_flows ─► rule removed ─► grace ─► entry retired ─► mark in quarantine

What the NIC holds is compared with what it should hold each time that the counters are read.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..api.context import NetworkFunction
from ..api.flows import FLOW_KEY
from ..api.reasons import Reason
from ..api.rules import RuleBatch, split_cookies
from ..devices.device_state import Port
from ..devices.rule_counters import Counts, counts_of
from ..devices.worker import Dump, Removal
from .event_log import EventKind
from .eviction import patience, replaceable
from .flow_table import FlowState
from .state import ACTIVE, IN_HARDWARE, Floor

log = logging.getLogger(__name__)
SHORTEST_POLL, LONGEST_POLL = 0.1, 5.0
"""Seconds between two readings of the counters."""
DOOMED = (Reason.TARGET_GONE, Reason.MOVED, Reason.SWITCHED_OFF)
"""Ends that are pursued until the rule is gone. Said of a flow whose rule is on its way, they wait for it."""
UNRESTORABLE = (Reason.TARGET_GONE, Reason.MOVED)
"""Ends after which the slow path knows better than the mark where the flow goes."""


def _keys(rows: NDArray[np.void]) -> NDArray[np.uint8]:
    """Give the bytes of the flow keys that flows, as well as rules with counters, begin with."""
    raw = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    return raw[:, : FLOW_KEY.itemsize]


class Ended(NamedTuple):
    """Flows that have ended because their target is gone."""

    accelerated: int
    """Had a rule, or one on its way."""
    waiting: int
    """Waited for a rule, and get none."""


class Retirement:
    """Ends rules, and finds those that have to end."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._graces: deque[tuple[float, NDArray[np.int64]]] = deque()
        self._mark_graces: deque[tuple[float, dict[int, NDArray[np.uint32]]]] = deque()

    def run(self) -> None:
        """Do what time asks for: grace periods that have passed, counters to read."""
        now = self._floor.clock()
        while self._graces and self._graces[0][0] <= now:
            slots = self._graces.popleft()[1]
            self._floor.settle(slots, self._floor.table.reason[slots])
        while self._mark_graces and self._mark_graces[0][0] <= now:
            self._floor.marks.end(self._mark_graces.popleft()[1])
        if not self._mark_graces and self._floor.marks.ending:
            self._begin_mark_graces(now)
        for port in self._floor.ports.values():
            if now >= port.next_poll:
                self._poll(port, now)

    def _begin_mark_graces(self, now: float) -> None:
        table = self._floor.table
        unused = self._floor.marks.unused(table.mark[table.slots_in(*ACTIVE)])
        if unused:
            self._mark_graces.append((now + self._floor.offload.grace, unused))

    # Counters

    def _poll(self, port: Port, now: float) -> None:
        port.next_poll = now + min(max(self._patience(port) / 4, SHORTEST_POLL), LONGEST_POLL)
        if port.polling or not port.accelerated:
            return
        self._end_again(port)

        def done(result: Dump | Exception) -> None:
            port.polling = False
            if isinstance(result, Exception):
                self._floor.ledger.say_once(f"counters of {port.name} cannot be read: {result}")
            else:
                self.counted(port, result, now)

        # The answer may come before `submit` returns.
        port.polling = True
        if not port.worker.submit(port.backends.dump, done):
            port.polling = False

    def _patience(self, port: Port) -> float:
        held = self._floor.table.count(*IN_HARDWARE)
        room = held if port.full else self._floor.offload.max_rules
        return patience(self._floor.offload.idle_timeout, held, room)

    def counted(self, port: Port, dump: Dump, asked: float) -> None:
        """Compare the flow table with what the NIC holds. `asked`: since when the dump may have been read."""
        floor, table, now = self._floor, self._floor.table, self._floor.clock()
        ours, slots, _ = split_cookies(dump.rows["rule"]["cookie"])
        known = self._accounted_for(port, dump)
        self._remove_orphans(port, dump, ours & ~known)
        leaving = known.copy()
        leaving[leaving] &= table.state[slots[leaving]] == FlowState.DRAINING
        self._count(port, slots[leaving], counts_of(dump.rows[leaving]))
        known[known] &= table.state[slots[known]] == FlowState.INSTALLED
        slots = slots[known]
        self._note(port, slots, dump.rows[known], asked)
        held = table.slots_in(FlowState.INSTALLED)
        held = held[(table.flow["ifindex"][held] == port.ifindex) & np.isin(table.backend[held], dump.answered)]
        there = np.zeros(len(table.state), dtype=bool)
        there[slots] = True
        self._vanished(port, held[~there[held]], now)
        held = held[there[held]]
        held = held[~np.isin(table.reason[held], DOOMED)]
        # All that the NIC had counted `counter_lag` before the dump shows in it; the dump itself may be old by now.
        silence = asked - table.seen[held] - floor.offload.counter_lag
        idle = silence >= self._patience(port)
        self.end(held[idle], Reason.IDLE)
        self._replace(port, held[~idle])
        port.polled = asked
        port.counted[dump.answered] = asked

    def _accounted_for(self, port: Port, dump: Dump) -> NDArray[np.bool_]:
        """Rules of ours that belong to flows which are on their way to the NIC, in it, or on their way out."""
        table = self._floor.table
        known, slots, generations = split_cookies(dump.rows["rule"]["cookie"])
        known &= slots < len(table.state)
        known[known] &= table.generation[slots[known]] == generations[known]
        known[known] &= table.flow["ifindex"][slots[known]] == port.ifindex
        # The cookies of a run before this, which found the NIC deaf at its start, may be the same.
        known[known] &= table.mark[slots[known]] == dump.rows["rule"]["mark"][known]
        known[known] &= (_keys(dump.rows)[known] == _keys(table.batch(slots[known]).rows)).all(axis=1)
        state, backend = table.state[slots[known]], table.backend[slots[known]]
        # Which backend takes a rule that is on its way is not known yet.
        in_place = np.isin(state, (FlowState.INSTALLED, FlowState.DRAINING)) & (backend == dump.backend[known])
        known[known] &= in_place | (state == FlowState.PENDING)
        return known

    def _note(self, port: Port, slots: NDArray[np.int64], rows: NDArray[np.void], asked: float) -> None:
        """Keep the counters, and how fast they grow."""
        table = self._floor.table
        before = table.packets[slots]
        packets = rows["packets"]
        # A counter that is less than it was is another rule's, or began anew: what it shows is what is new.
        grown = np.where(packets >= before, packets - before, packets).astype(np.float64)
        counted = port.counted[table.backend[slots]]
        interval = np.maximum(asked - counted, SHORTEST_POLL)
        rates = grown / interval
        # Two dumps tell a rate when the counter had begun to move by the first. Until then the slow path's stands.
        settled = counted - table.since[slots] - self._floor.offload.counter_lag
        average = np.where(settled < interval, rates, (table.rate[slots] + rates) / 2)
        table.rate[slots] = np.where(settled >= 0, average, table.rate[slots])
        table.seen[slots[packets != before]] = self._floor.clock()
        self._count(port, slots, counts_of(rows))

    def _count(self, port: Port, slots: NDArray[np.int64], now: Counts) -> None:
        """Take what the NIC shows for rules that are there, or were until now."""
        table = self._floor.table
        port.meter.count(table.backend[slots], table.counts(slots), now)
        table.packets[slots], table.bytes[slots] = now[:, 0], now[:, 1]

    def _vanished(self, port: Port, slots: NDArray[np.int64], now: float) -> None:
        """Let flows wait again whose rules the NIC no longer has though nobody here removed them."""
        floor = self._floor
        port.freed(len(slots))
        self._end_counts(port, slots)
        doomed = np.isin(floor.table.reason[slots], DOOMED)
        floor.table.move(slots[doomed], FlowState.DRAINING, now)
        self._gone(slots[doomed], now)
        slots = slots[~doomed]
        if not len(slots):
            return
        floor.ledger.counts["vanished"] += len(slots)
        floor.events.record(
            EventKind.VANISHED,
            floor.opaque(slots),
            reason=Reason.VANISHED,
            mark=floor.table.mark[slots],
            backend=floor.table.backend[slots],
        )
        if port.refill_began is None:
            port.refill_began = now
            log.warning("%s: %d rules are gone without our doing; putting them back", port.name, len(slots))
        # Their packets are on the slow path already, which must send them where their marks did.
        floor.restore(floor.table.batch(slots))
        floor.table.reason[slots], floor.table.due[slots] = Reason.VANISHED, 0.0
        floor.table.seen[slots] = now
        floor.table.move(slots, FlowState.WAITING, now)

    def _remove_orphans(self, port: Port, dump: Dump, which: NDArray[np.bool_]) -> None:
        """Take rules of ours off the NIC that no flow accounts for, such as those whose answer was lost."""
        if not which.any():
            return
        rules, backend = RuleBatch(np.ascontiguousarray(dump.rows["rule"][which])), dump.backend[which]
        shown = counts_of(dump.rows[which])

        def done(result: Removal | Exception) -> None:
            if isinstance(result, Exception) or not result.gone.any():
                return
            number = int(np.count_nonzero(result.gone))
            self._floor.ledger.counts["orphans_removed"] += number
            words = f"{number:,} rules of ours that belonged to no flow were removed"
            self._floor.events.note(EventKind.NIC, words, port.name)
            last, of = np.maximum(shown, result.counted)[result.gone], backend[result.gone]
            port.meter.count(of, np.zeros_like(last), last)
            port.meter.end(of, last)

        port.worker.submit(lambda: port.backends.remove(rules, backend), done)

    def _replace(self, port: Port, installed: NDArray[np.int64]) -> None:
        """Let the coldest rules go when there is no room for waiting flows that are much hotter, or none at all."""
        floor, table = self._floor, self._floor.table
        # More than `max_rules` after a reload that lowered it; what goes already counts.
        surplus = max(0, -floor.places - table.count(FlowState.DRAINING))
        if not surplus and not self._is_crowded(port):
            return
        installed = installed[np.argsort(table.rate[installed], kind="stable")]
        self.end(installed[:surplus], Reason.REPLACED)
        installed = installed[surplus:]
        if not self._is_crowded(port):
            return
        # Of rules that count nothing it is not known who deserves a place more.
        installed = installed[~np.isin(table.backend[installed], port.blind)]
        # Only of those that two dumps have told the rate.
        installed = installed[
            port.counted[table.backend[installed]] - table.since[installed] >= floor.offload.counter_lag
        ]
        waiting = table.slots_in(FlowState.WAITING)
        waiting = waiting[table.flow["ifindex"][waiting] == port.ifindex]
        # Places that are being vacated already are for the first of them.
        rates = np.sort(floor.heat(waiting))[::-1][table.count(FlowState.DRAINING) :]
        count = min(replaceable(table.rate[installed].astype(np.float64), rates), port.budget.available())
        self.end(installed[:count], Reason.REPLACED)

    def _is_crowded(self, port: Port) -> bool:
        """Whether flows wait and there is no room for them."""
        crowded = self._floor.places <= 0 or (port.full and not port.spare)
        return crowded and self._floor.table.count(FlowState.WAITING) > 0

    # Ends

    def end(self, slots: NDArray[np.int64], reason: Reason) -> None:
        """End flows that have a rule, or are about to. Those that wait are settled at once."""
        floor, table = self._floor, self._floor.table
        if not len(slots):
            return
        state = table.state[slots]
        floor.refuse(slots[state == FlowState.WAITING], reason)
        # While the worker has it, it cannot be called back: it goes as soon as it is there, or is tried again should
        # its removal, which is under way, fail.
        under_way = np.isin(state, (FlowState.PENDING, FlowState.DRAINING))
        self._doom(slots[under_way], reason)
        installed = slots[state == FlowState.INSTALLED]
        self._doom(installed, reason)
        restorable = ~np.isin(table.reason[installed], UNRESTORABLE) & (reason not in UNRESTORABLE)
        # Those that cannot be restored now would lose their target: they keep their rules.
        ready = ~restorable
        ready[restorable] = floor.restore(table.batch(installed[restorable]))
        installed = installed[ready]
        if reason not in DOOMED:
            table.reason[installed] = reason
        table.move(installed, FlowState.DRAINING, floor.clock())
        for port, mine in floor.by_port(installed):
            self._remove(port, mine)

    def _doom(self, slots: NDArray[np.int64], reason: Reason) -> None:
        """Note an end that is to be pursued; that a flow must not be restored is never forgotten."""
        if reason in DOOMED:
            reasons = self._floor.table.reason
            reasons[slots[~np.isin(reasons[slots], UNRESTORABLE)]] = reason

    def _remove(self, port: Port, slots: NDArray[np.int64]) -> None:
        floor, table = self._floor, self._floor.table
        rules, backend = floor.rules(slots), table.backend[slots].copy()

        def done(result: Removal | Exception) -> None:
            now = floor.clock()
            gone = np.zeros(len(slots), dtype=bool)
            if not isinstance(result, Exception):
                gone = result.gone
                # Less than a dump has shown before is what a NIC says that reads its counters now and then.
                self._count(port, slots[gone], np.maximum(table.counts(slots[gone]), result.counted[gone]))
                self._end_counts(port, slots[gone])
            port.freed(int(np.count_nonzero(gone)))
            self._gone(slots[gone], now)
            floor.ledger.counts["remove_failed"] += int(np.count_nonzero(~gone))
            left = slots[~gone]
            words = floor.events.text("its rule could not be removed") if len(left) else 0
            floor.events.record(
                EventKind.FAILED, floor.opaque(left), reason=table.reason[left], backend=backend[~gone], words=words
            )
            self._stays(slots[~gone], now)

        if not port.worker.submit(lambda: port.backends.remove(rules, backend), done):
            self._stays(slots, floor.clock())

    def _end_counts(self, port: Port, slots: NDArray[np.int64]) -> None:
        """Keep what rules that are gone have counted."""
        table = self._floor.table
        port.meter.end(table.backend[slots], table.counts(slots))
        table.end_counts(slots)

    def _gone(self, slots: NDArray[np.int64], now: float) -> None:
        """Let the grace period begin for flows whose rules are off the NIC."""
        if len(slots):
            table = self._floor.table
            self._floor.ledger.end(table.reason[slots])
            self._floor.events.ended(
                self._floor.opaque(slots),
                table.reason[slots],
                mark=table.mark[slots],
                backend=table.backend[slots],
                # With those of rules that it had before and lost; what this one had counted is among them by now.
                packets=table.past_packets[slots] + table.packets[slots],
                bytes_=table.past_bytes[slots] + table.bytes[slots],
            )
            self._graces.append((now + self._floor.offload.grace, slots))

    def _stays(self, slots: NDArray[np.int64], now: float) -> None:
        """Go on tracking flows whose rules are still on the NIC: the next look at the counters finds them again."""
        table = self._floor.table
        table.move(slots, FlowState.INSTALLED, now)
        table.reason[slots[~np.isin(table.reason[slots], DOOMED)]] = Reason.ADMIT

    def end_targets(self, nf: NetworkFunction, targets: NDArray[np.uint64]) -> Ended:
        """End all flows to targets that exist no more, whose marks the NF has made void already; which those were."""
        table = self._floor.table
        self._floor.marks.begin_end(nf, targets)
        slots = table.slots_in(FlowState.WAITING, *IN_HARDWARE)
        mine = slots[(table.flow["nf"][slots] == nf.number) & np.isin(table.flow["target"][slots], targets)]
        states = table.state[mine]
        accelerated = int(np.count_nonzero(np.isin(states, (FlowState.INSTALLED, FlowState.PENDING))))
        ended = Ended(accelerated, int(np.count_nonzero(states == FlowState.WAITING)))
        self.end(mine, Reason.TARGET_GONE)
        return ended

    def _end_again(self, port: Port) -> None:
        """Try again to end rules that could not be removed though they must not stay."""
        table = self._floor.table
        installed = table.slots_in(FlowState.INSTALLED)
        installed = installed[np.isin(table.reason[installed], DOOMED)]
        installed = installed[table.flow["ifindex"][installed] == port.ifindex]
        for reason in DOOMED:
            self.end(installed[table.reason[installed] == reason], reason)
