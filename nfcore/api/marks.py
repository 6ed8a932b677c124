# SPDX-License-Identifier: Apache-2.0
"""Marks: which are free, leased to a CPU, live or in quarantine.

A mark is never handed out again before its quarantine has passed: a packet that the NIC marked a moment ago may
still be on its way. Within one process all calls come from the event loop's thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MarkMeaning(StrEnum):
    """What a strategy lets a mark stand for. An NF builds its datapath for one of them."""

    FLOW = "flow"
    """One flow. XDP takes marks from pools leased to its CPU and writes the entry itself."""
    TARGET = "target"
    """One (nf, target), shared by all its flows. User space writes the entries."""


@dataclass(frozen=True)
class StrategyInfo:
    """A marking strategy by the word that chooses it in the TOML."""

    name: str
    meaning: MarkMeaning
    help: str


class MarkState(IntEnum):
    """Where a mark is in its life."""

    FREE = 0
    LEASED = 1
    LIVE = 2
    QUARANTINED = 3


class MarkAllocator:
    """The marks 1 … 2**width − 1, each in exactly one state.

    `width` is what NIC and carrier can transport, in bits (1 to 24: an array of them is held here and in the
    kernel). `quarantine` is in seconds, by `clock`.
    """

    def __init__(self, width: int, quarantine: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not 1 <= width <= 24:
            raise ValueError(f"a mark of {width} bits: between 1 and 24 can be tracked")
        self.width = width
        self.size = 1 << width
        self.quarantine = quarantine
        self._clock = clock
        self.state: NDArray[np.uint8] = np.full(self.size, MarkState.FREE, dtype=np.uint8)
        self.generation: NDArray[np.uint16] = np.zeros(self.size, dtype=np.uint16)
        """How often each mark has been given back, modulo 65,536."""
        self._free: deque[NDArray[np.uint32]] = deque([np.arange(1, self.size, dtype=np.uint32)])
        self._waiting: deque[tuple[float, NDArray[np.uint32]]] = deque()
        self._counts: NDArray[np.int64] = np.zeros(len(MarkState), dtype=np.int64)
        self._counts[MarkState.FREE] = self.size - 1

    def count(self, state: MarkState) -> int:
        """How many marks are in `state`; mark 0 is never counted. Takes the same time for any width."""
        return int(self._counts[state])

    def _move(self, marks: NDArray[np.uint32], state: MarkState) -> None:
        """Put marks, distinct and none of them 0, into `state`."""
        self._counts -= np.bincount(self.state[marks], minlength=len(MarkState))
        self._counts[state] += len(marks)
        self.state[marks] = state

    def take(self, wanted: int, state: MarkState = MarkState.LIVE) -> NDArray[np.uint32]:
        """Give up to `wanted` free marks, longest free first, and put them into `state`."""
        self._end_quarantine()
        taken: list[NDArray[np.uint32]] = []
        while wanted > 0 and self._free:
            chunk = self._free.popleft()
            if len(chunk) > wanted:
                self._free.appendleft(chunk[wanted:])
                chunk = chunk[:wanted]
            wanted -= len(chunk)
            taken.append(chunk)
        marks = np.concatenate(taken) if taken else np.zeros(0, dtype=np.uint32)
        self._move(marks, state)
        return marks

    def leased(self, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Whether each mark is on lease to a CPU; never 0 or one that is out of range."""
        return self._are(MarkState.LEASED, marks)

    def _are(self, state: MarkState, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        inside = np.where(marks < self.size, marks, 0).astype(np.uint32)
        there: NDArray[np.bool_] = (inside != 0) & (self.state[inside] == state)
        return there

    def free(self, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Whether each mark is in nobody's hand and has rested; never 0 or one that is out of range."""
        self._end_quarantine()
        return self._are(MarkState.FREE, marks)

    def claim(self, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Make these very marks live: for strategies with an order of their own, and marks of an earlier run.

        False for those that are not free, and for all but the first of one that comes twice. The time that it takes
        grows with the number of free marks, not with that of `marks`: ask for many at once.
        """
        good = self.free(marks) & first_of_each(marks)
        if good.any():
            self._move(marks[good], MarkState.LIVE)
            left = [chunk[self.state[chunk] == MarkState.FREE] for chunk in self._free]
            self._free = deque(chunk for chunk in left if len(chunk))
        return good

    def confirm(self, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Make leased marks live. False for those that are not leased, 0 and out-of-range ones among them."""
        good = self.leased(marks)
        # Of a mark that comes twice in one batch only the first is confirmed.
        good &= first_of_each(marks)
        self._move(marks[good], MarkState.LIVE)
        return good

    def release(self, marks: NDArray[np.uint32]) -> None:
        """Put leased or live marks into quarantine. ValueError names a mark that is neither."""
        marks = np.unique(marks[marks != 0]).astype(np.uint32)
        if not len(marks):
            return
        if marks[-1] >= self.size:
            raise ValueError(f"mark {int(marks[-1])} cannot be released: it is wider than {self.width} bits")
        held = self.state[marks]
        wrong = marks[(held != MarkState.LEASED) & (held != MarkState.LIVE)]
        if len(wrong):
            state = MarkState(int(self.state[wrong[0]])).name.lower()
            raise ValueError(f"mark {int(wrong[0])} cannot be released: it is {state}")
        self._move(marks, MarkState.QUARANTINED)
        self.generation[marks] += 1
        self._waiting.append((self._clock() + self.quarantine, marks))

    def _end_quarantine(self) -> None:
        now = self._clock()
        while self._waiting and self._waiting[0][0] <= now:
            _, marks = self._waiting.popleft()
            self._move(marks, MarkState.FREE)
            self._free.append(marks)


def first_of_each(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the first appearance of each number."""
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def ranks_within(groups: NDArray[Any]) -> NDArray[np.int64]:
    """Number the rows of each group from 0, in their order."""
    order = np.argsort(groups, kind="stable")
    begins = np.flatnonzero(np.r_[True, groups[order][1:] != groups[order][:-1]]) if len(groups) else order
    ranks = np.empty(len(groups), dtype=np.int64)
    lengths = np.diff(np.r_[begins, len(groups)])
    ranks[order] = np.arange(len(groups)) - np.repeat(begins, lengths)
    return ranks
