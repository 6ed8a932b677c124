# SPDX-License-Identifier: Apache-2.0
"""Entries of one family as the datapath finds them: buckets, a hash map for what does not fit there, the filter."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfcore.errors import HostError
from nfcore.kernel import Map

from . import layouts as lay
from .buckets import NOWHERE, Buckets, has_twins, key_names
from .filters import UNKNOWN_SHAPE, Batch, Filter
from .maps import Sizes

OVERFLOW = -2
"""In the place of a key's place in its bucket: it is in the hash map."""


@dataclass(frozen=True)
class Addition:
    """Entries that are to be added, or to replace others with the same key."""

    to: LookUpTable
    batch: Batch
    hashes: NDArray[np.uint64]
    values: NDArray[np.void]
    """:data:`.layouts.FLOW_ENTRY` rows."""
    is_new: NDArray[np.bool_]
    places: NDArray[np.intp]
    """In the bucket, or OVERFLOW."""


class LookUpTable:
    """What :class:`.data_plane.DataPlane` has of each family."""

    def __init__(self, family: int, maps: Mapping[str, Map], sizes: Sizes) -> None:
        self.family = family
        random = np.frombuffer(os.urandom(8 * Filter.random_numbers()), dtype=np.uint64)
        memory = maps[f"flow_filter_v{family}"].mmap()
        self.filter = Filter(memory, family, sizes.filter_log2, random)
        self._buckets = Buckets(maps[f"flow_buckets_v{family}"].mmap(), sizes.buckets_log2)
        self._overflow = maps[f"flow_overflow_v{family}"]
        self._overflowed: set[bytes] = set()
        """Keys in the hash map."""
        self._count, self._limit = 0, sizes.entries

    def _locate(self, batch: Batch, hashes: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Give the place of each key, OVERFLOW or NOWHERE."""
        places = self._buckets.find(batch.words, hashes)
        if self._overflowed:
            rows = np.flatnonzero(places == NOWHERE)
            names = key_names(batch.words[rows])
            places[rows[[name in self._overflowed for name in names]]] = OVERFLOW
        # Without a number of its shape, a key looks like an exact one.
        places[batch.bits == UNKNOWN_SHAPE] = NOWHERE
        return places

    def plan(self, entries: NDArray[np.void]) -> Addition:
        """Check an addition. ValueError, HostError: nothing has changed, but shapes may need to be released."""
        batch = self.filter.prepare(entries["key"], create=True)
        hashes = self.filter.hashes(batch.words)
        if has_twins(batch.words, hashes):
            raise ValueError(f"two entries of IPv{self.family} in one call match the same")
        places = self._locate(batch, hashes)
        is_new = places == NOWHERE
        new, room = int(is_new.sum()), self._limit - self._count
        if new > room:
            raise HostError(
                f"the table of IPv{self.family} entries is full: {new:,} new ones, room for {room:,} of {self._limit:,}"
            )
        free = self._buckets.room(hashes[is_new])
        places[is_new] = np.where(free == NOWHERE, OVERFLOW, free)
        values = np.zeros(len(entries), dtype=lay.FLOW_ENTRY)
        for name in ("slot", "target", "precedence"):
            values[name] = entries[name]
        return Addition(self, batch, hashes, values, is_new, places)

    def write_overflow(self, addition: Addition) -> None:
        """Write what does not fit into buckets, the only step that may fail: HostError, and nothing has changed."""
        rows = addition.places == OVERFLOW
        if not rows.any():
            return
        old = addition.batch.keys[rows & ~addition.is_new]
        before = self._overflow.lookup_batch_keys(old)[1]
        result = self._overflow.update_batch(addition.batch.keys[rows], addition.values[rows])
        if result.errno:
            self.undo_overflow(addition)
            self._overflow.update_batch(old, before)
            reason = "it is full" if result.errno == errno.E2BIG else os.strerror(result.errno)
            raise HostError(f"the kernel refuses an entry of IPv{self.family}: map flow_overflow: {reason}")

    def undo_overflow(self, addition: Addition) -> None:
        """Delete what :meth:`write_overflow` has added."""
        self._overflow.delete_batch(addition.batch.keys[(addition.places == OVERFLOW) & addition.is_new])

    def finish(self, addition: Addition) -> None:
        """Write the buckets, then let the datapath look for what is new."""
        inside = addition.places >= 0
        if not inside.all():
            self._overflowed.update(key_names(addition.batch.words[~inside]))
        words, hashes = addition.batch.words[inside], addition.hashes[inside]
        self._buckets.write(addition.places[inside], words, hashes, addition.values[inside])
        new = int(addition.is_new.sum())
        if new:
            self.filter.add(addition.batch if new == len(addition.is_new) else addition.batch.where(addition.is_new))
            self._count += new

    def remove(self, entries: NDArray[np.void]) -> None:
        """Remove those entries that are there."""
        batch = self.filter.prepare(entries["key"], create=False)
        hashes = self.filter.hashes(batch.words)
        if has_twins(batch.words, hashes):
            firsts = np.unique(batch.words, axis=0, return_index=True)[1]
            batch, hashes = batch.where(firsts), hashes[firsts]
        places = self._locate(batch, hashes)
        present = places != NOWHERE
        if not present.all():
            batch, hashes, places = batch.where(present), hashes[present], places[present]
        self.filter.remove(batch)
        inside = places >= 0
        self._buckets.clear(places[inside], hashes[inside])
        if not inside.all():
            self._overflow.delete_batch(batch.keys[~inside])
            self._overflowed.difference_update(key_names(batch.words[~inside]))
        self._count -= len(places)
