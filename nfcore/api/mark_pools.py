# SPDX-License-Identifier: Apache-2.0
"""Pools of marks, one per CPU, from which XDP takes marks itself: in memory that XDP and user space share."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .marks import MarkAllocator, MarkState


class CpuPools:
    """Marks leased to CPUs, in memory shared with XDP: a `struct mark_pool` (bpf/balancer/mark_pool.h) per CPU.

    `rows` is a structured array, a row per CPU. ``taken`` (u32, written only by XDP) and ``filled`` (u32, written only
    here) count up and wrap. ``slots`` has the u32 marks; their number is a power of two.
    """

    SETTLED = 0.01
    """Seconds after which no program still runs that has read an earlier `filled`."""

    def __init__(self, rows: NDArray[np.void], cpus: list[int], clock: Callable[[], float] = time.monotonic) -> None:
        self.rows = rows
        self.cpus = cpus
        self.slots = int(rows.dtype["slots"].shape[0])
        self._clock = clock
        self._reclaiming: tuple[float, int, int, int] | None = None
        """A reclaim that has begun: the time at which it can end, CPU, `filled` before and now."""

    def stock(self, cpu: int) -> int:
        """How many marks the pool of `cpu` has."""
        row = self.rows[cpu]
        stock = (int(row["filled"]) - int(row["taken"])) & 0xFFFF_FFFF
        # Below zero for a moment, when marks were reclaimed while XDP took them.
        return stock if stock <= self.slots else 0

    def lease(self, allocator: MarkAllocator, chunk: int) -> int:
        """Fill the pool of each CPU that has less than half a chunk up to a chunk; give how many marks were leased.

        When marks run out, half of the largest pool is reclaimed: one call begins it, a later one ends it.
        """
        self._end_reclaim(allocator)
        leased = 0
        # One slot stays empty, so that XDP can give back the mark that it took last.
        chunk = min(chunk, self.slots - 1)
        # The neediest first: what another CPU gave back for it must not go back there.
        for cpu in sorted(self.cpus, key=self.stock):
            stock = self.stock(cpu)
            if stock * 2 >= chunk or self._is_reclaiming(cpu):
                continue
            marks = allocator.take(chunk - stock, MarkState.LEASED)
            self._put(cpu, marks)
            leased += len(marks)
            if len(marks) < chunk - stock and self.stock(cpu) * 4 < chunk:
                self._begin_reclaim(cpu)
        return leased

    def _put(self, cpu: int, marks: NDArray[np.uint32]) -> None:
        filled = int(self.rows[cpu]["filled"])
        self.rows["slots"][cpu, (filled + np.arange(len(marks))) % self.slots] = marks
        # Write the marks first, then the count: XDP reads the count first.
        self.rows["filled"][cpu] = (filled + len(marks)) & 0xFFFF_FFFF

    def _is_reclaiming(self, cpu: int) -> bool:
        return self._reclaiming is not None and self._reclaiming[1] == cpu

    def _begin_reclaim(self, short: int) -> None:
        """Take the second half out of the largest pool, if it has enough more than that of CPU `short`."""
        if self._reclaiming is not None:
            return
        fullest = max(self.cpus, key=self.stock)
        stock = self.stock(fullest)
        if fullest == short or stock < 2 * self.stock(short) + 2:
            return
        filled = int(self.rows[fullest]["filled"])
        reduced = (filled - stock // 2) & 0xFFFF_FFFF
        self.rows["filled"][fullest] = reduced
        self._reclaiming = (self._clock() + self.SETTLED, fullest, filled, reduced)

    def _end_reclaim(self, allocator: MarkAllocator) -> None:
        """Release the reclaimed marks, except those that XDP has taken meanwhile."""
        if self._reclaiming is None or self._clock() < self._reclaiming[0]:
            return
        _, cpu, filled, reduced = self._reclaiming
        self._reclaiming = None
        # A program that had read the old count may have taken marks beyond the new one. These stay taken
        # (bpf/balancer/mark_pool.h).
        overrun = (int(self.rows[cpu]["taken"]) - reduced) & 0xFFFF_FFFF
        if overrun < self.slots:
            reduced = (reduced + overrun) & 0xFFFF_FFFF
            self.rows["filled"][cpu] = reduced
        count = (filled - reduced) & 0xFFFF_FFFF
        allocator.release(self.rows["slots"][cpu, (reduced + np.arange(count)) % self.slots].copy())
