# SPDX-License-Identifier: Apache-2.0
"""The network function for the engine: entries become orders, orders get marks, marks lead to targets.

Change ──► data plane: targets, entries
└──────► queue ──► read_events(): WITHDRAWN, ORDERED, TARGET_GONE ──► engine ──► publish(), retire()
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nfcore.api.context import Context
from nfcore.api.flows import ANY_CPU, FLOW_ROW, FlowBatch, FlowMatch, ReportKind, join_rows
from nfcore.api.marks import MarkMeaning
from nfcore.api.network_function import Explanation, NetworkFunction, TargetFacts
from nfcore.api.reasons import reason_sentence
from nfcore.api.rules import Device

from .data_plane import DataPlane
from .entries import Target
from .facts import Facts
from .layouts import ENTRY
from .matches import Matches, covered_by, match_names
from .table import Change, Table
from .targets import Targets

NAME = "flow_actions"
log = logging.getLogger(__name__)
SETTLE_STEP, SETTLE_PATIENCE = 0.0005, 2.0
"""Seconds between two looks whether the NICs have followed a change, and after which the change goes on without."""

QUICK_TURNS = 20
"""Turns of the event loop in which a change looks again without a pause."""
LAST_CHANGES, FEW_ENTRIES = 1_000, 1_000
"""Up to so many new entries are compared with flows one by one; of more, all entries are asked for."""
FRESH = 0.2
"""Seconds for which counters that were read count as fresh: who asks all the time must not keep the NICs busy."""


class FlowActions(NetworkFunction):
    """Carries out changes of the table, and is what the engine knows of flow_actions."""

    name = NAME
    number = 0

    def __init__(self, context: Context, table: Table, data_plane: DataPlane) -> None:
        self.table, self.data_plane = table, data_plane
        self.program = data_plane.program
        self.meaning = context.strategy.meaning if context.strategy is not None else None
        self.matches = Matches(table.rows)
        self.targets_in_use = Targets(data_plane, data_plane.sizes.links)
        self.context = context
        self._ifindexes = [device.ifindex for device in context.devices_of(NAME) if device.backends]
        self.orders = table.capacity * len(self._ifindexes)
        self.claim_changes = 0
        self.is_attached = False
        self._fresh_until = 0.0
        self._queue: deque[FlowBatch] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._target_of: dict[int, int] = {}
        """Published mark → target."""
        self._marks_of: Counter[int] = Counter()
        """Target → number of published marks that lead to it."""
        self._resting: set[int] = set()
        """Targets that no entry has, but perhaps a mark."""
        self._digest = b""
        self._serials: NDArray[np.uint64] = np.zeros(table.capacity, dtype=np.uint64)
        """Slot → how many entries were added before this one, and one: by it the entry of an ended rule is known."""
        self._added = 0
        self._last_added: deque[NDArray[np.void]] = deque(maxlen=LAST_CHANGES)
        """What each of the last changes has added, back to one that has added more than FEW_ENTRIES."""

    def close(self) -> None:
        """Close the data plane."""
        os.close(self._wake)
        self.data_plane.close()

    # Changes

    def apply(self, change: Change) -> None:
        """Carry out a planned change, as a whole or not at all, and commit it. HostError: what cannot be done."""
        # A trace shows what would be done on the machine that the TOML is for.
        self.targets_in_use.write(change.new_targets, may_miss=change.restored or self.context.tracing)
        try:
            self._write_entries(change)
        except BaseException:
            self.targets_in_use.release(list(change.new_targets))
            raise
        self._note_meaning(change)
        self.table.commit(change)
        self.matches.remove(change.removed)
        self.matches.add(change.added)
        self._serials[change.added["slot"]] = np.arange(self._added + 1, self._added + 1 + len(change.added))
        self._added += len(change.added)
        self._resting |= set(change.gone_targets)
        self.claim_changes += 1
        if len(change.added) <= FEW_ENTRIES:
            self._last_added.append(change.added)
        else:  # of no use there, and large
            self._last_added.clear()
        self._queue_orders(change)

    def _note_meaning(self, change: Change) -> None:
        """Note which targets a change brings and ends, as far as marks may lead to them: drops have none."""
        new = [(number, target) for number, target in change.new_targets.items() if target.action != "drop"]
        gone = [number for number in change.gone_targets if self.table.targets[number].action != "drop"]
        if new or gone:
            text = repr((self._digest, new, gone))
            self._digest = hashlib.blake2b(text.encode(), digest_size=8).digest()

    def _write_entries(self, change: Change) -> None:
        added = set(match_names(change.added))
        # One whose match is added again is replaced, so that there is no moment without it.
        only_removed = np.array([name not in added for name in match_names(change.removed)], dtype=bool)
        self.data_plane.remove(change.removed[only_removed])
        try:
            if not change.restored:
                self.data_plane.reset(change.added["slot"].copy())
            self.data_plane.add(change.added)
        except BaseException:
            self.data_plane.add(change.removed[only_removed])
            raise

    def _queue_orders(self, change: Change) -> None:
        """Tell the engine, for each device with a backend. Withdrawn orders come first."""
        gone = np.zeros(len(change.gone_targets), dtype=change.added.dtype)
        gone["target"] = change.gone_targets
        drops = [number for number, target in self.table.targets.items() if target.action == "drop"]
        kinds = np.where(np.isin(change.offloadable["target"], drops), ReportKind.ORDERED_DROP, ReportKind.ORDERED)
        batches = [
            self._flows(change.withdrawn, ReportKind.WITHDRAWN),
            self._flows(change.offloadable, kinds),
            self._flows(gone, ReportKind.TARGET_GONE),
        ]
        rows = join_rows((batch.rows for batch in batches), FLOW_ROW)
        if len(rows):
            self._queue.append(FlowBatch(rows))
        # Also without an order: the change is answered when the engine has looked at the new claims.
        os.eventfd_write(self._wake, 1)

    def _flows(self, entries: NDArray[np.void], kinds: NDArray[np.int64] | ReportKind) -> FlowBatch:
        """Give entries as flows of each device that has a backend."""
        count = len(self._ifindexes)
        batch = FlowBatch.empty(len(entries) * count)
        rows = batch.rows
        repeated = np.repeat(entries, count)
        rows["key"], rows["family"], rows["target"] = repeated["key"], repeated["family"], repeated["target"]
        rows["packets"] = self._serials[repeated["slot"]]
        rows["kind"] = kinds if isinstance(kinds, ReportKind) else np.repeat(kinds, count)
        rows["ifindex"], rows["nf"], rows["cpu"] = np.tile(self._ifindexes, len(entries)), self.number, ANY_CPU
        return batch

    async def settle(self) -> None:
        """Wait until no NIC does what the last changes have ended: from then on each packet meets the new entries."""
        loop = asyncio.get_running_loop()
        end = loop.time() + SETTLE_PATIENCE
        turns = 0
        while self._queue or not self.context.services.claims_settled(self):
            if loop.time() > end:
                log.warning("%s: the NIC has not followed a change within %.0f s", NAME, SETTLE_PATIENCE)
                return
            # The engine's next turn is enough where no NIC has to do anything.
            await asyncio.sleep(SETTLE_STEP if turns > QUICK_TURNS else 0)
            turns += 1

    async def refresh(self) -> None:
        """Have the counters of the NICs read, unless that has just been done, and wait until it is done."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._fresh_until:
            return
        self._fresh_until = loop.time() + FRESH
        is_done = self.context.services.read_counters()
        end = loop.time() + SETTLE_PATIENCE
        while not is_done() and loop.time() < end:
            await asyncio.sleep(SETTLE_STEP)

    def _release_rested(self) -> None:
        """Let numbers of targets be used again to which no mark leads, and to which none will be given."""
        if self._queue:
            return
        free = [number for number in self._resting if not self._marks_of[number]]
        self._resting -= set(free)
        self.targets_in_use.release(free)
        self.table.release_targets(free)

    # For the engine

    def wake_fds(self) -> Sequence[int]:
        """Give the descriptor that is readable when there are orders."""
        return (self._wake,)

    def read_events(self, limit: int) -> FlowBatch:
        """Give the orders of one change, at most `limit`."""
        if not self._queue:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            self._release_rested()
            return FlowBatch.empty()
        batch = self._queue.popleft()
        if len(batch) > limit:
            self._queue.appendleft(batch[limit:])
            batch = batch[:limit]
        rows = batch.rows
        # Only targets that have a mark are news to the engine.
        unmarked = [number for number in np.unique(rows["target"]).tolist() if not self._marks_of[number]]
        news: NDArray[np.bool_] = (rows["kind"] != ReportKind.TARGET_GONE) | ~np.isin(rows["target"], unmarked)
        return batch[news]

    def targets(self) -> FlowBatch:
        """Give all targets that marks may lead to."""
        marked = [number for number, target in self.table.targets.items() if target.action != "drop"]
        batch = FlowBatch.empty(len(marked) if self._ifindexes else 0)
        batch.rows["nf"] = self.number
        batch.rows["target"] = marked[: len(batch)]
        return batch

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Put all into one group: no share limits what was ordered."""
        return np.zeros(len(targets), dtype=np.uint32)

    def describe(self, target: int) -> Mapping[str, str]:
        """Name the action of a target."""
        found = self.table.targets.get(target)
        return {"action": action_text(found) if found is not None else f"target {target}"}

    def target_facts(self, target: int) -> TargetFacts:
        """Give the keys of an entry that has the target: ``action`` and its parameters."""
        found = self.table.targets.get(target)
        return TargetFacts(own=found.parameters() if found is not None else {})

    def fingerprint(self) -> bytes:
        """Give a digest of the targets and their numbers; nothing for flow-id, whose marks show their flows."""
        return b"" if self.meaning is MarkMeaning.FLOW else self._digest

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Fill in the targets of rules of an earlier run that an entry would order just so."""
        rows = batch.rows
        slots = self.matches.find(rows["key"], rows["family"])
        known: NDArray[np.bool_] = (slots >= 0) & (rows["kind"] != ReportKind.SHOWN)
        at = np.where(known, slots, 0)
        known &= self.table.offload[at] & (self.table.beaten_by[at] == 0)
        rows["target"], rows["packets"] = self.table.rows["target"][at], self._serials[at]
        drops = np.array([self.table.targets[number].action == "drop" for number in rows["target"][known].tolist()])
        known[known] = drops == (rows["kind"][known] == ReportKind.ORDERED_DROP)
        marked = known & (rows["kind"] != ReportKind.ORDERED_DROP)
        if self.meaning is MarkMeaning.FLOW:
            self.publish(batch[marked], marks[marked])
        else:
            targets = [self._target_of.get(mark, 0) for mark in marks[marked].tolist()]
            known[marked] = rows["target"][marked] == targets
        return known

    def attached(self, device: Device) -> None:
        """Note that what is pinned has a user from now on."""
        self.is_attached = True

    def claims(self, batch: FlowBatch, since: int | None = None) -> NDArray[np.bool_]:
        """Claim flows that an entry matches; with `since`, only entries of later changes, as long as these are few."""
        keys, families = batch.rows["key"], batch.rows["family"]
        if since is not None and self.claim_changes - since <= len(self._last_added):
            newest = list(self._last_added)[len(self._last_added) - (self.claim_changes - since) :]
            rows = join_rows(newest, ENTRY)
            if len(rows) <= FEW_ENTRIES:
                return covered_by(rows, keys, families)
        return self.matches.covered(keys, families)

    def publish(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Write what the marks lead to: per row, whether it is still an action of an entry."""
        wanted = batch.rows["target"].astype(np.uint32)
        good: NDArray[np.bool_] = np.isin(wanted, list(self.table.targets))
        if self.meaning is MarkMeaning.FLOW:
            slots = self.matches.find(batch.rows["key"], batch.rows["family"])
            good &= slots >= 0
            good[good] = self.table.rows["target"][slots[good]] == wanted[good]
            self.data_plane.publish_flows(marks[good], self.table.rows[slots[good]])
        else:
            self.data_plane.publish_targets(marks[good], wanted[good])
        for mark, target in zip(marks[good].tolist(), wanted[good].tolist(), strict=True):
            before = self._target_of.get(mark)
            if before != target:
                self._forget_mark(mark)
                self._target_of[mark] = target
                self._marks_of[target] += 1
        return good

    def retire(self, marks: NDArray[np.uint32]) -> None:
        """Let the marks lead to nothing."""
        self.data_plane.retire(marks)
        for mark in marks.tolist():
            self._forget_mark(mark)
        self._release_rested()

    def _forget_mark(self, mark: int) -> None:
        target = self._target_of.pop(mark, None)
        if target is not None:
            self._marks_of[target] -= 1

    def rules_ended(self, batch: FlowBatch, counts: NDArray[np.uint64], idle: NDArray[np.float64]) -> None:
        """Add what rules have counted that are gone to their entries, if these are still there."""
        slots = self.matches.find(batch.rows["key"], batch.rows["family"])
        serials = batch.rows["packets"]
        known = (slots >= 0) & ((serials == 0) | (serials == self._serials[np.maximum(slots, 0)]))
        ended = self.data_plane.ended
        np.add.at(ended["packets"], slots[known], counts[known, 0])
        np.add.at(ended["bytes"], slots[known], counts[known, 1])
        seen = known & np.isfinite(idle)
        last_seen = time.monotonic_ns() - (idle[seen] * 1e9).astype(np.int64)
        np.maximum.at(ended["last_seen"], slots[seen], last_seen.astype(np.uint64))

    # Questions

    def explain(self, match: FlowMatch) -> Explanation | None:
        """Name the entry that packets with a 5-tuple, or with a masked match itself, belong to."""
        key = match.to_key()
        slot: int | None = int(self.matches.find(np.array([key]), np.array([match.family]))[0])
        if slot == -1:
            slot = self.matches.winner(key, match.family)
        if slot is None:
            return None
        row = self.table.rows[slot : slot + 1]
        text = f"entry {self.table.name_of(slot)!r}: {action_text(self.table.target(slot))}"
        why = self._why_not_ordered(slot)
        ordered = FlowBatch.empty() if why else self._flows(row, ReportKind.ORDERED)
        return Explanation(f"{text}; not in hardware: {why}" if why else text, ordered)

    def _why_not_ordered(self, slot: int) -> str:
        """Say why no NIC is to have a rule for an entry; empty when it may have one."""
        if not self.table.offload[slot]:
            return "its offload is false"
        if self.table.is_shadowed(slot):
            others = ", ".join(repr(name) for name in self.table.shadowed_by(slot))
            return f"it overlaps entries that win over it ({others}), and rules of a NIC have no order"
        if not self._ifindexes:
            return "no interface with flow_actions in its chain has an offload backend"
        return ""

    def facts(self, slots: NDArray[np.int64]) -> Facts:
        """Give what is known of the entries in these slots."""
        looked_up = self.data_plane.counts(slots.astype(np.uint32))
        rows = self.table.rows[slots]
        flows = self.context.services.flow_facts(self._flows(rows, ReportKind.ORDERED))
        shape = (len(slots), len(self._ifindexes))
        hardware = flows.counts.reshape(*shape, 2).sum(axis=1, dtype=np.uint64)
        hardware[:, 0] += self.data_plane.ended["packets"][slots]
        hardware[:, 1] += self.data_plane.ended["bytes"][slots]
        now = time.monotonic_ns()
        seen = np.maximum(looked_up["last_seen"], self.data_plane.ended["last_seen"][slots]).astype(np.float64)
        idle = np.where(seen > 0, np.maximum(now - seen, 0) / 1e9, np.inf)
        idle = np.minimum(idle, flows.idle.reshape(shape).min(axis=1, initial=np.inf))
        in_hardware: NDArray[np.bool_] = flows.in_hardware.reshape(shape).sum(axis=1) == max(len(self._ifindexes), 1)
        reasons = flows.reason.reshape(shape).max(axis=1, initial=0)
        return Facts(
            packets=looked_up["packets"] + hardware[:, 0],
            bytes=looked_up["bytes"] + hardware[:, 1],
            idle=idle,
            in_hardware=in_hardware,
            hardware_packets=hardware[:, 0],
            why=[
                "" if held_everywhere else self._why_not_ordered(slot) or waiting_text(reason)
                for slot, held_everywhere, reason in zip(
                    slots.tolist(), in_hardware.tolist(), reasons.tolist(), strict=True
                )
            ],
        )


def action_text(target: Target) -> str:
    """Write an action with its parameters, such as ``redirect interface=eth2``."""
    parameters = target.parameters()
    require = parameters.pop("require", None)
    words = [str(parameters.pop("action")), *(f"{key}={value}" for key, value in parameters.items())]
    if target.entry:
        words.append(f"(of entry {target.entry!r})")
    if require:
        words.append("require " + ",".join(f"{key}={value}" for key, value in require.items()))
    return " ".join(words)


def waiting_text(reason: int) -> str:
    """Say why an ordered flow has no rule; `reason` is the engine's."""
    return reason_sentence(reason) if reason else "it waits for a rule"
