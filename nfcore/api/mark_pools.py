# SPDX-License-Identifier: Apache-2.0
"""Marks that XDP takes by itself: leased to each CPU in memory that both share."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .marks import MarkAllocator, MarkState


class CpuPools:
    """Marks leased to CPUs, in memory shared with XDP: `struct mark_pool` of bpf/balancer/mark_pool.h, a row per CPU.

    `rows` is a structured array with fields ``taken`` (written by XDP alone), ``filled`` (written here alone), both
    u32 that count up and wrap, and ``slots``, a power of two of u32 marks.
    """

    SETTLED = 0.01
    """Seconds after which no program that saw an earlier `filled` still runs."""

    def __init__(self, rows: NDArray[np.void], cpus: list[int], clock: Callable[[], float] = time.monotonic) -> None:
        self.rows = rows
        self.cpus = cpus
        self.slots = int(rows.dtype["slots"].shape[0])
        self._clock = clock
        self._reclaiming: tuple[float, int, int, int] | None = None
        """When it is settled, CPU, `filled` as it was, `filled` as it is now."""

    def stock(self, cpu: int) -> int:
        """How many marks are waiting for `cpu`."""
        row = self.rows[cpu]
        stock = (int(row["filled"]) - int(row["taken"])) & 0xFFFF_FFFF
        # Less than nothing for a moment, when marks were reclaimed while XDP took them.
        return stock if stock <= self.slots else 0

    def lease(self, allocator: MarkAllocator, chunk: int) -> int:
        """Bring each CPU that has less than half a chunk up to a chunk of marks; how many were leased.

        When marks run out, what other CPUs have too much of is reclaimed: begun by one call, done by a later one.
        """
        self._end_reclaim(allocator)
        leased = 0
        # One slot stays empty, so that XDP can give back the mark that it has just taken.
        chunk = min(chunk, self.slots - 1)
        for cpu in self.cpus:
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
        # The marks stand before the count shows them: XDP reads the count first.
        self.rows["filled"][cpu] = (filled + len(marks)) & 0xFFFF_FFFF

    def _is_reclaiming(self, cpu: int) -> bool:
        return self._reclaiming is not None and self._reclaiming[1] == cpu

    def _begin_reclaim(self, needy: int) -> None:
        """Take the second half of the largest stock out of its CPU's sight, if that is worth the trouble."""
        if self._reclaiming is not None:
            return
        richest = max(self.cpus, key=self.stock)
        stock = self.stock(richest)
        if richest == needy or stock < 2 * self.stock(needy) + 2:
            return
        filled = int(self.rows[richest]["filled"])
        left = (filled - stock // 2) & 0xFFFF_FFFF
        self.rows["filled"][richest] = left
        self._reclaiming = (self._clock() + self.SETTLED, richest, filled, left)

    def _end_reclaim(self, allocator: MarkAllocator) -> None:
        """Give what the CPU has not taken meanwhile to everybody."""
        if self._reclaiming is None or self._clock() < self._reclaiming[0]:
            return
        _, cpu, filled, left = self._reclaiming
        self._reclaiming = None
        # A program that had read the old count may have gone beyond the new one: XDP stops there, and what it took
        # is taken (bpf/balancer/mark_pool.h).
        overrun = (int(self.rows[cpu]["taken"]) - left) & 0xFFFF_FFFF
        if overrun < self.slots:
            left = (left + overrun) & 0xFFFF_FFFF
            self.rows["filled"][cpu] = left
        count = (filled - left) & 0xFFFF_FFFF
        allocator.release(self.rows["slots"][cpu, (left + np.arange(count)) % self.slots].copy())
