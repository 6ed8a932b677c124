# SPDX-License-Identifier: Apache-2.0
"""Maglev rings, slot for slot as Katran's control plane builds them.

The rule (facts of the ABI page): each real walks the slots in an order of its own, ``offset + n × skip``
modulo the ring's size, both derived from the hash of its address. Reals take turns, sorted by that hash; in a
turn a real takes the next slot of its walk that nobody has. In version 1 a real's first turn takes ``weight``
slots and every later turn one; in version 2 weights accumulate, and a real plays in the rounds in which its
sum reaches the largest weight.

Played turn by turn this costs about R·ln R steps of Python. Here a *block* of turns is settled at once, since
the turn order is known beforehand. Each real (a *player*) lists the next free slots of its walk. A slot on
several lists goes to the player that arrives first; a player that loses a slot has its turn left and arrives
earlier at all its later slots, which may turn other contests. Repeated, that settles contests from the
earliest time onwards; all that lies before the first unsettled time is final, because no turn depends on a
later one, and the block ends there. When few slots are left, walking on would mostly meet taken slots: each
player's order of the free slots is then computed with the modular inverse of its skip.

This is the reference, and what runs without privileges; rings.py has the kernel play the turns.
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
"""What a slot holds when no real can serve it; the data plane counts and drops."""

_OFFSET_SEED = (42, 0)
_SKIP_SEED = (2_718_281_828, 2_307)
_U32_MAX = 0xFFFFFFFF


# Chosen by measuring 3 to 250 reals; the ring does not depend on any of them.
_BLOCK_SHARE = 0.4
"""Share of the free slots that a block aims to fill."""
_MAX_PASSES = 10
_LISTED_ENTRIES = 60_000
"""Free slots × players from which on everybody's order of the free slots is computed."""
_LARGEST_TABLE = 4
"""Rounds × players per turn up to which a table of who plays in which round is faster than sorting turns."""
_LAST_TURNS = 64
"""Turns at the end that are played one by one."""
_INDEX_BITS = 15


@dataclass(frozen=True)
class Endpoint:
    """A real as a ring sees it."""

    num: int
    """Its number in the ``reals`` map, from 1."""
    address: Address
    weight: int
    """Its share, 0 to 2³² − 1; 0 takes it out of the ring."""


class _Schedule(Protocol):
    """Who plays when. A turn's time is a whole number in float64, below 2⁵³; no two turns share one."""

    def time_of(self, players: Index, turns: Index) -> Times:
        """Time of each player's turn number ``turns`` (from 0)."""

    def turns_before(self, time: float) -> Index:
        """Turns that each player has before ``time``."""

    def horizon(self, now: float, total: int) -> float:
        """A time after ``now`` by which about ``total`` turns have been played, with at least one between."""

    def order(self, total: int) -> Turns:
        """Who plays each of the first ``total`` turns."""


class _BurstSchedule:
    """Version 1: player after player takes ``weight`` turns, then everybody takes one per round."""

    def __init__(self, weights: Index) -> None:
        self._weights = weights
        self._ends = np.cumsum(weights)
        self._starts = self._ends - weights
        self._burst = int(self._ends[-1])
        self._players = np.arange(len(weights))

    def time_of(self, players: Index, turns: Index) -> Times:
        weights = self._weights[players]
        later = self._burst + (turns - weights) * len(self._weights) + players
        return np.where(turns < weights, self._starts[players] + turns, later).astype(np.float64)

    def turns_before(self, time: float) -> Index:
        if time <= self._burst:
            played: Index = np.clip(int(time) - self._starts, 0, self._weights)
            return played
        rounds, player = divmod(int(time) - self._burst, len(self._weights))
        return self._weights + rounds + (self._players < player)

    def horizon(self, now: float, total: int) -> float:
        if total <= self._burst:
            return max(total, now + 1)
        players = len(self._weights)
        return max(self._burst - (self._burst - total) // players * players, now + players)

    def order(self, total: int) -> Turns:
        players = self._players.astype(np.uint16)
        burst = np.repeat(players, np.clip(total - self._starts, 0, self._weights))
        rest = total - len(burst)
        return np.concatenate((burst, np.tile(players, -(-rest // len(players)))[:rest]))


class _AccumulatingSchedule:
    """Version 2: in round r (from 1) player p has played floor(r × weight / largest weight) times."""

    def __init__(self, weights: Index) -> None:
        self._weights = weights
        self._exact = weights.astype(np.float64)
        self._largest = int(weights.max())
        self._sum = int(weights.sum())
        self._players = np.arange(len(weights))

    def time_of(self, players: Index, turns: Index) -> Times:
        # The quotient of integers below 2⁵³ never rounds across an integer, hence the ceiling is exact.
        rounds: Times = np.ceil((turns + 1) * self._largest / self._exact[players])
        return rounds * len(self._weights) + players

    def turns_before(self, time: float) -> Index:
        rounds, player = divmod(int(time), len(self._weights))
        started = rounds - 1 + (self._players < player)
        played: Index = np.maximum(started, 0) * self._weights // self._largest
        return played

    def horizon(self, now: float, total: int) -> float:
        players = len(self._weights)
        rounds = max(-(-total * self._largest // self._sum), int(now) // players + 1)
        return (rounds + 1) * players

    def order(self, total: int) -> Turns:
        count = len(self._weights)
        # Each player's share is a floor: at most one turn per player is missing. When all sums are back at zero,
        # everything repeats.
        rounds = -(-(total + count) * self._largest // self._sum)
        rounds = min(rounds, self._largest // int(np.gcd.reduce(self._weights)))
        if rounds * count <= _LARGEST_TABLE * total:
            sums = np.multiply.outer(np.arange(rounds + 1, dtype=np.uint64), self._weights.astype(np.uint64))
            sums //= np.uint64(self._largest)
            players = np.tile(self._players.astype(np.uint16), rounds)
            order = players.compress((sums[1:] != sums[:-1]).ravel())
        else:
            turns = self.turns_before((rounds + 1) * count)
            times = self.time_of(np.repeat(self._players, turns), _ranges(np.zeros_like(turns), turns))
            times.sort()
            order = (times % count).astype(np.uint16)
        return np.tile(order, -(-total // len(order)))[:total]


def _ranges(firsts: Index, lengths: Index) -> Index:
    """``lengths[p]`` numbers from ``firsts[p]`` upwards for each player p, one player after the other."""
    ends = np.cumsum(lengths)
    numbers = np.arange(ends[-1])
    numbers += np.repeat(firsts - (ends - lengths), lengths)
    return numbers


def _bounds(lengths: Index) -> Index:
    return np.concatenate((np.zeros(1, np.intp), np.cumsum(lengths)))


@dataclass(frozen=True)
class _Lists:
    """A list of slots for each player, end to end; player p's is ``slots[bounds[p] : bounds[p + 1]]``."""

    slots: Index
    bounds: Index

    @property
    def lengths(self) -> Index:
        return np.diff(self.bounds)

    def only(self, free: Flags) -> _Lists:
        """The lists without the slots that are not ``free``."""
        kept = np.flatnonzero(free.take(self.slots))
        return _Lists(self.slots.take(kept), np.searchsorted(kept, self.bounds))

    def part(self, skipped: Index, lengths: Index) -> _Lists:
        """Of each list ``lengths[p]`` slots after the first ``skipped[p]``."""
        return _Lists(self.slots.take(_ranges(self.bounds[:-1] + skipped, lengths)), _bounds(lengths))

    def extended(self, more: _Lists) -> _Lists:
        """Each list followed by the same player's list in ``more``."""
        bounds = self.bounds + more.bounds
        slots = np.empty(bounds[-1], np.intp)
        slots[_ranges(bounds[:-1], self.lengths)] = self.slots
        slots[_ranges(bounds[:-1] + self.lengths, more.lengths)] = more.slots
        return _Lists(slots, bounds)


@dataclass(frozen=True)
class _Contests:
    """What is known of the slots that are on more than one list."""

    entries: Index
    """Places of these slots in the lists, ascending."""
    lost: Flags
    """Whether the player at that place loses the slot."""
    losses: Index
    """Slots that each player loses."""
    unsettled: float
    """Time from which on ``lost`` and ``losses`` may be wrong."""


class _Game:
    """A ring being filled."""

    def __init__(self, offsets: U32, skips: U32, schedule: _Schedule, size: int) -> None:
        self._offsets, self._skips, self._schedule, self._size = offsets, skips, schedule, size
        self._players = np.arange(len(offsets))
        self._owners = np.zeros(size, np.int32)
        self._free = np.ones(size, np.bool_)
        self._left = size
        self._now = 0.0
        """Time before which all turns have been played."""
        self._played = np.zeros(len(offsets), np.intp)
        self._walked = np.zeros(len(offsets), np.intp)
        self._pending = _Lists(np.empty(0, np.intp), np.zeros(len(offsets) + 1, np.intp))
        """Slots that a player has walked over and not taken."""
        self._listed = False
        # Scratch space by slot, valid only where it has just been written.
        self._last_seen = np.empty(size, np.int32)
        self._contested = np.zeros(size, np.bool_)
        self._earliest = np.empty(size, np.float64)

    def play(self) -> NDArray[np.int32]:
        """Which player owns each slot."""
        while self._left:
            if not self._listed and min(len(self._players), self._left) * self._left <= _LISTED_ENTRIES:
                self._pending, self._listed = self._all_orders(), True
            if self._listed and self._left <= _LAST_TURNS:
                self._play_singly()
            else:
                self._play_block()
        return self._owners

    def _play_block(self) -> None:
        aim = max(1, int(self._left * _BLOCK_SHARE))
        horizon = self._schedule.horizon(self._now, self._size - self._left + aim)
        turns = self._schedule.turns_before(horizon) - self._played
        # While the free slots shrink from F to F − aim, walks meet ln(F / (F − aim)) · F of those free now.
        met = float(np.log(self._left / max(self._left - aim, 0.5))) * self._left / aim
        wanted = (turns * met + 2 * np.sqrt(turns) + 2).astype(np.intp)
        if not self._listed:
            self._walk_on(wanted)
        lists = self._pending.part(np.zeros_like(wanted), np.minimum(wanted, self._pending.lengths))
        contests = self._settle(lists, horizon)
        # A player that may run out of listed slots is not known beyond its last one.
        known = self._schedule.time_of(self._players, self._played + lists.lengths - contests.losses)
        self._commit(lists, contests, min(float(known.min()), contests.unsettled))

    def _walk_on(self, wanted: Index) -> None:
        """Make the pending lists about ``wanted`` long."""
        short = np.maximum(wanted - self._pending.lengths, 0)
        steps = short * (self._size / self._left)
        spread = 2 * np.sqrt(steps * (1 - self._left / self._size)) + (short > 0)
        lengths = (steps + spread).astype(np.intp)
        bounds = _bounds(lengths)
        # u32 arithmetic as upstream's, its wrap at 2³² included.
        bases = self._offsets + (self._walked - bounds[:-1]).astype(np.uint32) * self._skips
        slots = np.arange(bounds[-1], dtype=np.uint32)
        slots *= np.repeat(self._skips, lengths)
        slots += np.repeat(bases, lengths)
        # numpy's division by one number is vectorised, its remainder is not.
        slots -= slots // np.uint32(self._size) * np.uint32(self._size)
        self._walked += lengths
        self._pending = self._pending.extended(_Lists(slots.astype(np.intp), bounds).only(self._free))

    def _settle(self, lists: _Lists, horizon: float) -> _Contests:
        """Find who gets the contested slots before ``horizon``, or as far as a few passes settle it."""
        entries = self._contested_entries(lists)
        slots = lists.slots.take(entries)
        firsts = np.searchsorted(entries, lists.bounds)
        lengths = np.diff(firsts)
        # A player that lost nothing would reach the slot at place i of the lists at times[i]; each loss
        # before it makes that the time of one place earlier.
        times = self._schedule.time_of(np.repeat(self._players, lists.lengths), _ranges(self._played, lists.lengths))
        # Any first guess converges to the same answer.
        lost = np.arange(len(entries)) % 2 == 1
        running = np.zeros(len(entries) + 1, np.intp)
        np.cumsum(lost, out=running[1:])
        unsettled = self._now if len(entries) else np.inf
        for _ in range(_MAX_PASSES):
            if unsettled > horizon:
                break
            arrival = times.take(entries - running[:-1] + np.repeat(running[firsts[:-1]], lengths))
            self._earliest[slots] = np.inf
            np.minimum.at(self._earliest, slots, arrival)
            lost, before = arrival != self._earliest.take(slots), lost
            unsettled = float(arrival[lost != before].min(initial=np.inf))
            np.cumsum(lost, out=running[1:])
        return _Contests(entries, lost, running[firsts[1:]] - running[firsts[:-1]], unsettled)

    def _contested_entries(self, lists: _Lists) -> Index:
        """Places in the lists, ascending, of the slots that are on more than one."""
        places = np.arange(len(lists.slots), dtype=np.int32)
        self._last_seen[lists.slots] = places
        repeated = lists.slots[self._last_seen.take(lists.slots) != places]
        self._contested[repeated] = True
        entries = np.flatnonzero(self._contested.take(lists.slots))
        self._contested[repeated] = False
        return entries

    def _commit(self, lists: _Lists, contests: _Contests, end: float) -> None:
        """Play all turns before ``end``; the outcome of each is known."""
        if end <= self._now:
            return
        turns = self._schedule.turns_before(end) - self._played
        won = np.ones(len(lists.slots), np.bool_)
        won[contests.entries[contests.lost]] = False
        places = np.flatnonzero(won)
        places = places.take(_ranges(np.searchsorted(places, lists.bounds[:-1]), turns))
        slots = lists.slots.take(places)
        self._owners[slots] = np.repeat(self._players, turns)
        self._free[slots] = False
        # Only the last place that a player took matters: what lies before it is taken, by somebody.
        passed = np.zeros_like(turns)
        last = np.cumsum(turns) - 1
        active = np.flatnonzero(turns)
        passed[active] = places[last[active]] + 1 - lists.bounds[active]
        self._pending = self._pending.part(passed, self._pending.lengths - passed).only(self._free)
        self._played += turns
        self._left -= len(slots)
        self._now = end

    def _upcoming(self) -> Index:
        """Who plays the turns that are left, in order."""
        aim = self._left
        turns = np.zeros_like(self._played)
        while turns.sum() < self._left:
            end = self._schedule.horizon(self._now, self._size - self._left + aim)
            turns = self._schedule.turns_before(end) - self._played
            aim *= 2
        players = np.repeat(self._players, turns)
        times = self._schedule.time_of(players, _ranges(self._played, turns))
        return players[np.argsort(times)[: self._left]]

    def _all_orders(self) -> _Lists:
        """Complete lists of the free slots for every player that still has a turn."""
        slots = np.flatnonzero(self._free)
        active = np.unique(self._upcoming())
        offsets, skips = self._offsets[active].astype(np.intp), self._skips[active].tolist()
        inverses = np.array([pow(skip, -1, self._size) for skip in skips], np.intp)
        steps = (slots + (self._size - offsets)[:, None]) * inverses[:, None]
        steps -= steps // self._size * self._size
        # Step and slot in one word: sorting it is several times faster than sorting indirectly.
        keys = (steps << _INDEX_BITS | np.arange(len(slots))).astype(np.uint32)
        keys.sort(axis=1)
        orders = slots[keys & np.uint32((1 << _INDEX_BITS) - 1)]
        for row in np.flatnonzero(_wrapping(self._offsets[active], self._skips[active], self._size)):
            orders[row] = self._wrapping_order(int(active[row]), orders[row])
        lengths = np.zeros_like(self._played)
        lengths[active] = len(slots)
        return _Lists(orders.ravel(), _bounds(lengths))

    def _wrapping_order(self, player: int, order: Index) -> Index:
        """``order`` changed to what a walk does whose u32 arithmetic wraps.

        That needs a skip of 65,535 or 65,536 in a full-size ring. Such a walk can miss a slot for ever, and
        upstream's would not end if only that slot were left; here it comes last.
        """
        steps = np.arange(4 * self._size, dtype=np.uint32) * self._skips[player] + self._offsets[player]
        walk = (steps % np.uint32(self._size)).astype(np.intp)
        walk = walk[self._free[walk]]
        _, firsts = np.unique(walk, return_index=True)
        walk = walk[np.sort(firsts)]
        return np.concatenate((walk, order[~np.isin(order, walk)]))

    def _play_singly(self) -> None:
        lists = self._pending.only(self._free)
        walks = [iter(lists.slots[first:end].tolist()) for first, end in pairwise(lists.bounds.tolist())]
        free = set(np.flatnonzero(self._free).tolist())
        for player in self._upcoming().tolist():
            slot = next(slot for slot in walks[player] if slot in free)
            free.remove(slot)
            self._owners[slot] = player
        self._left = 0


def _check(endpoints: Sequence[Endpoint], version: int, ring_size: int) -> None:
    if version not in (1, 2):
        raise NfcoreError(f"Maglev version {version!r} does not exist; it has to be 1 or 2")
    if not 2 <= ring_size <= RING_SIZE or any(ring_size % d == 0 for d in range(2, isqrt(ring_size) + 1)):
        raise NfcoreError(f"ring size {ring_size!r} does not do; it has to be a prime from 2 to {RING_SIZE}")
    for real in endpoints:
        if not 0 <= real.weight <= _U32_MAX:
            raise NfcoreError(f"real {real.address}: weight {real.weight} is not in 0 to {_U32_MAX}")
        if not 0 < real.num <= _U32_MAX:
            raise NfcoreError(f"real {real.address}: number {real.num} is not in 1 to {_U32_MAX}")
    seen: set[Address] = set()
    for real in endpoints:
        if real.address in seen:
            raise NfcoreError(f"real {real.address} is listed twice; give it once, with the weight that it is to have")
        seen.add(real.address)


@dataclass(frozen=True)
class Players:
    """The reals of a ring that have a weight, in the order in which they take turns; arrays of one length."""

    numbers: U32
    """In the ``reals`` map."""
    offsets: U32
    """Where each walk begins."""
    skips: U32
    """Slots from one step of a walk to the next."""
    weights: Index

    @classmethod
    def of(cls, endpoints: Sequence[Endpoint], ring_size: int) -> Players:
        """Derive walks from addresses. At least one of ``endpoints`` has a weight."""
        reals = [real for real in endpoints if real.weight]
        numbers = np.array([real.num for real in reals], "<u4")
        hashes = endpoint_hashes([real.address for real in reals])
        # Different addresses can share a hash (v4 passes through 32 bits); then the number decides.
        order = np.lexsort((numbers, hashes))
        hashes = hashes[order]
        offsets = murmur3_pair(hashes, *_OFFSET_SEED) % np.uint64(ring_size)
        skips = murmur3_pair(hashes, *_SKIP_SEED) % np.uint64(ring_size - 1) + np.uint64(1)
        weights = np.array([real.weight for real in reals], np.intp)
        return cls(numbers[order], offsets.astype(np.uint32), skips.astype(np.uint32), weights[order])

    def __len__(self) -> int:
        return len(self.numbers)

    def schedule(self, version: int) -> _Schedule:
        """Who plays when."""
        return _BurstSchedule(self.weights) if version == 1 else _AccumulatingSchedule(self.weights)

    def wraps(self, ring_size: int) -> bool:
        """Whether the u32 arithmetic of a walk wraps before it has met every slot."""
        return bool(_wrapping(self.offsets, self.skips, ring_size).any())


def _wrapping(offsets: U32, skips: U32, size: int) -> Flags:
    return offsets + np.uint64(size - 1) * skips > _U32_MAX


class BuildRing(Protocol):
    """Something that builds rings; :func:`build_ring` tells what arguments and result are."""

    def __call__(self, endpoints: Sequence[Endpoint], *, version: int = 2) -> NDArray[np.uint32]:
        """Build the ring of one VIP, of the ABI's size."""
        ...


def trivial_ring(
    endpoints: Sequence[Endpoint], *, version: int, ring_size: int = RING_SIZE
) -> NDArray[np.uint32] | None:
    """The ring of at most one real with a weight; None when there are more to play. Raises as :func:`build_ring`."""
    _check(endpoints, version, ring_size)
    numbers = [real.num for real in endpoints if real.weight]
    return None if len(numbers) > 1 else np.full(ring_size, numbers[0] if numbers else NO_REAL, "<u4")


def build_ring(endpoints: Sequence[Endpoint], *, version: int = 2, ring_size: int = RING_SIZE) -> NDArray[np.uint32]:
    """The ring of one VIP: shape (ring_size,), dtype ``<u4``; a slot holds the number of its real.

    ``version`` is Katran's Maglev version (1 or 2); ``ring_size`` a prime up to 65,537, the ABI's size. The
    order of ``endpoints`` does not matter. Reals of weight 0 get no slot; without any other real every slot
    is :data:`NO_REAL`: the data plane then drops and counts, where upstream leaves the old ring in place.

    Raises NfcoreError for another version or size, a weight or number outside u32, number 0, and a real that
    is listed twice.
    """
    ring = trivial_ring(endpoints, version=version, ring_size=ring_size)
    if ring is None:
        players = Players.of(endpoints, ring_size)
        game = _Game(players.offsets, players.skips, players.schedule(version), ring_size)
        ring = players.numbers[game.play()]
    return ring
