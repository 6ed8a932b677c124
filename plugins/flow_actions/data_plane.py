# SPDX-License-Identifier: Apache-2.0
"""The data plane: its program and maps, and their changes while packets flow.

::

    add     ── hash map, then filter ──►  ┐
    remove  ── filter, then hash map ──►  ├─► bpf/flow_actions/flow_actions.c
    set_targets, set_link, set_cpu ────►  │
    publish_… , retire ── marks ───────►  ┘
    counts, totals ◄── counters of all CPUs

All methods belong to one thread.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nfcore.api.marks import MarkMeaning
from nfcore.errors import HostError
from nfcore.kernel import BPF_SOURCES, BatchResult, Closing, Map, Program, compile_program

from . import layouts as lay
from .filters import Batch, Filter
from .maps import COUNTS, ENDED, Sizes, open_maps

PROGRAM = "flow_actions_ingress"
SOURCE = BPF_SOURCES / "flow_actions" / "flow_actions.c"
CLOCK_SOURCE = SOURCE.with_name("clock.c")
_MONOTONIC_COARSE = 6
"""CLOCK_MONOTONIC_COARSE of linux/time.h, which Python does not name. Its resolution is a timer tick."""
FULL_BUCKET = -(1 << 62)
"""Clock of a rate limit that has not been used yet."""
CPU_QUEUE = 2048
"""Packets that wait for another CPU at most."""


@dataclass(frozen=True)
class Totals:
    """Counters of the whole program, summed over the CPUs."""

    actions: NDArray[np.uint64]
    """Packets, by :class:`.layouts.Path` and :class:`.layouts.Action`."""
    others: NDArray[np.uint64]
    """By :class:`.layouts.Other`."""


class _Clock:
    """Gives the time of timer ticks, by which the datapath notes when it has seen an entry's last packet."""

    def __init__(self, program: Program, ticks: NDArray[np.uint64]) -> None:
        self._program, self._ticks = program, ticks
        self._tick_ns = round(time.clock_getres(_MONOTONIC_COARSE) * 1e9)

    def to_ns(self, ticks: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Give the nanoseconds of the monotonic clock, exact to a tick; 0 stays 0."""
        self._program.test_run(bytes(64))
        now = time.monotonic_ns()
        ages = (self._ticks[0] - ticks).astype(np.int64) * self._tick_ns
        return np.where(ticks == 0, 0, np.maximum(now - ages, 1)).astype(np.uint64)


class _Family:
    """Entries of one family: hash map, filter, and the keys that are in both."""

    def __init__(self, family: int, maps: Mapping[str, Map], sizes: Sizes) -> None:
        self.family = family
        self._entries = maps[f"flow_entries_v{family}"]
        random = np.frombuffer(os.urandom(8 * Filter.random_numbers()), dtype=np.uint64)
        memory = maps[f"flow_filter_v{family}"].mmap()
        self.filter = Filter(memory, family, sizes.filter_log2, random)
        self._present: set[bytes] = set()
        self._limit = sizes.entries

    def plan(self, entries: NDArray[np.void]) -> _Addition:
        """Check an addition. ValueError, HostError: nothing has changed."""
        batch = self.filter.prepare(entries["key"], create=True)
        names = _key_names(batch)
        distinct = set(names)
        try:
            if len(distinct) < len(names):
                raise ValueError(f"two entries of IPv{self.family} in one call match the same")
            new = distinct - self._present
            if len(self._present) + len(new) > self._limit:
                room = self._limit - len(self._present)
                raise HostError(
                    f"the table of IPv{self.family} entries is full: {len(new):,} new ones, room for {room:,} of "
                    f"{self._limit:,}"
                )
        except BaseException:
            self.filter.shapes.release_unused()
            raise
        values = np.zeros(len(entries), dtype=lay.FLOW_ENTRY)
        for name in ("slot", "target", "precedence"):
            values[name] = entries[name]
        is_new = (
            np.ones(len(names), dtype=np.bool_)
            if len(new) == len(names)
            else np.fromiter((name in new for name in names), np.bool_, len(names))
        )
        return _Addition(self, batch, values, is_new, new)

    def write(self, addition: _Addition) -> BatchResult:
        """Write the hash map."""
        return self._entries.update_batch(addition.batch.keys, addition.values)

    def read(self, batch: Batch) -> NDArray[np.void]:
        """Read the present values of keys."""
        values: NDArray[np.void] = self._entries.lookup_batch_keys(batch.keys)[1]
        return values

    def finish(self, addition: _Addition) -> None:
        """Let the datapath look for what was written."""
        if addition.new:
            all_new = len(addition.new) == len(addition.is_new)
            self.filter.add(addition.batch if all_new else addition.batch.where(addition.is_new))
            self._present |= addition.new

    def undo(self, addition: _Addition, before: NDArray[np.void]) -> None:
        """Give the hash map the state before an addition that was not finished."""
        kept = ~addition.is_new
        self._entries.delete_batch(addition.batch.keys[addition.is_new])
        if kept.any():
            self._entries.update_batch(addition.batch.keys[kept], before)

    def remove(self, entries: NDArray[np.void]) -> None:
        """Remove those entries that are there."""
        batch = self.filter.prepare(entries["key"], create=False)
        gone = dict.fromkeys(_key_names(batch))
        present = [name for name in gone if name in self._present]
        if len(present) < len(batch.bits):
            names, chosen = _key_names(batch), set(present)
            first = {name: row for row, name in reversed(list(enumerate(names))) if name in chosen}
            batch = batch.where(np.array(sorted(first.values()), dtype=np.intp))
        self.filter.remove(batch)
        self._entries.delete_batch(batch.keys)
        self._present.difference_update(present)


@dataclass(frozen=True)
class _Addition:
    """Entries of one family that are to be added, or to replace others."""

    to: _Family
    batch: Batch
    values: NDArray[np.void]
    is_new: NDArray[np.bool_]
    """Per row."""
    new: set[bytes]
    """Their keys."""


def _key_names(batch: Batch) -> list[bytes]:
    """The keys as bytes. Those without a shape (bit -2) equal no key that is present."""
    raw = batch.keys.tobytes()
    size = batch.keys.itemsize
    names = [raw[at : at + size] for at in range(0, len(raw), size)]
    if (batch.bits == -2).any():
        names = [b"" if bit == -2 else name for name, bit in zip(names, batch.bits.tolist(), strict=True)]
    return names


class DataPlane(Closing):
    """The loaded program and its maps. A context manager."""

    def __init__(
        self,
        program: Program,
        clock: Program,
        maps: dict[str, Map],
        sizes: Sizes,
        meaning: MarkMeaning | None,
        owned: ExitStack,
    ) -> None:
        """Take over what :meth:`open` has opened."""
        self.program, self.maps, self.sizes, self.meaning = program, maps, sizes, meaning
        self._owned = owned
        self._clock = _Clock(clock, maps["flow_clock"].mmap())
        self._families = [_Family(family, maps, sizes) for family in (4, 6)]
        self._targets, self._police = maps["flow_targets"].mmap(), maps["flow_police"].mmap()
        self._counts = maps[COUNTS].mmap().reshape(-1, sizes.entries)
        self.ended = maps[ENDED].mmap()
        """:data:`.layouts.RULE_COUNT` by slot: what rules have counted that are gone. The program does not know it."""
        """By CPU and slot."""
        self._marks = None if meaning is None else maps["flow_marks"].mmap()

    @classmethod
    def open(
        cls,
        sizes: Sizes,
        meaning: MarkMeaning | None,
        defines: Mapping[str, int | str],
        chain_maps: Mapping[str, Map],
        pin_dir: Path | None,
    ) -> Self:
        """Create the maps and load the program. HostError says why that is not possible.

        `defines`: CARRIER_…, MISSING_INTERFACE, perhaps MARKED_LOOK_UP and CHAIN_NEXT. With `pin_dir` the counters
        of an earlier run go on.
        """
        with ExitStack() as stack:
            maps = open_maps(sizes, meaning, pin_dir)
            for each in maps.values():
                stack.callback(each.close)
            flags: dict[str, int | str] = {"FILTER_LOG2": sizes.filter_log2, "SLOTS": f"{sizes.entries}u", **defines}
            if meaning is not None:
                flags["MARK_IS_FLOW" if meaning is MarkMeaning.FLOW else "MARK_IS_TARGET"] = 1
            program = compile_program(SOURCE, PROGRAM, defines=flags, maps={**maps, **chain_maps})
            stack.callback(program.close)
            ticks = {"flow_clock": maps["flow_clock"]}
            clock = compile_program(CLOCK_SOURCE, "flow_clock", defines={}, maps=ticks)
            stack.callback(clock.close)
            return cls(program, clock, maps, sizes, meaning, stack.pop_all())

    def close(self) -> None:
        """Close program and maps. Idempotent."""
        self._owned.close()

    # Entries

    def add(self, entries: NDArray[np.void]) -> None:
        """Add :data:`.layouts.ENTRY` rows, or replace those with the same key; all or nothing.

        ValueError: a key twice, a key that is not masked, or more than 64 shapes. HostError names what is full.
        """
        self._check_rows(entries)
        planned: list[_Addition] = []
        try:
            for family in self._families:
                rows = entries[entries["family"] == family.family]
                if len(rows):
                    planned.append(family.plan(rows))
            self._write_all(planned)
        except BaseException:
            for family in self._families:
                family.filter.shapes.release_unused()
            raise
        for addition in planned:
            addition.to.finish(addition)

    def _write_all(self, planned: Sequence[_Addition]) -> None:
        """Write all additions into their hash maps, or none."""
        before = [addition.to.read(addition.batch.where(~addition.is_new)) for addition in planned]
        for number, addition in enumerate(planned):
            result = addition.to.write(addition)
            if result.errno:
                for undone, values in zip(planned[: number + 1], before, strict=False):
                    undone.to.undo(undone, values)
                reason = "it is full" if result.errno == errno.E2BIG else os.strerror(result.errno)
                raise HostError(f"the kernel refuses entry {result.done} of IPv{addition.to.family}: {reason}")

    def _check_rows(self, entries: NDArray[np.void]) -> None:
        wrong = (entries["slot"] >= self.sizes.entries) | (entries["target"] > self.sizes.targets)
        wrong |= (entries["target"] == 0) | ((entries["family"] != 4) & (entries["family"] != 6))
        if wrong.any():
            row = entries[np.flatnonzero(wrong)[0]]
            raise ValueError(
                f"slot {row['slot']}, target {row['target']}, family {row['family']}; should be below "
                f"{self.sizes.entries}, from 1 to {self.sizes.targets}, and 4 or 6"
            )

    def remove(self, entries: NDArray[np.void]) -> None:
        """Remove the entries with these keys; those that are not there are skipped."""
        for family in self._families:
            rows = entries[entries["family"] == family.family]
            if len(rows):
                family.remove(rows)

    # What entries lead to

    def set_targets(self, numbers: NDArray[np.uint32], targets: NDArray[np.void]) -> None:
        """Write :data:`.layouts.TARGET` rows; the numbers should have no entry that leads to them. Rates start anew."""
        if len(numbers) and not 1 <= int(numbers.min()) <= int(numbers.max()) <= self.sizes.targets:
            raise ValueError(f"targets have numbers from 1 to {self.sizes.targets}")
        # The action is cleared first and set last: a packet in between goes on.
        self._targets["action"][numbers] = lay.Action.NOTHING
        self._police[numbers] = FULL_BUCKET
        for name in lay.TARGET.names[1:]:  # type: ignore[index]
            self._targets[name][numbers] = targets[name]
        self._targets["action"][numbers] = targets["action"]

    def set_link(self, slot: int, ifindex: int | None) -> None:
        """Let redirects to `slot` leave by an interface; None: by none. HostError when the kernel refuses it."""
        if ifindex is None:
            self.maps["flow_links"].delete(slot)
            return
        try:
            self.maps["flow_links"].update(slot, ifindex)
        except HostError as error:
            raise HostError(f"packets cannot be redirected to interface {ifindex}: {error}") from error

    def set_cpu(self, cpu: int) -> None:
        """Make a CPU one that packets can be handed to. HostError with the kernel's reason."""
        try:
            self.maps["flow_cpus"].update(cpu, CPU_QUEUE)
        except HostError as error:
            raise HostError(f"packets cannot be handed to CPU {cpu}: {error}") from error

    # Marks

    def publish_targets(self, marks: NDArray[np.uint32], targets: NDArray[np.uint32]) -> None:
        """dest-id: let each mark stand for a target."""
        self._mark_memory(MarkMeaning.TARGET)[marks] = targets

    def publish_flows(self, marks: NDArray[np.uint32], entries: NDArray[np.void]) -> None:
        """flow-id: let each mark stand for an :data:`.layouts.ENTRY`."""
        memory = self._mark_memory(MarkMeaning.FLOW)
        # The target is cleared first and set last: a packet in between is looked up.
        memory["target"][marks] = 0
        memory["match"][marks] = lay.match_patterns(np.ascontiguousarray(entries["key"]), entries["family"])
        memory["family"][marks], memory["slot"][marks] = entries["family"], entries["slot"]
        memory["target"][marks] = entries["target"]

    def retire(self, marks: NDArray[np.uint32]) -> None:
        """Let the marks stand for nothing."""
        if self._marks is not None:
            memory = self._marks if self.meaning is MarkMeaning.TARGET else self._marks["target"]
            memory[marks] = 0

    def _mark_memory(self, meaning: MarkMeaning) -> NDArray[Any]:
        if self._marks is None or self.meaning is not meaning:
            raise ValueError(f"marks of this data plane have the meaning {self.meaning}, not {meaning}")
        return self._marks

    # Counters

    def counts(self, slots: NDArray[np.uint32]) -> NDArray[np.void]:
        """Give :data:`.layouts.FLOW_COUNT` rows: what was looked up for the entries in these slots.

        last_seen is in nanoseconds of the monotonic clock, exact to a timer tick; 0: never.
        """
        cells = self._counts[:, slots]
        rows = np.zeros(len(slots), dtype=lay.FLOW_COUNT)
        rows["packets"], rows["bytes"] = cells["packets"].sum(axis=0), cells["bytes"].sum(axis=0)
        rows["last_seen"] = self._clock.to_ns(cells["last_seen"].max(axis=0))
        return rows

    def reset(self, slots: NDArray[np.uint32]) -> None:
        """Let the counters of these slots begin at 0; no entry should have them."""
        self._counts[:, slots] = np.zeros((), dtype=lay.FLOW_COUNT)
        self.ended[slots] = np.zeros((), dtype=lay.RULE_COUNT)

    def totals(self) -> Totals:
        """Give the counters of the program."""
        cells = self.maps["flow_totals"].read_array()[0]
        return Totals(cells["actions"].sum(axis=0), cells["others"].sum(axis=0))
