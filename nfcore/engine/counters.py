# SPDX-License-Identifier: Apache-2.0
"""What the engine has done, counted by reason: nothing is lost, refused or put off silently."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from ..logs import INTERVAL, Repeats, with_count

log = logging.getLogger(__name__)


class Ledger:
    """Counters that only grow. Keys of the reason counters are numbers of `nfcore.api.reasons`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.not_offloaded: Counter[int] = Counter()
        """Reports that led to no rule."""
        self.deferred: Counter[int] = Counter()
        """Flows that had to wait, by what they had to wait for first."""
        self.ended: Counter[int] = Counter()
        """Rules that were removed."""
        self._said = Repeats(INTERVAL)

    def refuse(self, reasons: NDArray[np.uint8]) -> None:
        """Count reports that lead to no rule."""
        self._add(self.not_offloaded, reasons)

    def defer(self, reasons: NDArray[np.uint8]) -> None:
        """Count flows that begin to wait."""
        self._add(self.deferred, reasons)

    def end(self, reasons: NDArray[np.uint8]) -> None:
        """Count rules that are gone."""
        self._add(self.ended, reasons)

    def say_once(self, words: str) -> None:
        """Log a fault, and again not before an interval has passed: a million flows must not make a million lines."""
        times = self._said.admit(words, words)
        if times is not None:
            log.warning("%s", with_count(words, times))

    def say_repeats(self, *, all_of_them: bool = False) -> None:
        """Log how often faults were not said that came again in an interval which is over; all: in any."""
        for words, times in self._said.overdue(all_of_them=all_of_them):
            log.warning("%s", with_count(str(words), times))

    @staticmethod
    def _add(counter: Counter[int], reasons: NDArray[np.uint8]) -> None:
        for reason, number in enumerate(np.bincount(reasons).tolist()):
            if number:
                counter[reason] += number
