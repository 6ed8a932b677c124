# SPDX-License-Identifier: Apache-2.0
"""Finds entries by their match, and the entry that a packet belongs to, as the datapath does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import FLOW_KEY, masks_of

from .overlaps import WORDS, Words, match

Slots = NDArray[np.int64]


class Shape(NamedTuple):
    """What the entries of a group leave open."""

    family: int
    wild: bytes


class Matches:
    """Slots of entries by match. `rows`: entries by slot, of type ENTRY."""

    def __init__(self, rows: NDArray[np.void]) -> None:
        self._rows = rows
        self._shapes: dict[Shape, dict[bytes, int]] = {}

    def add(self, rows: NDArray[np.void]) -> None:
        """Add entries; one with a match that is there takes its place."""
        for (shape, key), slot in zip(match_names(rows), rows["slot"].tolist(), strict=True):
            self._shapes.setdefault(shape, {})[key] = slot

    def remove(self, rows: NDArray[np.void]) -> None:
        """Remove entries, where they are still the ones with their match."""
        for (shape, key), slot in zip(match_names(rows), rows["slot"].tolist(), strict=True):
            group = self._shapes.get(shape, {})
            if group.get(key) == slot:
                del group[key]
                if not group:
                    del self._shapes[shape]

    def find(self, keys: NDArray[np.void], families: NDArray[np.uint32]) -> Slots:
        """Give the slot of the entry with each match, -1 where there is none."""
        names = _names(keys, families)
        return np.array([self._shapes.get(shape, {}).get(key, -1) for shape, key in names], dtype=np.int64)

    def covered(self, keys: NDArray[np.void], families: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Say for each match, exact or masked, whether an entry matches some of its packets."""
        found = np.zeros(len(keys), dtype=np.bool_)
        if (masked := keys["wild"].any(axis=1)).any():
            slots = [slot for group in self._shapes.values() for slot in group.values()]
            found[masked] = _overlapping(self._rows[slots], keys[masked], families[masked])
            found[~masked] = self.covered(keys[~masked], families[~masked])
            return found
        words = _words(keys)
        for shape, group in self._shapes.items():
            left = np.flatnonzero((families == shape.family) & ~found)
            # The one takes a time for each 5-tuple, the other for each entry.
            if len(left) < len(group):
                found[left] = [name in group for name in _masked(keys[left], shape)]
            else:
                rows = self._rows[list(group.values())]
                found[left[_matching(rows["key"], shape, words[:, left])]] = True
        return found

    def winner(self, key: np.void, family: int) -> int | None:
        """Give the slot of the entry that the datapath chooses for packets with a 5-tuple, None where none matches."""
        keys = np.array([key], dtype=FLOW_KEY)
        found = [
            group[name]
            for shape, group in self._shapes.items()
            if shape.family == family and (name := _masked(keys, shape)[0]) in group
        ]
        if not found:
            return None
        exact = [slot for slot in found if not self._rows["key"]["wild"][slot].any()]
        return exact[0] if exact else max(found, key=lambda slot: int(self._rows["precedence"][slot]))


def covered_by(rows: NDArray[np.void], keys: NDArray[np.void], families: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Say for each match whether one of these entries matches some of its packets: for few entries, many matches."""
    found = np.zeros(len(keys), dtype=np.bool_)
    if (masked := keys["wild"].any(axis=1)).any():
        found[masked] = _overlapping(rows, keys[masked], families[masked])
        found[~masked] = covered_by(rows, keys[~masked], families[~masked])
        return found
    words = _words(keys)
    shapes = [Shape(family, wild.tobytes()) for family, wild in zip(rows["family"], rows["key"]["wild"], strict=True)]
    for shape in set(shapes):
        entries = np.array([each == shape for each in shapes])
        left = np.flatnonzero((families == shape.family) & ~found)
        found[left[_matching(rows["key"][entries], shape, words[:, left])]] = True
    return found


def _overlapping(entries: NDArray[np.void], keys: NDArray[np.void], families: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Say for each masked match whether it and an entry have packets in common: what both fix is equal."""
    words, masks = _words(entries["key"]), _words(masks_of(entries["family"], entries["key"]["wild"]))
    own, own_masks = _words(keys), _words(masks_of(families, keys["wild"]))
    return np.array(
        [
            bool(
                (
                    ((words ^ own[:, [at]]) & masks & own_masks[:, [at]] == 0).all(axis=0)
                    & (entries["family"] == family)
                ).any()
            )
            for at, family in enumerate(families.tolist())
        ],
        dtype=np.bool_,
    )


def _matching(entries: NDArray[np.void], shape: Shape, words: Words) -> Slots:
    """Give the indices of the 5-tuples, as columns of words, that one of the entries of a shape matches."""
    mask = _words(masks_of(np.array([shape.family]), np.frombuffer(shape.wild, dtype=np.uint8)[None]))[:, 0]
    return match(_words(entries), words, mask)[1]


def _words(keys: NDArray[np.void]) -> Words:
    """Keys as columns of words."""
    return np.ascontiguousarray(np.ascontiguousarray(keys).view("<u8").reshape(-1, WORDS).T)


def match_names(rows: NDArray[np.void]) -> list[tuple[Shape, bytes]]:
    """Give for each entry what is different for entries with different matches."""
    return _names(rows["key"], rows["family"])


def _names(keys: NDArray[np.void], families: NDArray[np.uint32]) -> list[tuple[Shape, bytes]]:
    raw, size = keys.tobytes(), FLOW_KEY.itemsize
    names = [raw[begin : begin + size] for begin in range(0, len(raw), size)]
    return [(Shape(family, name[-3:]), name) for family, name in zip(families.tolist(), names, strict=True)]


def _masked(keys: NDArray[np.void], shape: Shape) -> list[bytes]:
    """The 5-tuples as entries of a shape would have them."""
    wild = np.frombuffer(shape.wild, dtype=np.uint8)
    mask = masks_of(np.array([shape.family]), wild[None])
    raw = np.frombuffer(keys.tobytes(), dtype=np.uint8).reshape(len(keys), FLOW_KEY.itemsize)
    masked = raw & np.frombuffer(mask.tobytes(), dtype=np.uint8)
    masked[:, -len(wild) :] = wild
    return [row.tobytes() for row in masked]
