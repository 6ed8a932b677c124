# SPDX-License-Identifier: Apache-2.0
"""A token bucket: limits a rate on average, and the size of a burst."""

from __future__ import annotations

import math
from collections.abc import Callable


class TokenBucket:
    """Holds up to `burst` tokens and gains `rate` tokens a second. A rate of 0 is no limit. Full at the start."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._level = float(burst)
        self._filled = clock()

    def limit(self, rate: float, burst: int) -> None:
        """Change the limits; spent tokens stay spent."""
        self.available()
        if not self.rate:
            self._filled = self._clock()
        self.rate, self.burst = rate, burst
        self._level = min(self._level, float(burst))

    def available(self) -> int:
        """How many tokens there are; a very large number without a limit."""
        if not self.rate:
            return 1 << 62
        now = self._clock()
        self._level = min(float(self.burst), self._level + (now - self._filled) * self.rate)
        self._filled = now
        return max(0, math.floor(self._level))

    def take(self, tokens: int) -> None:
        """Spend tokens, at most those available."""
        if self.rate:
            self._level -= tokens

    def give_back(self, tokens: int) -> None:
        """Return tokens that were taken and not used."""
        if self.rate:
            self._level = min(float(self.burst), self._level + tokens)
