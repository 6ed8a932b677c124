# SPDX-License-Identifier: Apache-2.0
"""The allocator of marks: which are free, leased to a CPU, live or in quarantine.

A mark is not given again before its quarantine has passed: a packet with this mark may still be on its way. All calls
come from the event loop's thread.
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
    """What a mark of a strategy stands for. An NF builds its data path for one of these."""

    FLOW = "flow"
    """One flow. XDP takes a mark from the pool of its CPU and writes the entry itself."""
    TARGET = "target"
    """One (nf, target), shared by all its flows. User space writes the entries."""


@dataclass(frozen=True)
class StrategyInfo:
    """A marking strategy."""

    name: str
    """The value of `[marking] strategy` that chooses it."""
    meaning: MarkMeaning
    help: str


class MarkState(IntEnum):
    """The state of a mark."""

    FREE = 0
    LEASED = 1
    LIVE = 2
    QUARANTINED = 3


class MarkAllocator:
    """The marks 1 … 2**width − 1, each in exactly one state.

    `width`: bits that NIC and carrier can transport, 1 to 24 (there is an array of all marks here and in the kernel).
    `quarantine`: in seconds, by `clock`.
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
        """How often each mark has been released, modulo 65,536."""
        self._free: deque[NDArray[np.uint32]] = deque([np.arange(1, self.size, dtype=np.uint32)])
        self._waiting: deque[tuple[float, NDArray[np.uint32]]] = deque()
        self._counts: NDArray[np.int64] = np.zeros(len(MarkState), dtype=np.int64)
        self._counts[MarkState.FREE] = self.size - 1

    def count(self, state: MarkState) -> int:
        """How many marks are in `state`, without mark 0. Takes the same time for any width."""
        return int(self._counts[state])

    def _move(self, marks: NDArray[np.uint32], state: MarkState) -> None:
        """Put marks, distinct and none of them 0, into `state`."""
        self._counts -= np.bincount(self.state[marks], minlength=len(MarkState))
        self._counts[state] += len(marks)
        self.state[marks] = state

    def take(self, wanted: int, state: MarkState = MarkState.LIVE) -> NDArray[np.uint32]:
        """Put up to `wanted` free marks into `state`, longest free first, and give them."""
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
        """Whether each mark is leased to a CPU; False for 0 and for marks out of range."""
        return self._are(MarkState.LEASED, marks)

    def _are(self, state: MarkState, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        inside = np.where(marks < self.size, marks, 0).astype(np.uint32)
        matching: NDArray[np.bool_] = (inside != 0) & (self.state[inside] == state)
        return matching

    def free(self, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Whether each mark is free, its quarantine over; False for 0 and for marks out of range."""
        self._end_quarantine()
        return self._are(MarkState.FREE, marks)

    def claim(self, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Make these marks live: for strategies that choose marks themselves, and for marks of an earlier run.

        False for marks that are not free, and for all but the first of equal ones. The time depends on the number of
        free marks, not of `marks`: claim many at once.
        """
        good = self.free(marks) & first_of_each(marks)
        if good.any():
            self._move(marks[good], MarkState.LIVE)
            left = [chunk[self.state[chunk] == MarkState.FREE] for chunk in self._free]
            self._free = deque(chunk for chunk in left if len(chunk))
        return good

    def confirm(self, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Make leased marks live. False for other marks, 0 and marks out of range, and for repetitions of a mark."""
        good = self.leased(marks) & first_of_each(marks)
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
    """Whether each element is the first of its value."""
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def ranks_within(groups: NDArray[Any]) -> NDArray[np.int64]:
    """Number the elements of each group from 0, in their order."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.r_[True, groups[order][1:] != groups[order][:-1]]) if len(groups) else order
    ranks = np.empty(len(groups), dtype=np.int64)
    lengths = np.diff(np.r_[starts, len(groups)])
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, lengths)
    return ranks
