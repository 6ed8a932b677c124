# SPDX-License-Identifier: Apache-2.0
"""Builds Maglev rings, slot for slot as Katran's control plane does.

The rule: each real visits the slots in an order of its own, its *walk*: ``offset + n × skip`` modulo the ring's size.
Offset and skip come from the hash of its address. Reals take turns, sorted by that hash; in a turn a real takes the
next slot of its walk that is free. In version 1 a real takes ``weight`` slots in its first turn and one in every later
turn. In version 2 weights add up, and a real has a turn in the rounds in which its sum reaches the largest weight.

Turn by turn this costs about R·ln R steps of Python for a ring of R slots. Here a *block* of turns is computed at
once, since the order of turns is known beforehand. Each real has a list of the next free slots of its walk. A slot on
several lists is *contested* and goes to the real that reaches it first. A real that loses a slot keeps its turn and
reaches all its later slots earlier, which may decide other contests differently. So the contests are decided again and
again, until the outcome is stable up to some time. All turns before that time are final, because no turn depends on a
later one, and the block ends there. When few slots are free, most slots of a walk are taken: then each real's order of
the free slots is computed by the modular inverse of its skip.

This is the reference, and works without privileges. maglev_kernel.py builds the same rings in the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nfcore.errors import NfcoreError

from .hashing import RING_SIZE, U32, Address, endpoint_hashes, murmur3_pair

Index: TypeAlias = NDArray[np.intp]
Flags: TypeAlias = NDArray[np.bool_]
Times: TypeAlias = NDArray[np.float64]
Turns: TypeAlias = NDArray[np.uint16]

NO_REAL = 0
"""Value of a slot when no real has a weight; the data plane drops and counts the packet."""

_OFFSET_SEED = (42, 0)
_SKIP_SEED = (2_718_281_828, 2_307)
_U32_MAX = 0xFFFFFFFF

# Chosen by measuring 3 to 250 reals; the ring does not depend on any of them.
_BLOCK_SHARE = 0.4
"""Share of the free slots that a block aims to fill."""
_MAX_PASSES = 10
_MAX_LIST_ENTRIES = 60_000
"""When free slots × reals are so many or fewer, each real's order of all free slots is computed."""
_MAX_TABLE_SIZE = 4
"""Up to so many rounds × reals per turn, a table of the turns of each round is faster than sorting turns."""
_LAST_TURNS = 64
"""So many turns at the end are taken one by one."""
_INDEX_BITS = 15
"""Bits for the index of a free slot beside its step in one word."""


@dataclass(frozen=True)
class Endpoint:
    """A real of a ring."""

    num: int
    """Its number in the ``reals`` map, from 1."""
    address: Address
    weight: int
    """Its share, 0 to 2³² − 1; 0: no slot."""


class _Schedule(Protocol):
    """The order of turns. A turn's time is a whole number in float64, below 2⁵³; no two turns have the same."""

    def time_of(self, reals: Index, turns: Index) -> Times:
        """Time of each real's turn number ``turns`` (from 0)."""

    def turns_before(self, time: float) -> Index:
        """Number of turns of each real before ``time``."""

    def horizon(self, now: float, total: int) -> float:
        """A time before which there are about ``total`` turns, at least one of them from ``now`` on."""

    def order(self, total: int) -> Turns:
        """The real of each of the first ``total`` turns."""


class _BurstSchedule:
    """Version 1: each real has ``weight`` turns one after the other, then each has one turn per round."""

    def __init__(self, weights: Index) -> None:
        self._weights = weights
        self._ends = np.cumsum(weights)
        self._starts = self._ends - weights
        self._burst = int(self._ends[-1])
        self._reals = np.arange(len(weights))

    def time_of(self, reals: Index, turns: Index) -> Times:
        weights = self._weights[reals]
        later = self._burst + (turns - weights) * len(self._weights) + reals
        return np.where(turns < weights, self._starts[reals] + turns, later).astype(np.float64)

    def turns_before(self, time: float) -> Index:
        if time <= self._burst:
            taken: Index = np.clip(int(time) - self._starts, 0, self._weights)
            return taken
        rounds, real = divmod(int(time) - self._burst, len(self._weights))
        return self._weights + rounds + (self._reals < real)

    def horizon(self, now: float, total: int) -> float:
        if total <= self._burst:
            return max(total, now + 1)
        count = len(self._weights)
        return max(self._burst - (self._burst - total) // count * count, now + count)

    def order(self, total: int) -> Turns:
        reals = self._reals.astype(np.uint16)
        burst = np.repeat(reals, np.clip(total - self._starts, 0, self._weights))
        rest = total - len(burst)
        return np.concatenate((burst, np.tile(reals, -(-rest // len(reals)))[:rest]))


class _AccumulatingSchedule:
    """Version 2: by the end of round r (from 1) a real has had floor(r × weight / largest weight) turns."""

    def __init__(self, weights: Index) -> None:
        self._weights = weights
        self._exact = weights.astype(np.float64)
        self._largest = int(weights.max())
        self._sum = int(weights.sum())
        self._reals = np.arange(len(weights))

    def time_of(self, reals: Index, turns: Index) -> Times:
        # The quotient of integers below 2⁵³ never rounds across an integer, hence the ceiling is exact.
        rounds: Times = np.ceil((turns + 1) * self._largest / self._exact[reals])
        return rounds * len(self._weights) + reals

    def turns_before(self, time: float) -> Index:
        rounds, real = divmod(int(time), len(self._weights))
        started = rounds - 1 + (self._reals < real)
        taken: Index = np.maximum(started, 0) * self._weights // self._largest
        return taken

    def horizon(self, now: float, total: int) -> float:
        count = len(self._weights)
        rounds = max(-(-total * self._largest // self._sum), int(now) // count + 1)
        return (rounds + 1) * count

    def order(self, total: int) -> Turns:
        count = len(self._weights)
        # Each real's number of turns is rounded down: at most one turn per real is missing. When all sums are back at
        # zero, the order repeats.
        rounds = -(-(total + count) * self._largest // self._sum)
        rounds = min(rounds, self._largest // int(np.gcd.reduce(self._weights)))
        if rounds * count <= _MAX_TABLE_SIZE * total:
            sums = np.multiply.outer(np.arange(rounds + 1, dtype=np.uint64), self._weights.astype(np.uint64))
            sums //= np.uint64(self._largest)
            reals = np.tile(self._reals.astype(np.uint16), rounds)
            order = reals.compress((sums[1:] != sums[:-1]).ravel())
        else:
            turns = self.turns_before((rounds + 1) * count)
            times = self.time_of(np.repeat(self._reals, turns), _ranges(np.zeros_like(turns), turns))
            times.sort()
            order = (times % count).astype(np.uint16)
        return np.tile(order, -(-total // len(order)))[:total]


def _ranges(firsts: Index, lengths: Index) -> Index:
    """``lengths[r]`` numbers from ``firsts[r]`` upwards for each real r, one real after the other."""
    ends = np.cumsum(lengths)
    numbers = np.arange(ends[-1])
    numbers += np.repeat(firsts - (ends - lengths), lengths)
    return numbers


def _bounds(lengths: Index) -> Index:
    return np.concatenate((np.zeros(1, np.intp), np.cumsum(lengths)))


@dataclass(frozen=True)
class _Lists:
    """A list of slots for each real, end to end; real r's is ``slots[bounds[r] : bounds[r + 1]]``."""

    slots: Index
    bounds: Index

    @property
    def lengths(self) -> Index:
        return np.diff(self.bounds)

    def only(self, free: Flags) -> _Lists:
        """The lists with only those slots that are ``free``."""
        kept = np.flatnonzero(free.take(self.slots))
        return _Lists(self.slots.take(kept), np.searchsorted(kept, self.bounds))

    def part(self, skipped: Index, lengths: Index) -> _Lists:
        """Of each list ``lengths[r]`` slots after the first ``skipped[r]``."""
        return _Lists(self.slots.take(_ranges(self.bounds[:-1] + skipped, lengths)), _bounds(lengths))

    def extended(self, more: _Lists) -> _Lists:
        """Each list followed by the same real's list in ``more``."""
        bounds = self.bounds + more.bounds
        slots = np.empty(bounds[-1], np.intp)
        slots[_ranges(bounds[:-1], self.lengths)] = self.slots
        slots[_ranges(bounds[:-1] + self.lengths, more.lengths)] = more.slots
        return _Lists(slots, bounds)


@dataclass(frozen=True)
class _Contests:
    """Who loses the slots that are on more than one list."""

    entries: Index
    """Positions of these slots in the lists, ascending."""
    lost: Flags
    """Whether the real whose list has that position loses the slot."""
    losses: Index
    """Number of slots that each real loses."""
    undecided_from: float
    """Time from which on ``lost`` and ``losses`` may be wrong."""


class _RingFill:
    """A ring while it is filled. Reals are numbered from 0 in the order of turns."""

    def __init__(self, offsets: U32, skips: U32, schedule: _Schedule, size: int) -> None:
        self._offsets, self._skips, self._schedule, self._size = offsets, skips, schedule, size
        self._reals = np.arange(len(offsets))
        self._owners = np.zeros(size, np.int32)
        """The real of each slot."""
        self._free = np.ones(size, np.bool_)
        self._free_count = size
        self._now = 0.0
        """All turns before this time are taken."""
        self._turns_taken = np.zeros(len(offsets), np.intp)
        self._steps_walked = np.zeros(len(offsets), np.intp)
        self._pending = _Lists(np.empty(0, np.intp), np.zeros(len(offsets) + 1, np.intp))
        """The next slots of each real's walk, free when they were listed."""
        self._lists_complete = False
        """Whether the pending lists have every free slot."""
        # Scratch arrays by slot, valid only where they have just been written.
        self._last_seen = np.empty(size, np.int32)
        self._contested = np.zeros(size, np.bool_)
        self._earliest = np.empty(size, np.float64)

    def fill(self) -> NDArray[np.int32]:
        """Fill the ring; returns the real of each slot."""
        while self._free_count:
            entries = min(len(self._reals), self._free_count) * self._free_count
            if not self._lists_complete and entries <= _MAX_LIST_ENTRIES:
                self._pending, self._lists_complete = self._list_all_free_slots(), True
            if self._lists_complete and self._free_count <= _LAST_TURNS:
                self._fill_one_by_one()
            else:
                self._fill_block()
        return self._owners

    def _fill_block(self) -> None:
        aim = max(1, int(self._free_count * _BLOCK_SHARE))
        horizon = self._schedule.horizon(self._now, self._size - self._free_count + aim)
        turns = self._schedule.turns_before(horizon) - self._turns_taken
        # While the free slots shrink from F to F − aim, walks visit ln(F / (F − aim)) · F of those free now.
        visited = float(np.log(self._free_count / max(self._free_count - aim, 0.5))) * self._free_count / aim
        wanted = (turns * visited + 2 * np.sqrt(turns) + 2).astype(np.intp)
        if not self._lists_complete:
            self._extend_lists(wanted)
        lists = self._pending.part(np.zeros_like(wanted), np.minimum(wanted, self._pending.lengths))
        contests = self._decide_contests(lists, horizon)
        # Of a real that may run out of listed slots, nothing is known after the last one.
        known = self._schedule.time_of(self._reals, self._turns_taken + lists.lengths - contests.losses)
        self._commit(lists, contests, min(float(known.min()), contests.undecided_from))

    def _extend_lists(self, wanted: Index) -> None:
        """Continue the walks until the pending lists are about ``wanted`` long."""
        short = np.maximum(wanted - self._pending.lengths, 0)
        steps = short * (self._size / self._free_count)
        spread = 2 * np.sqrt(steps * (1 - self._free_count / self._size)) + (short > 0)
        lengths = (steps + spread).astype(np.intp)
        bounds = _bounds(lengths)
        # u32 arithmetic as upstream's, its wrap at 2³² included.
        bases = self._offsets + (self._steps_walked - bounds[:-1]).astype(np.uint32) * self._skips
        slots = np.arange(bounds[-1], dtype=np.uint32)
        slots *= np.repeat(self._skips, lengths)
        slots += np.repeat(bases, lengths)
        # numpy's division by one number is vectorised, its remainder is not.
        slots -= slots // np.uint32(self._size) * np.uint32(self._size)
        self._steps_walked += lengths
        self._pending = self._pending.extended(_Lists(slots.astype(np.intp), bounds).only(self._free))

    def _decide_contests(self, lists: _Lists, horizon: float) -> _Contests:
        """Decide the contests before ``horizon``, or as many as :data:`_MAX_PASSES` decide."""
        entries = self._contested_entries(lists)
        slots = lists.slots.take(entries)
        firsts = np.searchsorted(entries, lists.bounds)
        lengths = np.diff(firsts)
        # A real that loses nothing reaches the slot at position i of the lists at times[i]. Each loss before that makes
        # it the time of one position earlier.
        times = self._schedule.time_of(np.repeat(self._reals, lists.lengths), _ranges(self._turns_taken, lists.lengths))
        # Any first guess leads to the same result.
        lost = np.arange(len(entries)) % 2 == 1
        running = np.zeros(len(entries) + 1, np.intp)
        np.cumsum(lost, out=running[1:])
        undecided_from = self._now if len(entries) else np.inf
        for _ in range(_MAX_PASSES):
            if undecided_from > horizon:
                break
            arrival = times.take(entries - running[:-1] + np.repeat(running[firsts[:-1]], lengths))
            self._earliest[slots] = np.inf
            np.minimum.at(self._earliest, slots, arrival)
            lost, previous = arrival != self._earliest.take(slots), lost
            undecided_from = float(arrival[lost != previous].min(initial=np.inf))
            np.cumsum(lost, out=running[1:])
        return _Contests(entries, lost, running[firsts[1:]] - running[firsts[:-1]], undecided_from)

    def _contested_entries(self, lists: _Lists) -> Index:
        """Positions in the lists, ascending, of the slots that are on more than one list."""
        positions = np.arange(len(lists.slots), dtype=np.int32)
        self._last_seen[lists.slots] = positions
        repeated = lists.slots[self._last_seen.take(lists.slots) != positions]
        self._contested[repeated] = True
        entries = np.flatnonzero(self._contested.take(lists.slots))
        self._contested[repeated] = False
        return entries

    def _commit(self, lists: _Lists, contests: _Contests, end: float) -> None:
        """Take all turns before ``end``, whose outcomes are known."""
        if end <= self._now:
            return
        turns = self._schedule.turns_before(end) - self._turns_taken
        won = np.ones(len(lists.slots), np.bool_)
        won[contests.entries[contests.lost]] = False
        positions = np.flatnonzero(won)
        positions = positions.take(_ranges(np.searchsorted(positions, lists.bounds[:-1]), turns))
        slots = lists.slots.take(positions)
        self._owners[slots] = np.repeat(self._reals, turns)
        self._free[slots] = False
        # A list continues after the last slot that the real took: all slots before it are taken.
        passed = np.zeros_like(turns)
        last = np.cumsum(turns) - 1
        active = np.flatnonzero(turns)
        passed[active] = positions[last[active]] + 1 - lists.bounds[active]
        self._pending = self._pending.part(passed, self._pending.lengths - passed).only(self._free)
        self._turns_taken += turns
        self._free_count -= len(slots)
        self._now = end

    def _remaining_turns(self) -> Index:
        """The reals of the remaining turns, in order."""
        aim = self._free_count
        turns = np.zeros_like(self._turns_taken)
        while turns.sum() < self._free_count:
            end = self._schedule.horizon(self._now, self._size - self._free_count + aim)
            turns = self._schedule.turns_before(end) - self._turns_taken
            aim *= 2
        reals = np.repeat(self._reals, turns)
        times = self._schedule.time_of(reals, _ranges(self._turns_taken, turns))
        return reals[np.argsort(times)[: self._free_count]]

    def _list_all_free_slots(self) -> _Lists:
        """List all free slots, in the order of its walk, for each real that still has a turn."""
        slots = np.flatnonzero(self._free)
        active = np.unique(self._remaining_turns())
        offsets, skips = self._offsets[active].astype(np.intp), self._skips[active].tolist()
        inverses = np.array([pow(skip, -1, self._size) for skip in skips], np.intp)
        steps = (slots + (self._size - offsets)[:, None]) * inverses[:, None]
        steps -= steps // self._size * self._size
        # Step and index of the slot in one word: sorting words is several times faster than an indirect sort.
        keys = (steps << _INDEX_BITS | np.arange(len(slots))).astype(np.uint32)
        keys.sort(axis=1)
        orders = slots[keys & np.uint32((1 << _INDEX_BITS) - 1)]
        for row in np.flatnonzero(_wrapping(self._offsets[active], self._skips[active], self._size)):
            orders[row] = self._wrapping_order(int(active[row]), orders[row])
        lengths = np.zeros_like(self._turns_taken)
        lengths[active] = len(slots)
        return _Lists(orders.ravel(), _bounds(lengths))

    def _wrapping_order(self, real: int, order: Index) -> Index:
        """Change ``order`` to that of a walk whose u32 arithmetic wraps.

        That takes a skip of 65,535 or 65,536 in a full-size ring. Such a walk may never visit some slot. Upstream's
        loop would not end when only that slot is free; here it comes last.
        """
        steps = np.arange(4 * self._size, dtype=np.uint32) * self._skips[real] + self._offsets[real]
        walk = (steps % np.uint32(self._size)).astype(np.intp)
        walk = walk[self._free[walk]]
        _, firsts = np.unique(walk, return_index=True)
        walk = walk[np.sort(firsts)]
        return np.concatenate((walk, order[~np.isin(order, walk)]))

    def _fill_one_by_one(self) -> None:
        lists = self._pending.only(self._free)
        walks = [iter(lists.slots[first:end].tolist()) for first, end in pairwise(lists.bounds.tolist())]
        free = set(np.flatnonzero(self._free).tolist())
        for real in self._remaining_turns().tolist():
            slot = next(slot for slot in walks[real] if slot in free)
            free.remove(slot)
            self._owners[slot] = real
        self._free_count = 0


def _check(endpoints: Sequence[Endpoint], version: int, ring_size: int) -> None:
    if version not in (1, 2):
        raise NfcoreError(f"Maglev version {version!r} does not exist; it has to be 1 or 2")
    if not 2 <= ring_size <= RING_SIZE or any(ring_size % d == 0 for d in range(2, isqrt(ring_size) + 1)):
        raise NfcoreError(f"ring size {ring_size!r} is not possible; it has to be a prime from 2 to {RING_SIZE}")
    for real in endpoints:
        if not 0 <= real.weight <= _U32_MAX:
            raise NfcoreError(f"real {real.address}: weight {real.weight} is not in 0 to {_U32_MAX}")
        if not 0 < real.num <= _U32_MAX:
            raise NfcoreError(f"real {real.address}: number {real.num} is not in 1 to {_U32_MAX}")
    seen: set[Address] = set()
    for real in endpoints:
        if real.address in seen:
            raise NfcoreError(f"real {real.address} is listed twice; list it once, with its whole weight")
        seen.add(real.address)


@dataclass(frozen=True)
class WeightedReals:
    """The reals of a ring that have a weight, in the order of turns; arrays of one length."""

    numbers: U32
    """In the ``reals`` map."""
    offsets: U32
    """First slot of each walk."""
    skips: U32
    """Distance from each slot of a walk to the next."""
    weights: Index

    @classmethod
    def of(cls, endpoints: Sequence[Endpoint], ring_size: int) -> WeightedReals:
        """Compute the walks from the addresses. At least one of ``endpoints`` has a weight."""
        reals = [real for real in endpoints if real.weight]
        numbers = np.array([real.num for real in reals], "<u4")
        hashes = endpoint_hashes([real.address for real in reals])
        # Different addresses can have the same hash (v4 passes through 32 bits); then the number decides.
        order = np.lexsort((numbers, hashes))
        hashes = hashes[order]
        offsets = murmur3_pair(hashes, *_OFFSET_SEED) % np.uint64(ring_size)
        skips = murmur3_pair(hashes, *_SKIP_SEED) % np.uint64(ring_size - 1) + np.uint64(1)
        weights = np.array([real.weight for real in reals], np.intp)
        return cls(numbers[order], offsets.astype(np.uint32), skips.astype(np.uint32), weights[order])

    def __len__(self) -> int:
        return len(self.numbers)

    def schedule(self, version: int) -> _Schedule:
        """The order of turns."""
        return _BurstSchedule(self.weights) if version == 1 else _AccumulatingSchedule(self.weights)

    def wraps(self, ring_size: int) -> bool:
        """Whether the u32 arithmetic of a walk wraps before it has visited every slot."""
        return bool(_wrapping(self.offsets, self.skips, ring_size).any())


def _wrapping(offsets: U32, skips: U32, size: int) -> Flags:
    return offsets + np.uint64(size - 1) * skips > _U32_MAX


class BuildRing(Protocol):
    """Something that builds rings; arguments and result are those of :func:`build_ring`."""

    def __call__(self, endpoints: Sequence[Endpoint], *, version: int = 2) -> NDArray[np.uint32]:
        """Build the ring of one VIP, of the ABI's size."""
        ...


def trivial_ring(
    endpoints: Sequence[Endpoint], *, version: int, ring_size: int = RING_SIZE
) -> NDArray[np.uint32] | None:
    """The ring of at most one real with a weight; None when more have one. Raises as :func:`build_ring`."""
    _check(endpoints, version, ring_size)
    numbers = [real.num for real in endpoints if real.weight]
    return None if len(numbers) > 1 else np.full(ring_size, numbers[0] if numbers else NO_REAL, "<u4")


def build_ring(endpoints: Sequence[Endpoint], *, version: int = 2, ring_size: int = RING_SIZE) -> NDArray[np.uint32]:
    """The ring of one VIP: shape (ring_size,), dtype ``<u4``; a slot holds the number of its real.

    ``version`` is Katran's Maglev version (1 or 2); ``ring_size`` a prime up to 65,537, the ABI's size. The
    order of ``endpoints`` does not matter. Reals of weight 0 get no slot; without any other real every slot
    is :data:`NO_REAL`: the data plane then drops and counts. (Upstream leaves the old ring in place.)

    Raises NfcoreError for another version or size, a weight or number outside u32, number 0, and a real that
    is listed twice.
    """
    ring = trivial_ring(endpoints, version=version, ring_size=ring_size)
    if ring is None:
        reals = WeightedReals.of(endpoints, ring_size)
        filling = _RingFill(reals.offsets, reals.skips, reals.schedule(version), ring_size)
        ring = reals.numbers[filling.fill()]
    return ring
