# SPDX-License-Identifier: Apache-2.0
"""Entries in shared memory, where the datapath finds them without a call: bpf/flow_actions/entries.h from user space.

Pure: it writes into whatever memory it is given. A key has one bucket, by its hash; when that is full, the key belongs
elsewhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOWHERE = -1


class Buckets:
    """The buckets of one family: `memory` has shape (buckets,) of :data:`.layouts.BUCKET`, all free."""

    def __init__(self, memory: NDArray[np.void], log2: int) -> None:
        self._words = memory["places"]["words"]
        """Shape (buckets, places, words)."""
        self._entries = memory["places"]["entry"]
        self._shift = np.uint64(64 - log2)

    def _buckets(self, hashes: NDArray[np.uint64]) -> NDArray[np.intp]:
        return (hashes >> self._shift).astype(np.intp)

    def find(self, words: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Give the place of each key in its bucket, or NOWHERE."""
        buckets = self._buckets(hashes)
        there = (self._words[buckets] == words[:, None]).all(axis=2) & (self._entries["target"][buckets] != 0)
        return np.where(there.any(axis=1), there.argmax(axis=1), NOWHERE)

    def room(self, hashes: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Choose a free place for each of several new keys, NOWHERE where the bucket is full; nothing is written."""
        buckets = self._buckets(hashes)
        order = np.argsort(buckets, kind="stable")
        ordered = buckets[order]
        starts = np.searchsorted(ordered, ordered)
        turn = np.empty(len(buckets), dtype=np.intp)
        turn[order] = np.arange(len(buckets)) - starts
        free = self._entries["target"][buckets] == 0
        chosen = free & (free.cumsum(axis=1) == turn[:, None] + 1)
        return np.where(chosen.any(axis=1), chosen.argmax(axis=1), NOWHERE)

    def write(
        self,
        places: NDArray[np.intp],
        words: NDArray[np.uint64],
        hashes: NDArray[np.uint64],
        entries: NDArray[np.void],
    ) -> None:
        """Write :data:`.layouts.FLOW_ENTRY` rows into places of their own keys, or free ones; the target last."""
        buckets = self._buckets(hashes)
        self._words[buckets, places] = words
        for name in ("slot", "precedence", "target"):
            self._entries[name][buckets, places] = entries[name]

    def clear(self, places: NDArray[np.intp], hashes: NDArray[np.uint64]) -> None:
        """Free places; the target first."""
        buckets = self._buckets(hashes)
        self._entries["target"][buckets, places] = 0
        self._words[buckets, places] = 0


def has_twins(words: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> bool:
    """Say whether two keys are equal."""
    if len(hashes) < 2 or len(np.unique(hashes)) == len(hashes):
        return False
    return len(np.unique(words, axis=0)) < len(words)


def key_names(words: NDArray[np.uint64]) -> list[bytes]:
    """Give each key as bytes."""
    raw, size = words.tobytes(), 8 * words.shape[1]
    return [raw[at : at + size] for at in range(0, len(raw), size)]
