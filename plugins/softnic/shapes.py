# SPDX-License-Identifier: Apache-2.0
"""The shapes of masked rules: what the NIC masks of a frame before it looks it up.

A shape is entered before its first rule, and leaves after its last one. One that is in use is never written, so that
the program, which reads the table meanwhile, never sees half of one.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import ADDRESS_BITS, PROTOCOL_NAMES, Anything, masks_of
from nfcore.kernel import Map

from .layouts import SHAPES

_OPEN_PORTS = int(Anything.SPORT | Anything.DPORT)
Shape = tuple[int, int, int, int]
"""`wild` of the keys, and family."""


def shapes_of(keys: NDArray[np.void]) -> list[Shape]:
    """Give the shape of each match, rows of MATCH; that of an exact one is (0, 0, 0, family)."""
    columns = np.column_stack([keys["flow"]["wild"].astype(np.int64), keys["family"].astype(np.int64)])
    return [(src, dst, anything, family) for src, dst, anything, family in columns.tolist()]


def can_match(keys: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which matches, rows of MATCH, the NIC can look up.

    Exact ones are of TCP or UDP. A masked one has a port only with one of these protocols, and the program knows no
    ports of a frame whose protocol may be any. One with VLAN tags is exact.
    """
    flow, family = keys["flow"], keys["family"]
    wild = flow["wild"]
    any_proto = wild[:, 2] & Anything.PROTO != 0
    has_ports = np.isin(flow["proto"], tuple(PROTOCOL_NAMES)) & ~any_proto
    good = has_ports | (wild[:, 2] & _OPEN_PORTS == _OPEN_PORTS)
    width = np.where(family == 6, ADDRESS_BITS[6], ADDRESS_BITS[4])
    good &= np.isin(family, tuple(ADDRESS_BITS)) & (wild[:, :2] <= width[:, None]).all(axis=1)
    good &= ~(keys["vlans"].any(axis=1) & wild.any(axis=1))
    known: NDArray[np.bool_] = good & (wild[:, 2] <= sum(Anything))
    return known


class ShapeTable:
    """The NIC's table of shapes, and how many rules each of them has. Used by one thread at a time."""

    def __init__(self, table: Map) -> None:
        self._table = table
        self._rules: Counter[Shape] = Counter()
        self._slots: dict[Shape, int] = {}
        self._value = table.read_array().copy()
        for slot, entry in enumerate(self._entries):
            if entry["family"]:
                self._slots[(*entry["mask"]["wild"].tolist(), int(entry["family"]))] = slot

    @property
    def _entries(self) -> NDArray[np.void]:
        entries: NDArray[np.void] = self._value[0]["shapes"]
        return entries

    def close(self) -> None:
        """Close the map."""
        self._table.close()

    @property
    def used(self) -> int:
        """How many shapes there are."""
        return len(self._slots)

    def enter(self, shapes: list[Shape]) -> list[bool]:
        """Make sure that the NIC has these shapes; per shape whether it has. Exact ones need none."""
        new = [shape for shape in dict.fromkeys(shapes) if any(shape[:3]) and shape not in self._slots]
        free = sorted(set(range(SHAPES)) - set(self._slots.values()))
        for shape, slot in zip(new, free, strict=False):
            self._entries[slot]["mask"] = _mask(shape)
            # Its family makes it count: that comes last.
            self._table.update(0, self._value[0])
            self._entries[slot]["family"] = shape[3]
            self._slots[shape] = slot
            self._write()
        return [not any(shape[:3]) or shape in self._slots for shape in shapes]

    def count(self, added: list[Shape], removed: list[Shape]) -> None:
        """Note new and removed rules, and forget shapes that no rule has any more."""
        masked = Counter(shape for shape in added if any(shape[:3]))
        masked.subtract(shape for shape in removed if any(shape[:3]))
        if masked:
            self._rules.update(masked)
            self._forget_unused()

    def recount(self, shapes: list[Shape]) -> None:
        """Note the rules of a dump, and forget shapes that none of them has."""
        self._rules = Counter(shape for shape in shapes if any(shape[:3]))
        self._forget_unused()

    def _forget_unused(self) -> None:
        unused = [shape for shape in self._slots if self._rules[shape] <= 0]
        for shape in unused:
            self._entries[self._slots.pop(shape)]["family"] = 0
            del self._rules[shape]
        if unused:
            self._write()

    def _write(self) -> None:
        self._value["count"] = max(self._slots.values(), default=-1) + 1
        self._table.update(0, self._value[0])


def _mask(shape: Shape) -> np.void:
    """The bits that count of a shape, as a key; its `wild` is that of the shape's keys."""
    src, dst, anything, family = shape
    mask = masks_of(np.array([family]), np.array([[src, dst, anything]], dtype=np.uint8))
    mask["wild"] = src, dst, anything
    key: np.void = mask[0]
    return key
