# SPDX-License-Identifier: Apache-2.0
"""The data plane: its program and maps, and their changes while packets flow.

::

    add     ── table, then filter ─────►  ┐
    remove  ── filter, then table ─────►  ├─► bpf/flow_actions/flow_actions.c
    set_targets, set_link, set_cpu ────►  │
    publish_… , retire ── marks ───────►  ┘
    counts, totals ◄── counters of all CPUs

All methods belong to one thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nfcore.api.marks import MarkMeaning
from nfcore.errors import HostError
from nfcore.kernel import BPF_SOURCES, Closing, Map, Program, compile_program

from . import layouts as lay
from .look_up_table import Addition, LookUpTable
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
        self._tables = [LookUpTable(family, maps, sizes) for family in (4, 6)]
        self._targets, self._police = maps["flow_targets"].mmap(), maps["flow_police"].mmap()
        self._counts = maps[COUNTS].mmap().reshape(-1, sizes.entries)
        """By CPU and slot."""
        self.ended = maps[ENDED].mmap()
        """:data:`.layouts.RULE_COUNT` by slot: what rules have counted that are gone. The program does not know it."""
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
            flags: dict[str, int | str] = {"FILTER_LOG2": sizes.filter_log2, "SLOTS": f"{sizes.entries}u"}
            flags |= {"BUCKETS_LOG2": sizes.buckets_log2, **defines}
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
        planned: list[Addition] = []
        written: list[Addition] = []
        try:
            for table in self._tables:
                rows = entries[entries["family"] == table.family]
                if len(rows):
                    planned.append(table.plan(rows))
            for addition in planned:
                addition.to.write_overflow(addition)
                written.append(addition)
        except BaseException:
            for addition in written:
                addition.to.undo_overflow(addition)
            for table in self._tables:
                table.filter.shapes.release_unused()
            raise
        for addition in planned:
            addition.to.finish(addition)

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
        for table in self._tables:
            rows = entries[entries["family"] == table.family]
            if len(rows):
                table.remove(rows)

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
