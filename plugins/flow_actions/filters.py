# SPDX-License-Identifier: Apache-2.0
"""The filter in front of the entries: which keys, and which shapes, may have an entry. bpf/flow_actions/filter.h.

Pure: it writes into whatever memory it is given. Counts say how many entries need a bit, so that deletes clear bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import ADDRESS_BITS, Anything

from . import layouts as lay

EXACT, UNKNOWN_SHAPE = -1, -2
"""In the place of a shape's bit: the entry has no shape; there is no such shape."""
_LONGEST_WALKS = (10, 4, 4, 4)
"""By level: as many open bits among those that choose a bucket are enumerated. A shape with more of them is in every
bucket of the level."""
_WORD = 64
_ADDRESS_LOG2, _PORT_LOG2 = lay.ADDRESS_BUCKETS.bit_length() - 1, lay.PORT_BUCKETS.bit_length() - 1


class TooManyShapesError(ValueError):
    """More combinations of prefix lengths and open fields than there is room for."""


@dataclass(frozen=True)
class Batch:
    """Entries of one family as the filter and the tables need them."""

    keys: NDArray[np.void]
    """:data:`.layouts.MATCH_KEY` rows."""
    bits: NDArray[np.int16]
    """The shape of each, by its bit; :data:`EXACT` or :data:`UNKNOWN_SHAPE` for none."""

    @property
    def words(self) -> NDArray[np.uint64]:
        """The keys, shape (n, words)."""
        words: NDArray[np.uint64] = self.keys["words"]
        return words

    def where(self, chosen: NDArray[Any]) -> Batch:
        """Give some of the rows."""
        return Batch(self.keys[chosen], self.bits[chosen])


def shape_number(bit: int) -> int:
    """Give the number, from 0, of the shape with this bit, as the datapath computes it."""
    return ((1 << bit) * lay.BIT_TO_SHAPE & (1 << 64) - 1) >> 58


class Shapes:
    """The shapes of one family: which bit each has, and how many entries."""

    def __init__(self, family: int) -> None:
        self._family = family
        self._bit_of: dict[int, int] = {}
        """Wild bytes as a number → bit."""
        self._wild_of: dict[int, tuple[int, int, int]] = {}
        self.entries = [0] * lay.MOST_SHAPES
        """Per bit."""

    def wild(self, bit: int) -> tuple[int, int, int]:
        """What a shape leaves open, as in `wild` of a flow key."""
        return self._wild_of[bit]

    def find(self, wilds: NDArray[np.uint8], *, create: bool) -> NDArray[np.int16]:
        """Give the bit of each row of `wild`: :data:`EXACT` for exact ones; without `create` others have
        :data:`UNKNOWN_SHAPE`.

        TooManyShapesError: nothing has changed then.
        """
        codes = wilds.astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], dtype=np.uint32)
        if not codes.any():
            return np.full(len(codes), EXACT, dtype=np.int16)
        distinct, inverse = np.unique(codes, return_inverse=True)
        new = [code for code in distinct.tolist() if code and code not in self._bit_of] if create else []
        free = [bit for bit in range(lay.MOST_SHAPES) if bit not in self._wild_of]
        if len(new) > len(free):
            raise TooManyShapesError(
                f"{len(self._bit_of) + len(new)} combinations of prefix lengths and open fields in IPv{self._family}; "
                f"{lay.MOST_SHAPES} are possible"
            )
        for code, bit in zip(new, free, strict=False):
            self._bit_of[code], self._wild_of[bit] = bit, (code & 0xFF, code >> 8 & 0xFF, code >> 16)
        bits = [self._bit_of.get(code, UNKNOWN_SHAPE) if code else EXACT for code in distinct.tolist()]
        return np.array(bits, dtype=np.int16)[inverse.reshape(-1)]

    def release_unused(self) -> None:
        """Free the bits of shapes without entries."""
        for code, bit in list(self._bit_of.items()):
            if not self.entries[bit]:
                del self._bit_of[code], self._wild_of[bit]


class Filter:
    """The filter of one family, in `memory`: one element of :func:`.layouts.filter_layout`, zeroed here.

    `random`: as many odd numbers as the filter has keys, unknown to whoever sends packets.
    """

    def __init__(self, memory: NDArray[np.void], family: int, log2: int, random: NDArray[np.uint64]) -> None:
        self._memory, self.family, self._log2 = memory, family, log2
        memory[:] = np.zeros((), dtype=memory.dtype)
        numbers = iter(random | np.uint64(1))
        self._hash_keys = memory["hash_keys"][0]
        self._ends = {name: memory[name][0] for name in ("src", "dst")}
        for keys in (self._hash_keys, memory["port_key"], *(end["keys"] for end in self._ends.values())):
            keys[:] = [next(numbers) for _ in keys]
        self._bits = memory["bits"][0]
        # Wide enough for keys that fall together: a count that overflows would hide an entry.
        self._entries_of_bit = np.zeros(1 << log2, dtype=np.uint16)
        self._fields = {name: memory[name][0] for name in ("sport", "dport", "protocol")}
        for name, end in self._ends.items():
            for level in range(len(lay.ADDRESS_LEVELS[family])):
                self._fields[f"{name}{level}"] = end["levels"][level]
        self._counts = {
            name: np.zeros((lay.MOST_SHAPES, len(shapes)), dtype=np.uint32) for name, shapes in self._fields.items()
        }
        self.shapes = Shapes(family)

    @staticmethod
    def random_numbers() -> int:
        """Give how many random numbers a filter needs."""
        return lay.KEY_WORDS[6] + 1 + 2 * 5

    # Keys

    def prepare(self, keys: NDArray[np.void], *, create: bool) -> Batch:
        """Give the keys of entries for masked flow keys. Rows without a known shape have :data:`UNKNOWN_SHAPE`.

        With `create` unknown shapes get a bit: add() must follow, or :meth:`Shapes.release_unused`. ValueError for a
        key that is not masked, TooManyShapesError.
        """
        bits = self.shapes.find(keys["wild"], create=create)
        match = np.zeros(len(keys), dtype=lay.MATCH_KEY[self.family])
        match["words"] = lay.key_words(keys, self.family)
        for bit in self._shapes_in(bits):
            rows = bits == bit
            if (match["words"][rows] & ~lay.mask_words(self.shapes.wild(bit), self.family)).any():
                self.shapes.release_unused()
                raise ValueError(f"a key of an IPv{self.family} entry has bits where it matches anything")
            match["words"][rows, 0] |= np.uint64(shape_number(bit) + 1 << lay.SHAPE_SHIFT)
        return Batch(match, bits)

    @staticmethod
    def _shapes_in(bits: NDArray[np.int16]) -> list[int]:
        return [bit for bit in np.unique(bits).tolist() if bit >= 0] if len(bits) > 1 else [*bits[bits >= 0].tolist()]

    # Changes

    def add(self, batch: Batch) -> None:
        """Let the datapath look for these keys, which can be found already and are not in the filter."""
        for places in self._places(batch.words):
            np.add.at(self._entries_of_bit, places, 1)
            np.bitwise_or.at(self._bits, places // _WORD, np.uint64(1) << places % _WORD)
        for bit in self._shapes_in(batch.bits):
            self._add_shape(bit, batch.words[batch.bits == bit])

    def _add_shape(self, bit: int, words: NDArray[np.uint64]) -> None:
        flag = np.uint64(1 << bit)
        first = not self.shapes.entries[bit]
        if first:
            self._memory["masks"][0, shape_number(bit), : words.shape[1]] = lay.mask_words(
                self.shapes.wild(bit), self.family
            )
        self.shapes.entries[bit] += len(words)
        for name, buckets in self._buckets(bit, words):
            shapes = self._fields[name]
            if buckets is not None:
                _count(self._counts[name][bit], buckets, np.add)
                shapes[buckets] |= flag
            elif first:
                shapes |= flag
        if first:
            self._memory["shapes"] |= flag

    def remove(self, batch: Batch) -> None:
        """Let the datapath no longer look for these keys, all of which must be in the filter."""
        for places in self._places(batch.words):
            np.subtract.at(self._entries_of_bit, places, 1)
            unused = places[self._entries_of_bit[places] == 0]
            np.bitwise_and.at(self._bits, unused // _WORD, ~(np.uint64(1) << unused % _WORD))
        for bit in self._shapes_in(batch.bits):
            self._remove_shape(bit, batch.words[batch.bits == bit])
        self.shapes.release_unused()

    def _remove_shape(self, bit: int, words: NDArray[np.uint64]) -> None:
        flag = np.uint64(1 << bit)
        self.shapes.entries[bit] -= len(words)
        last = not self.shapes.entries[bit]
        if last:
            self._memory["shapes"] &= ~flag
        for name, buckets in self._buckets(bit, words):
            shapes = self._fields[name]
            if buckets is not None:
                counts = self._counts[name][bit]
                _count(counts, buckets, np.subtract)
                shapes[buckets[counts[buckets] == 0]] &= ~flag
            elif last:
                shapes &= ~flag

    # Where bits are

    def hashes(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The hash of each key, as the datapath computes it."""
        folded = words ^ words >> np.uint64(32)
        hashes: NDArray[np.uint64] = (folded * self._hash_keys[: words.shape[1]]).sum(axis=1, dtype=np.uint64)
        return hashes

    def _places(self, words: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The places of each key's two bits in `bits`."""
        hashes = self.hashes(words)
        word = _WORD - self._log2 + 6
        base = hashes >> np.uint64(word) << np.uint64(6)
        first, second = (base | hashes >> np.uint64(word - shift) & np.uint64(63) for shift in (6, 12))
        return first, second

    def _buckets(self, bit: int, words: NDArray[np.uint64]) -> Iterator[tuple[str, NDArray[np.uint64] | None]]:
        """For each field, the buckets in which the keys' packets are; None: in all, for this shape."""
        src_open, dst_open, anything = self.shapes.wild(bit)
        first = words[:, 0]
        if self.family == 4:
            src, dst = ((words[:, 1] >> np.uint64(shift) & np.uint64(0xFFFF_FFFF))[:, None] for shift in (0, 32))
        else:
            src, dst = words[:, 1:3], words[:, 3:5]
        yield from self._address_buckets("src", src, src_open)
        yield from self._address_buckets("dst", dst, dst_open)
        ports = first & np.uint64(0xFFFF), first >> np.uint64(16) & np.uint64(0xFFFF)
        for name, flag, values in (("sport", Anything.SPORT, ports[0]), ("dport", Anything.DPORT, ports[1])):
            key = self._memory["port_key"][0]
            yield name, None if anything & flag else values * key >> np.uint64(_WORD - _PORT_LOG2)
        yield (
            "protocol",
            None if anything & Anything.PROTO else first >> np.uint64(lay.PROTOCOL_SHIFT) & np.uint64(0xFF),
        )

    def _address_buckets(
        self, name: str, address: NDArray[np.uint64], open_bits: int
    ) -> Iterator[tuple[str, NDArray[np.uint64] | None]]:
        """For each level. `address`: shape (n, words), the first bytes in the lowest bits of each word."""
        keys = self._ends[name]["keys"]
        for level, (head_bits, longest) in enumerate(
            zip(lay.ADDRESS_LEVELS[self.family], _LONGEST_WALKS, strict=False)
        ):
            walk = open_bits - (ADDRESS_BITS[self.family] - head_bits)
            if walk > longest:
                yield f"{name}{level}", None
                continue
            heads = address
            if head_bits < 64:
                heads = heads[:, :1] & np.uint64((1 << head_bits) - 1)
            elif head_bits == 64:
                heads = heads[:, :1]
            elif head_bits < 128:
                heads = heads & np.array([(1 << 64) - 1, (1 << (head_bits - 64)) - 1], dtype=np.uint64)
            if walk > 0:
                more = _continuations(walk, head_bits)[:, : heads.shape[1]]
                heads = (heads[:, None] | more[None, :]).reshape(-1, heads.shape[1])
            hashes = heads[:, 0] * keys[level]
            if heads.shape[1] > 1:
                hashes = hashes + heads[:, 1] * keys[level + 1]
            yield f"{name}{level}", hashes >> np.uint64(_WORD - _ADDRESS_LOG2)


def _continuations(walk: int, head_bits: int) -> NDArray[np.uint64]:
    """All values of the last `walk` of an address' first bits, as the two words of an address; in network order."""
    last = head_bits // 8 - 1
    raw = np.zeros((1 << walk, 16), dtype=np.uint8)
    values = np.arange(1 << walk, dtype=np.uint64)
    raw[:, last], raw[:, last - 1] = values & np.uint64(0xFF), values >> np.uint64(8)
    return raw.view("<u8")


def _count(counts: NDArray[np.uint32], places: NDArray[np.uint64], change: np.ufunc) -> None:
    """Count each place once more, or once less; places may repeat."""
    if len(places) < len(counts):
        change.at(counts, places, 1)
    else:
        change(counts, np.bincount(places.astype(np.int64), minlength=len(counts)).astype(np.uint32), out=counts)
