# SPDX-License-Identifier: Apache-2.0
"""The index and last appearances with the hash in use, and with hashes that a stranger would wish for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nfcore.api.flows import FLOW_ROW, IDENTITY_BYTES, FlowBatch
from nfcore.engine.flow_index import PROCESS_HASH, FlowIndex, IdentityHash, SeededHash, last_appearances, same_flows


def always(value: int) -> IdentityHash:
    return lambda rows: np.full(len(rows), value, dtype=np.uint32)


def few_bits(rows: NDArray[np.void]) -> NDArray[np.uint32]:
    """Equal hashes among neighbours, so that runs of different homes grow into each other."""
    return PROCESS_HASH(rows) & np.uint32(0x0F)


def near_the_end(rows: NDArray[np.void]) -> NDArray[np.uint32]:
    """Homes in the last cells of any index, so that runs wrap around."""
    return PROCESS_HASH(rows) | np.uint32(0xFFFF_FFF8)


HASHES: dict[str, IdentityHash] = {
    "in use": PROCESS_HASH,
    "all the same": always(0),
    "all in the last cell": always(0xFFFF_FFFF),
    "few bits": few_bits,
    "near the end": near_the_end,
}


def flows(numbers: list[int]) -> FlowBatch:
    """One flow per number from 0 to 65535, which its target tells."""
    batch = FlowBatch.empty(len(numbers))
    batch.rows["key"]["sport"] = numbers
    batch.rows["family"] = 4
    batch.rows["target"] = numbers
    return batch


def each_byte_changed() -> tuple[FlowBatch, FlowBatch]:
    """A row 80 times over, and the same with another byte changed in each."""
    original = np.arange(1, FLOW_ROW.itemsize + 1, dtype=np.uint8)
    same = np.tile(original, (FLOW_ROW.itemsize, 1))
    changed = same.copy()
    changed[np.diag_indices(FLOW_ROW.itemsize)] ^= 0x80
    return FlowBatch(same.view(FLOW_ROW).ravel()), FlowBatch(changed.view(FLOW_ROW).ravel())


IN_IDENTITY = np.arange(FLOW_ROW.itemsize) < IDENTITY_BYTES


def test_each_byte_of_the_identity_makes_another_flow_and_no_other_byte_does() -> None:
    same, changed = each_byte_changed()
    assert (same_flows(same.rows, changed.rows) == ~IN_IDENTITY).all()


def test_each_byte_of_the_identity_makes_another_hash_and_no_other_byte_does() -> None:
    same, changed = each_byte_changed()
    hash_of = SeededHash()
    # Two of 52 pairs colliding by chance would take 2**-51.
    assert np.count_nonzero((hash_of(same.rows) == hash_of(changed.rows)) != ~IN_IDENTITY) <= 1


@pytest.mark.parametrize("hash_name", sorted(HASHES))
def test_the_index_tells_flows_apart_by_each_byte_of_the_identity(hash_name: str) -> None:
    same, changed = each_byte_changed()
    index = FlowIndex(lambda: same.rows, HASHES[hash_name])
    index.insert(same.rows[:1], np.zeros(1, dtype=np.int64))
    assert (index.find(changed.rows) == np.where(IN_IDENTITY, -1, 0)).all()


def test_hashes_of_regular_flows_are_spread() -> None:
    hashes = SeededHash()(flows(list(range(65_536))).rows)
    # By chance half a pair of the 2**31 collides among 2**32 values; a thousand is a fault.
    assert len(set(hashes.tolist())) > 64_536
    per_bucket = np.bincount(hashes & 0xFFF, minlength=4096)
    # 16 each on average, with a deviation of 4.
    assert per_bucket.min() >= 1
    assert per_bucket.max() < 80


def test_two_hashes_have_different_keys() -> None:
    rows = flows(list(range(1_000))).rows
    assert np.count_nonzero(SeededHash()(rows) == SeededHash()(rows)) < 10


@given(numbers=st.lists(st.integers(0, 40), max_size=80), hash_name=st.sampled_from(sorted(HASHES)))
def test_last_appearances_are_those_of_a_set(numbers: list[int], hash_name: str) -> None:
    batch = flows(numbers)
    batch.rows["target"] = np.arange(len(numbers))
    expected = [number not in numbers[place + 1 :] for place, number in enumerate(numbers)]
    assert last_appearances(batch, HASHES[hash_name]).tolist() == expected


def test_last_appearances_in_a_full_batch() -> None:
    numbers = np.random.default_rng(8).integers(0, 9_000, 16_384).tolist()
    last = last_appearances(flows(numbers))
    assert np.flatnonzero(last).tolist() == sorted({number: place for place, number in enumerate(numbers)}.values())


def test_an_empty_batch_has_no_appearances() -> None:
    assert last_appearances(FlowBatch.empty()).shape == (0,)


@pytest.mark.parametrize("hash_name", sorted(HASHES))
def test_what_was_not_entered_cannot_be_removed_and_nothing_else_is(hash_name: str) -> None:
    rows = flows(list(range(10))).rows
    index = FlowIndex(lambda: rows, HASHES[hash_name])
    index.insert(rows[:9], np.arange(9))
    with pytest.raises(KeyError, match="slot 9 is not in the index"):
        index.remove(np.array([3, 9, 4]))
    assert index.find(rows).tolist() == [*range(9), -1]
    assert len(index) == 9


def test_removals_leave_nothing_behind() -> None:
    """However many flows come and go, the index stays as small as those that are there need."""
    table = flows(list(range(1_000))).rows
    index = FlowIndex(lambda: table)
    slots = np.arange(1_000)
    index.insert(table, slots)
    size = index.nbytes
    for _ in range(50):
        index.remove(slots)
        assert len(index) == 0
        assert (index.find(table) == -1).all()
        index.insert(table, slots)
    assert index.nbytes == size
    assert (index.find(table) == slots).all()


def test_at_least_half_of_the_cells_stay_empty() -> None:
    table = flows(list(range(5_000))).rows
    index = FlowIndex(lambda: table)
    for start in range(0, 5_000, 100):
        index.insert(table[start : start + 100], np.arange(start, start + 100))
        assert index.nbytes >= 2 * 8 * len(index)
