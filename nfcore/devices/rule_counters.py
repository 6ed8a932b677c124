# SPDX-License-Identifier: Apache-2.0
"""Sums of what all rules of a device have counted, also rules that are gone and those of a run that was killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.uint64]
"""Packets and bytes, shape (rules, 2)."""


def counts_of(rows: NDArray[np.void]) -> Counts:
    """Packets and bytes of rows with these fields."""
    return np.stack([rows["packets"], rows["bytes"]], axis=1).astype(np.uint64, copy=False)


class RuleCounters:
    """Packets and bytes of the rules of one device, by index of the backend. The sums never become less.

    A NIC's counter restarts from 0 when a rule is installed again or the NIC is reset: its last value stays counted.
    """

    def __init__(self, backends: int) -> None:
        self.total: Counts = np.zeros((backends, 2), dtype=np.uint64)
        self._past: Counts = np.zeros((backends, 2), dtype=np.uint64)
        """The part of `total` that no counter on the NIC shows any more."""

    def count(self, backend: NDArray[np.uint8], before: Counts, now: Counts) -> None:
        """Add what counters have grown from `before`, their last values, to `now`. backend: index per rule."""
        restarted = now < before
        self._add(self.total, backend, np.where(restarted, now, now - before))
        if restarted.any():
            self._add(self._past, backend, np.where(restarted, before, np.uint64(0)))

    def end(self, backend: NDArray[np.uint8], last: Counts) -> None:
        """Note rules that are gone. `last`: their last values, which :meth:`count` has seen."""
        self._add(self._past, backend, last)

    @staticmethod
    def _add(to: Counts, backend: NDArray[np.uint8], counts: Counts) -> None:
        for number in range(len(to)):
            to[number] += counts[backend == number].sum(axis=0, dtype=np.uint64)

    # For the run after this

    def note(self, names: Sequence[str]) -> dict[str, list[int]]:
        """Give what the next run needs, per backend: packets and bytes in total, and those of rules that are gone."""
        both = np.concatenate([self.total, self._past], axis=1)
        return {name: both[number].tolist() for number, name in enumerate(names) if both[number].any()}

    def resume(self, names: Sequence[str], note: Mapping[str, object]) -> None:
        """Continue from the note of an earlier run. The rules that it left on the NIC have been counted already.

        Rules that ended after the note was written are missing in its part of gone rules. The total never becomes less
        than the noted total.
        """
        for number, name in enumerate(names):
            noted = note.get(name)
            if not (isinstance(noted, list) and len(noted) == 4 and all(_is_count(value) for value in noted)):
                continue
            total, gone = np.array(noted, dtype=np.uint64).reshape(2, 2)
            held = self.total[number] - self._past[number]
            self.total[number] = np.maximum(total, gone + self.total[number])
            self._past[number] = self.total[number] - held


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
