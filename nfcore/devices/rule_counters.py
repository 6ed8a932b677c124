# SPDX-License-Identifier: Apache-2.0
"""What a device's rules have counted, all of them: also those that are gone, and those of a run that was killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.uint64]
"""Packets and bytes, shape (rules, 2)."""


def counts_of(rows: NDArray[np.void]) -> Counts:
    """Packets and bytes of rows that have such fields."""
    return np.stack([rows["packets"], rows["bytes"]], axis=1).astype(np.uint64, copy=False)


class RuleCounters:
    """Packets and bytes of the rules of one device, by the index of their backend. They never become less.

    A NIC's counters begin anew when a rule is replaced, and with a NIC that is reset: what they had shown stays.
    """

    def __init__(self, backends: int) -> None:
        self.total: Counts = np.zeros((backends, 2), dtype=np.uint64)
        self._past: Counts = np.zeros((backends, 2), dtype=np.uint64)
        """What of it the counters on the NIC no longer show."""

    def count(self, backend: NDArray[np.uint8], before: Counts, now: Counts) -> None:
        """Take counters that showed `before` the last time."""
        anew = now < before
        self._add(self.total, backend, np.where(anew, now, now - before))
        if anew.any():
            self._add(self._past, backend, np.where(anew, before, np.uint64(0)))

    def end(self, backend: NDArray[np.uint8], last: Counts) -> None:
        """Note rules that are gone, whose `last` counters have been counted."""
        self._add(self._past, backend, last)

    @staticmethod
    def _add(to: Counts, backend: NDArray[np.uint8], counts: Counts) -> None:
        for number in range(len(to)):
            to[number] += counts[backend == number].sum(axis=0, dtype=np.uint64)

    # For the run after this

    def note(self, names: Sequence[str]) -> dict[str, list[int]]:
        """Give what the next run needs: per backend all packets and bytes, and those of rules that are gone."""
        both = np.concatenate([self.total, self._past], axis=1)
        return {name: both[number].tolist() for number, name in enumerate(names) if both[number].any()}

    def resume(self, names: Sequence[str], note: Mapping[str, object]) -> None:
        """Go on where an earlier run was, of which the rules that the NIC holds have been counted by now.

        Rules that ended after its last note are missing in what it says of those that are gone; no less than it had
        noted of all is counted in any case.
        """
        for number, name in enumerate(names):
            noted = note.get(name)
            if not (isinstance(noted, list) and len(noted) == 4 and all(_is_count(value) for value in noted)):
                continue
            everything, gone = np.array(noted, dtype=np.uint64).reshape(2, 2)
            held = self.total[number] - self._past[number]
            self.total[number] = np.maximum(everything, gone + self.total[number])
            self._past[number] = self.total[number] - held


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
