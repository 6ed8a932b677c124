# SPDX-License-Identifier: Apache-2.0
"""Which entries overlap, and which of two that do wins.

Two entries of the same family overlap exactly when they agree on the bits that both fix. Entries of one shape fix the
same bits, so whole shapes are compared at once: both sides are masked with what both fix, and then equal keys are
looked for. Keys are columns of five 64-bit words, one row of an array per word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORDS = 5
"""Words of a flow key."""
_FEW = 8
"""Up to so many keys are looked for one by one, which needs no hashes of the other side."""
_PRECEDENCE_BITS = 25
_SEED = np.random.default_rng().integers(1, 1 << 63, size=WORDS + 1, dtype=np.uint64) | np.uint64(1)
Words = NDArray[np.uint64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """Entries of one shape."""

    words: Words
    """Array of WORDS rows, one column per entry."""
    precedence: NDArray[np.int64]
    drops: NDArray[np.bool_]
    """Entries that drop: one is not beaten by another, since what both match is dropped by either."""

    @property
    def count(self) -> int:
        """Number of entries."""
        return int(self.words.shape[1])


@dataclass(frozen=True)
class Overlap:
    """How the entries of two sides overlap. Index arrays: only entries that overlap one of the other side."""

    first: Indices
    first_beaten_by: Indices
    """For each of `first`: number of the overlapping entries of the other side that win over it."""
    second: Indices
    second_beaten_by: Indices
    ties: list[tuple[int, int]]
    """Pairs of overlapping entries with the same precedence, one pair per entry of the smaller side."""


def compare(first: Side, second: Side, mask: Words) -> Overlap:
    """Compare two sides, of which both fix the bits of `mask`."""
    if first.count > second.count:
        turned = compare(second, first, mask)
        ties = [(there, here) for here, there in turned.ties]
        return Overlap(turned.second, turned.second_beaten_by, turned.first, turned.first_beaten_by, ties)
    groups, many, many_groups = match(first.words, second.words, mask)
    few = np.flatnonzero(np.isin(groups, many_groups))
    few_ranks = _ranks(groups[few], first.precedence[few])
    many_ranks = _ranks(many_groups, second.precedence[many])
    ties = _ties(few, few_ranks, many, many_ranks)
    few_drop, many_drop = first.drops[few], second.drops[many]
    few_beaten_by = _beaten_by(few_ranks, few_drop, many_ranks, many_drop)
    return Overlap(few, few_beaten_by, many, _beaten_by(many_ranks, many_drop, few_ranks, few_drop), ties)


def match(few: Words, many: Words, mask: Words) -> tuple[Indices, Indices, Indices]:
    """Find equal masked keys.

    Gives the number of the key of each of `few`; the indices of those of `many` that have a key of the few; and the
    numbers of their keys.
    """
    used = np.flatnonzero(mask)
    if not len(used):
        groups = np.zeros(few.shape[1], dtype=np.int64)
        found = np.arange(many.shape[1] if few.shape[1] else 0)
        return groups, found, np.zeros(len(found), dtype=np.int64)
    masked = few[used] & mask[used, None]
    hashes = _hash(masked)
    distinct, where, groups = np.unique(hashes, return_index=True, return_inverse=True)
    keys = masked[:, where]
    if len(distinct) <= _FEW:
        found, found_groups = _look_for(keys, many, used, mask)
    else:
        found, found_groups = _join(distinct, keys, many, used, mask)
    return groups.astype(np.int64), found, found_groups


def duplicates(words: Words) -> list[tuple[int, int]]:
    """Give pairs of entries with the same key, as earlier and later index."""
    hashes = _hash(words)
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    pairs = zip(order[equal].tolist(), order[equal + 1].tolist(), strict=True)
    return [(one, other) for one, other in pairs if (words[:, one] == words[:, other]).all()]


def _look_for(keys: Words, many: Words, used: Indices, mask: Words) -> tuple[Indices, Indices]:
    """Look for each key, word by word: only what agrees in one word is compared in the next."""
    found, groups = [], []
    for number in range(keys.shape[1]):
        left: Indices | None = None
        for row, word in enumerate(used):
            column = many[word] if left is None else many[word][left]
            hits = np.flatnonzero((column & mask[word]) == keys[row, number])
            left = hits if left is None else left[hits]
        assert left is not None
        found.append(left)
        groups.append(np.full(len(left), number, dtype=np.int64))
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return np.concatenate(found), np.concatenate(groups)


def _join(distinct: Words, keys: Words, many: Words, used: Indices, mask: Words) -> tuple[Indices, Indices]:
    """Look for many keys, by hashes; what they find is compared."""
    masked = many[used] & mask[used, None]
    hashes = _hash(masked)
    at = np.minimum(np.searchsorted(distinct, hashes), len(distinct) - 1)
    found = np.flatnonzero(distinct[at] == hashes)
    groups = at[found]
    same = (masked[:, found] == keys[:, groups]).all(axis=0)
    return found[same], groups[same]


def _hash(rows: Words) -> Words:
    """Hash columns to 64 bits, with a seed of this process."""
    value = np.full(rows.shape[1], _SEED[-1])
    for number, row in enumerate(rows):
        value ^= row
        value *= _SEED[number]
        value ^= value >> np.uint64(32)
    value *= _SEED[0]
    value ^= value >> np.uint64(29)
    return value


def _ranks(groups: Indices, precedence: NDArray[np.int64]) -> Indices:
    return (groups << _PRECEDENCE_BITS) | precedence


def _beaten_by(ranks: Indices, drops: NDArray[np.bool_], others: Indices, others_drop: NDArray[np.bool_]) -> Indices:
    """For each entry, the number of others in its group that win over it; by its rank, and whether it drops."""
    beaten_by = _higher(ranks, others)
    if drops.any() and others_drop.any():
        beaten_by[drops] = _higher(ranks[drops], others[~others_drop])
    return beaten_by


def _higher(ranks: Indices, others: Indices) -> Indices:
    """For each rank, the number of others in its group that are higher."""
    ordered = np.sort(others)
    end = ((ranks >> _PRECEDENCE_BITS) + 1) << _PRECEDENCE_BITS
    return np.searchsorted(ordered, end) - np.searchsorted(ordered, ranks, side="right")


def _ties(few: Indices, few_ranks: Indices, many: Indices, many_ranks: Indices) -> list[tuple[int, int]]:
    if not len(many):
        return []
    order = np.argsort(many_ranks, kind="stable")
    at = np.minimum(np.searchsorted(many_ranks[order], few_ranks), len(order) - 1)
    tied = np.flatnonzero(many_ranks[order[at]] == few_ranks)
    return list(zip(few[tied].tolist(), many[order[at[tied]]].tolist(), strict=True))
