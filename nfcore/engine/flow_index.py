# SPDX-License-Identifier: Apache-2.0
"""Finds the slots of flows in the flow table by their identity, a batch at a time and without an object per flow.

A hash table in one array of cells, with open addressing and linear probing::

    cell, u64:   hash of the identity, 32 bits │ slot + 1, 32 bits          0: empty

    look-up ─► hash ─► cell ─┬─ empty ──────────────────────────────► not tracked
                        ▲    ├─ same hash and, in the table, same bytes ─► the slot
                        └────┴─ anything else: the next cell

A batch is looked up in rounds; each round is an array operation over the flows that are not decided yet. A removal
leaves no tombstone: the entries behind it in its run of cells are taken out and placed again. So look-ups do not get
slower with time, and the index needs no clean-up.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FLOW_ROW, IDENTITY_BYTES, WHOLE_FLOW, FlowBatch

IdentityHash = Callable[[NDArray[np.void]], NDArray[np.uint32]]
"""Gives a number for each of n contiguous rows of :data:`~nfcore.api.flows.FLOW_ROW`, from their identity alone."""

_WORDS = IDENTITY_BYTES // 4
_ROW_WORDS = FLOW_ROW.itemsize // 4
_LONG_WORDS = IDENTITY_BYTES // 8
_SLOT_BITS = np.uint64(32)
_SLOT_MASK = np.uint64(0xFFFF_FFFF)
_FIRST_CELLS = 1024


class SeededHash:
    """A hash with random keys: those who choose the flows, such as attackers, cannot cause collisions.

    Two steps. Multilinear hashing of the identity's twelve 32-bit words with 64-bit keys, of which the upper half
    is strongly universal (Lemire and Kaser, "Strongly universal string hashing is fast", 2014). Then simple
    tabulation, with which linear probing takes constant expected time for whatever was hashed (Pătraşcu and Thorup,
    "The power of simple tabulation hashing", 2011). With the first step alone, regular flows, such as those of one
    address with ascending ports, would collect in long runs of cells.
    """

    def __init__(self) -> None:
        self._keys: NDArray[np.uint64] = np.frombuffer(secrets.token_bytes(8 * (_WORDS + 1)), dtype="<u8")
        self._tables: NDArray[np.uint32] = np.frombuffer(secrets.token_bytes(4 * 256 * 4), dtype="<u4").reshape(4, 256)

    def __call__(self, rows: NDArray[np.void]) -> NDArray[np.uint32]:
        """Hash the identity of each of n contiguous rows."""
        words = rows.view("<u4").reshape(len(rows), _ROW_WORDS)[:, :_WORDS].astype(np.uint64)
        sums: NDArray[np.uint64] = words @ self._keys[:_WORDS] + self._keys[_WORDS]
        parts = sums.view(np.uint8).reshape(len(rows), 8)
        result: NDArray[np.uint32] = self._tables[0].take(parts[:, 4])
        for number in (1, 2, 3):
            result ^= self._tables[number].take(parts[:, 4 + number])
        return result


PROCESS_HASH: IdentityHash = SeededHash()
"""The hash of this process: another process has other keys."""


def same_flows(left: NDArray[np.void], right: NDArray[np.void]) -> NDArray[np.bool_]:
    """Whether the identities of two equally long, contiguous arrays of rows are the same, row by row."""
    count = len(left)
    left_words, right_words = (rows.view("<u8").reshape(count, _ROW_WORDS // 2) for rows in (left, right))
    differing = (left_words[:, 0] ^ right_words[:, 0]).astype(np.uint64)
    for word in range(1, _LONG_WORDS):
        differing |= left_words[:, word] ^ right_words[:, word]
    same: NDArray[np.bool_] = differing == 0
    return same


def last_appearances(batch: FlowBatch, hash_of: IdentityHash = PROCESS_HASH) -> NDArray[np.bool_]:
    """Mark the last row of each distinct flow of the batch: shape (rows,).

    In each round the last row of every bucket is its leader. Rows of the leader's flow are decided; the others go
    to the next round. So a collision costs a round and never merges two flows.
    """
    rows = _opaque(batch.rows)
    last = np.zeros(len(rows), dtype=np.bool_)
    size = 1 << (2 * len(rows)).bit_length()
    leaders = np.empty(size, dtype=np.int64)
    open_rows = np.arange(len(rows), dtype=np.int64)
    buckets = _places(hash_of(rows), size)
    while len(open_rows):
        leaders[buckets] = open_rows  # numpy keeps the last value of a repeated index
        leading = leaders.take(buckets)
        last[leading] = True
        rest = np.flatnonzero(~same_flows(rows.take(open_rows), rows.take(leading)))
        open_rows, buckets = open_rows.take(rest), buckets.take(rest)
    return last


class FlowIndex:
    """Slots by identity. flows: gives the table's column of flows. Rows are compared, not only their hashes.

    The identity of a row must not change while its slot is in the index.
    """

    def __init__(self, flows: Callable[[], NDArray[np.void]], hash_of: IdentityHash = PROCESS_HASH) -> None:
        self._flows = flows
        self._hash_of = hash_of
        self._cells: NDArray[np.uint64] = np.zeros(_FIRST_CELLS, dtype=np.uint64)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Size of the cells in bytes."""
        return self._cells.nbytes

    def find(self, rows: NDArray[np.void]) -> NDArray[np.int64]:
        """Give the slot of each row's flow, -1 where it is not in the index: shape (rows,)."""
        found = np.full(len(rows), -1, dtype=np.int64)
        if not self._length or not len(rows):
            return found
        wanted, flows = _opaque(rows), self._flows().view(WHOLE_FLOW)
        hashes = self._hash_of(wanted)
        tags, places = hashes.astype(np.uint64) << _SLOT_BITS, _places(hashes, len(self._cells))
        open_rows = np.arange(len(rows), dtype=np.int64)
        while len(open_rows):
            cells = self._cells.take(places)
            # The slot if the hash is the same; beyond all slots if it differs or the cell is empty.
            slots = (cells ^ tags) - np.uint64(1)
            likely = np.flatnonzero(slots < _SLOT_MASK)
            going_on = cells != 0
            if len(likely):
                likely_slots = slots.take(likely).astype(np.int64)
                same = same_flows(wanted.take(open_rows.take(likely)), flows.take(likely_slots))
                hits = likely[same]
                found[open_rows.take(hits)] = likely_slots[same]
                going_on[hits] = False
            rest = np.flatnonzero(going_on)
            open_rows, tags, places = open_rows.take(rest), tags.take(rest), self._after(places.take(rest))
        return found

    def insert(self, rows: NDArray[np.void], slots: NDArray[np.int64]) -> None:
        """Add flows, distinct and not in the index, whose rows are in these slots of the table."""
        self._make_room(self._length + len(rows))
        self._place(self._entries(_opaque(rows), slots))
        self._length += len(rows)

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Remove the flows in these slots, distinct. KeyError: one is not in the index; then all stay."""
        if not len(slots):
            return
        holes = self._locate(slots)
        self._cells[holes] = 0
        runs = []
        behind = self._after(holes)
        while len(behind):
            # A run ends at an empty cell, or at the next hole: the cells behind that belong to its own run.
            behind = behind.take(np.flatnonzero(self._cells.take(behind)))
            runs.append(behind)
            behind = self._after(behind)
        displaced = np.concatenate(runs)
        entries = self._cells.take(displaced)
        self._cells[displaced] = 0
        self._place(entries)
        self._length -= len(slots)

    def _locate(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the cells of the slots' entries. KeyError: one has none."""
        wanted = self._entries(self._flows().view(WHOLE_FLOW).take(slots), slots)
        cells_of = self._homes(wanted)
        open_rows = np.arange(len(slots), dtype=np.int64)
        places = cells_of
        while len(open_rows):
            cells = self._cells.take(places)
            if not cells.all():
                slot = int(slots[open_rows[int(np.argmin(cells != 0))]])
                raise KeyError(f"the flow in slot {slot} is not in the index")
            rest = np.flatnonzero(cells != wanted)
            open_rows, wanted, places = open_rows.take(rest), wanted.take(rest), self._after(places.take(rest))
            cells_of[open_rows] = places
        return cells_of

    def _place(self, entries: NDArray[np.uint64]) -> None:
        """Put entries, all different, into the first empty cells from their homes (the cells of their hashes) on."""
        places = self._homes(entries)
        while len(entries):
            empty = np.flatnonzero(self._cells.take(places) == 0)
            self._cells[places.take(empty)] = entries.take(empty)
            # Of several entries for the same cell one is in it now.
            rest = np.flatnonzero(self._cells.take(places) != entries)
            entries, places = entries.take(rest), self._after(places.take(rest))

    def _make_room(self, length: int) -> None:
        """Keep at least half of the cells empty, so that runs stay short."""
        size = len(self._cells)
        while size < 2 * length:
            size *= 2
        if size > len(self._cells):
            entries = self._cells[self._cells != 0]
            self._cells = np.zeros(size, dtype=np.uint64)
            self._place(entries)

    def _entries(self, rows: NDArray[np.void], slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        entries = self._hash_of(rows).astype(np.uint64) << _SLOT_BITS
        entries |= (slots + 1).astype(np.uint64)
        return entries

    def _homes(self, entries: NDArray[np.uint64]) -> NDArray[np.int64]:
        return _places((entries >> _SLOT_BITS).astype(np.uint32), len(self._cells))

    def _after(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return (places + 1) & (len(self._cells) - 1)


def _places(hashes: NDArray[np.uint32], size: int) -> NDArray[np.int64]:
    """Give the place of each hash among `size`, a power of two of at most 2**32."""
    return hashes.astype(np.int64) & (size - 1)


def _opaque(rows: NDArray[np.void]) -> NDArray[np.void]:
    whole: NDArray[np.void] = np.ascontiguousarray(rows).view(WHOLE_FLOW)
    return whole
