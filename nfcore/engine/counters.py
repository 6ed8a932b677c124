# SPDX-License-Identifier: Apache-2.0
"""Counts what the engine does with reports and rules, by reason: nothing is refused or delayed without a count."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray


class EngineCounters:
    """Counters that only grow. `not_offloaded`, `deferred` and `ended` are keyed by numbers of `nfcore.api.reasons`."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.not_offloaded: Counter[int] = Counter()
        """Reports that led to no rule."""
        self.deferred: Counter[int] = Counter()
        """Flows that had to wait, by the first thing that they waited for."""
        self.ended: Counter[int] = Counter()
        """Rules that are gone."""

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
