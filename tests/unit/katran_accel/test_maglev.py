# SPDX-License-Identifier: Apache-2.0
"""Rings against upstream's, and against the rule, turn by turn."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfcore.errors import NfcoreError
from nfcore.plugins.katran_accel.hashing import RING_SIZE, endpoint_hashes, murmur3_pair
from nfcore.plugins.katran_accel.maglev import NO_REAL, Endpoint, WeightedReals, build_ring
from tests.paths import DATA

RINGS = json.loads((DATA / "maglev_rings.json").read_text())["rings"]

SIZES = [2, 3, 5, 7, 31, 101, 251, 1009, 4099]

# One of the rare addresses whose skip is 65,536, so that offset + n × skip exceeds u32.
WRAPPING = IPv4Address("198.18.17.62")


class EndlessWalkError(Exception):
    """A real's walk never visits the last free slots; has what is filled."""

    def __init__(self, ring: dict[int, int]) -> None:
        self.ring = ring
        super().__init__(f"{len(ring)} slots filled")


def ring_turn_by_turn(reals: list[Endpoint], version: int, size: int) -> list[int]:
    """The rule as it is written, one slot after the other."""
    weighted = [real for real in reals if real.weight]
    by_hash = zip(endpoint_hashes([real.address for real in weighted]).tolist(), weighted, strict=True)
    ordered = [real for _, real in sorted(by_hash, key=lambda pair: (pair[0], pair[1].num))]
    hashes = endpoint_hashes([real.address for real in ordered])
    offsets = [number % size for number in murmur3_pair(hashes, 42, 0).tolist()]
    skips = [number % (size - 1) + 1 for number in murmur3_pair(hashes, 2_718_281_828, 2_307).tolist()]
    steps = [0] * len(ordered)
    sums = [0] * len(ordered)
    largest = max(real.weight for real in ordered)
    ring: dict[int, int] = {}
    first_round = True
    while True:
        for i, real in enumerate(ordered):
            sums[i] += real.weight
            turns = 1
            if version == 1:
                turns = real.weight if first_round else 1
            elif sums[i] >= largest:
                sums[i] -= largest
            else:
                turns = 0
            for _ in range(turns):
                while (slot := (offsets[i] + steps[i] * skips[i] & 0xFFFFFFFF) % size) in ring:
                    steps[i] += 1
                    if steps[i] > 4 * size:
                        raise EndlessWalkError(ring)
                ring[slot] = real.num
                if len(ring) == size:
                    return [ring[slot] for slot in range(size)]
        first_round = False


weights = st.one_of(st.integers(0, 3), st.integers(0, 100), st.integers(0, 0xFFFFFFFF))
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@st.composite
def some_reals(draw: st.DrawFn) -> list[Endpoint]:
    """Up to 40 reals, at least one of them with a weight."""
    chosen = draw(st.lists(addresses, min_size=1, max_size=40, unique=True))
    numbers = draw(st.permutations(range(1, len(chosen) + 1)))
    heavy = [draw(weights) for _ in chosen]
    heavy[0] = max(1, heavy[0])
    return [Endpoint(*real) for real in zip(numbers, chosen, heavy, strict=True)]


def random_reals(seed: int, count: int, largest: int) -> list[Endpoint]:
    chance = random.Random(seed)
    v4 = chance.sample(range(int(IPv4Address("198.18.0.0")), int(IPv4Address("198.20.0.0"))), count)
    return [
        Endpoint(
            number,
            IPv6Address((0x20010DB8 << 96) + host) if chance.random() < 0.3 else IPv4Address(host),
            chance.randint(0, largest),
        )
        for number, host in enumerate(v4, start=1)
    ]


@pytest.mark.parametrize("case", RINGS, ids=lambda case: f"{case['name']}, version {case['version']}")
def test_ring_is_upstreams(case: dict[str, Any]) -> None:
    reals = [
        Endpoint(num, (IPv6Address if ":" in address else IPv4Address)(address), weight)
        for num, address, weight in case["endpoints"]
    ]
    ring = build_ring(reals, version=case["version"])
    assert ring.dtype == np.dtype("<u4")
    assert ring.shape == (RING_SIZE,)
    assert ring[: len(case["first"])].tolist() == case["first"]
    numbers, slots = np.unique(ring, return_counts=True)
    assert dict(zip(map(str, numbers), slots.tolist(), strict=True)) == case["slots"]
    assert hashlib.sha256(ring.tobytes()).hexdigest() == case["sha256"]


@settings(deadline=None)
@given(some_reals(), st.sampled_from([1, 2]), st.sampled_from(SIZES))
def test_ring_is_what_the_rule_gives_turn_by_turn(reals: list[Endpoint], version: int, size: int) -> None:
    assert build_ring(reals, version=version, ring_size=size).tolist() == ring_turn_by_turn(reals, version, size)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("count", "largest"), [(2, 1), (2, 1000), (7, 2), (40, 0xFFFFFFFF), (100, 100), (900, 30)])
def test_full_size_ring_is_what_the_rule_gives_turn_by_turn(count: int, largest: int, version: int) -> None:
    reals = random_reals(count, count, largest)
    reals[0] = replace(reals[0], weight=largest)
    assert build_ring(reals, version=version).tolist() == ring_turn_by_turn(reals, version, RING_SIZE)


def turns_one_by_one(weights: list[int], version: int, total: int) -> list[int]:
    """The order of turns as the rule is written."""
    turns = [real for real, weight in enumerate(weights) for _ in range(weight)] if version == 1 else []
    sums = [0] * len(weights)
    while len(turns) < total:
        for real, weight in enumerate(weights):
            sums[real] += weight
            if version == 1:
                turns.append(real)
            elif sums[real] >= max(weights):
                sums[real] -= max(weights)
                turns.append(real)
    return turns[:total]


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.integers(1, 3), st.integers(1, 500)), min_size=1, max_size=30),
    st.sampled_from([1, 2]),
    st.integers(1, 2000),
)
def test_order_of_turns_is_known_beforehand(heavy: list[int], version: int, total: int) -> None:
    count = len(heavy)
    reals = WeightedReals(*(np.ones(count, np.uint32),) * 3, np.array(heavy, np.intp))
    order = reals.schedule(version).order(total)
    assert order.dtype == np.uint16
    assert order.tolist() == turns_one_by_one(heavy, version, total)


@pytest.mark.parametrize("version", [1, 2])
def test_more_reals_than_slots(version: int) -> None:
    reals = random_reals(5, 300, 3)
    assert build_ring(reals, version=version, ring_size=31).tolist() == ring_turn_by_turn(reals, version, 31)


def test_a_walk_that_wraps_at_u32() -> None:
    assert murmur3_pair(endpoint_hashes([WRAPPING]), 2_718_281_828, 2_307)[0] % (RING_SIZE - 1) + 1 == 65_536
    complete = 0
    for version, weight, seed in product((1, 2), (1, 400), range(4)):
        others = [replace(real, num=real.num + 1) for real in random_reals(seed, 3, 9)]
        reals = [Endpoint(1, WRAPPING, weight), *others]
        ring = build_ring(reals, version=version).tolist()
        try:
            assert ring == ring_turn_by_turn(reals, version, RING_SIZE)
            complete += 1
        except EndlessWalkError as endless:
            assert len(endless.ring) == RING_SIZE - 1
            assert ring == [endless.ring.get(slot, 1) for slot in range(RING_SIZE)]
    assert 0 < complete < 16


@settings(deadline=None)
@given(some_reals(), st.sampled_from([1, 2]), st.sampled_from(SIZES), st.randoms(use_true_random=False))
def test_order_of_reals_does_not_matter(reals: list[Endpoint], version: int, size: int, chance: random.Random) -> None:
    shuffled = chance.sample(reals, len(reals))
    assert (
        build_ring(shuffled, version=version, ring_size=size).tolist()
        == build_ring(reals, version=version, ring_size=size).tolist()
    )


@settings(deadline=None)
@given(some_reals(), st.sampled_from([1, 2]), st.sampled_from(SIZES))
def test_only_reals_with_a_weight_have_slots(reals: list[Endpoint], version: int, size: int) -> None:
    ring = build_ring(reals, version=version, ring_size=size)
    assert set(ring.tolist()) <= {real.num for real in reals if real.weight}
    without = [real for real in reals if real.weight]
    assert (ring == build_ring(without, version=version, ring_size=size)).all()


def test_version_2_shares_by_weight() -> None:
    reals = random_reals(3, 50, 100)
    total = sum(real.weight for real in reals)
    slots = np.bincount(build_ring(reals), minlength=len(reals) + 1)
    for real in reals:
        # The last round is cut short, and every real's share is rounded down.
        assert abs(int(slots[real.num]) - RING_SIZE * real.weight / total) < 2


def test_losing_one_of_a_hundred_moves_few_other_flows() -> None:
    reals = [replace(real, weight=1) for real in random_reals(4, 100, 1)]
    before, after = build_ring(reals), build_ring(reals[1:])
    stayed = before != reals[0].num
    assert (before[stayed] != after[stayed]).mean() < 0.05


@pytest.mark.parametrize("reals", [[], [Endpoint(4, IPv4Address("198.18.0.4"), 0)]])
@pytest.mark.parametrize("version", [1, 2])
def test_nobody_to_serve_leaves_slots_without_a_real(reals: list[Endpoint], version: int) -> None:
    ring = build_ring(reals, version=version)
    assert ring.shape == (RING_SIZE,)
    assert ring.dtype == np.dtype("<u4")
    assert (ring == NO_REAL).all()


@pytest.mark.parametrize("version", [1, 2])
def test_the_only_real_has_every_slot(version: int) -> None:
    reals = [Endpoint(9, WRAPPING, 5), Endpoint(4, IPv4Address("198.18.0.4"), 0)]
    assert (build_ring(reals, version=version) == 9).all()


REAL = Endpoint(1, IPv4Address("198.18.0.1"), 1)


@pytest.mark.parametrize(
    ("reals", "options", "message"),
    [
        ([REAL], {"version": 3}, "version 3 .* 1 or 2"),
        ([REAL], {"ring_size": 65_536}, "ring size 65536 .* prime from 2 to 65537"),
        ([REAL], {"ring_size": 1}, "ring size 1 .* prime"),
        ([REAL], {"ring_size": 131_071}, "ring size 131071 .* to 65537"),
        ([replace(REAL, weight=-1)], {}, r"198\.18\.0\.1: weight -1 .* 0 to 4294967295"),
        ([replace(REAL, weight=1 << 32)], {}, r"198\.18\.0\.1: weight 4294967296"),
        ([replace(REAL, num=0)], {}, r"198\.18\.0\.1: number 0 .* 1 to 4294967295"),
        ([REAL, replace(REAL, num=2)], {}, r"198\.18\.0\.1 is listed twice"),
    ],
)
def test_what_cannot_be_is_refused_by_name(reals: list[Endpoint], options: dict[str, int], message: str) -> None:
    with pytest.raises(NfcoreError, match=message):
        build_ring(reals, **options)
