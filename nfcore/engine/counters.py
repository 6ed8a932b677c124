# SPDX-License-Identifier: Apache-2.0
"""What the engine has done, counted by reason: nothing is lost, refused or put off silently."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray


class EngineCounters:
    """Counters that only grow. Keys of the reason counters are numbers of `nfcore.api.reasons`."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.not_offloaded: Counter[int] = Counter()
        """Reports that led to no rule."""
        self.deferred: Counter[int] = Counter()
        """Flows that had to wait, by what they had to wait for first."""
        self.ended: Counter[int] = Counter()
        """Rules that were removed."""

    def refuse(self, reasons: NDArray[np.uint8]) -> None:
        """Count reports that lead to no rule."""
        self._add(self.not_offloaded, reasons)

    def defer(self, reasons: NDArray[np.uint8]) -> None:
        """Count flows that begin to wait."""
        self._add(self.deferred, reasons)

    def end(self, reasons: NDArray[np.uint8]) -> None:
        """Count rules that are gone."""
        self._add(self.ended, reasons)

    @staticmethod
    def _add(counter: Counter[int], reasons: NDArray[np.uint8]) -> None:
        for reason, number in enumerate(np.bincount(reasons).tolist()):
            if number:
                counter[reason] += number
