# SPDX-License-Identifier: Apache-2.0
"""Maglev rings, turn by turn."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address

from .hashing import RING_SLOTS, murmur, real_hash


def build_ring(reals: Mapping[int, tuple[str, int]], version: int = 1) -> array[int]:
    """The ring of a VIP. `reals`: number → address and weight. Without a real with a weight all slots are 0."""
    return _build(tuple(sorted(reals.items())), version)


@lru_cache(maxsize=64)
def _build(reals: tuple[tuple[int, tuple[str, int]], ...], version: int) -> array[int]:
    endpoints = sorted((real_hash(ip_address(a).packed), number, weight) for number, (a, weight) in reals if weight)
    if not endpoints:
        return array("H", bytes(2 * RING_SLOTS))
    numbers = [number for _, number, _ in endpoints]
    return array("H", [numbers[owner] for owner in _owners(endpoints, version)])


def _owners(endpoints: list[tuple[int, int, int]], version: int) -> array[int]:
    """Index of each slot's real. `endpoints`: hash, number and weight of each, in the order of turns."""
    owners = array("H", [0xFFFF]) * RING_SLOTS
    walks = [_walk(digest) for digest, _, _ in endpoints]
    turns = _turns([weight for _, _, weight in endpoints], version)
    for _ in range(RING_SLOTS):
        real = next(turns)
        slot = next(walks[real])
        while owners[slot] != 0xFFFF:
            slot = next(walks[real])
        owners[slot] = real
    return owners


def _walk(digest: int) -> Iterator[int]:
    """The slots in the order in which a real wants them; 32 bits are all that is computed with."""
    place = murmur(digest, 42, 0) % RING_SLOTS
    skip = murmur(digest, 2_718_281_828, 2_307) % (RING_SLOTS - 1) + 1
    while True:
        yield place % RING_SLOTS
        place = place + skip & 0xFFFFFFFF


def _turns(weights: list[int], version: int) -> Iterator[int]:
    reals = range(len(weights))
    if version == 1:
        for real in reals:
            yield from [real] * weights[real]
        while True:
            yield from reals
    sums, largest = [0] * len(weights), max(weights)
    while True:
        for real in reals:
            sums[real] += weights[real]
            if sums[real] >= largest:
                sums[real] -= largest
                yield real
