# SPDX-License-Identifier: Apache-2.0
"""Buckets against a dict: what is written is found, in the bucket of its hash, until it is cleared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.plugins.flow_actions import layouts as lay
from nfcore.plugins.flow_actions.buckets import NOWHERE, Buckets, has_twins

LOG2 = 1
"""Two buckets, eight places."""


@pytest.mark.parametrize("family", [4, 6])
@given(steps=st.lists(st.tuples(st.booleans(), st.lists(st.integers(1, 12), unique=True, max_size=6)), max_size=8))
def test_buckets_hold_what_a_dict_holds(family: int, steps: list[tuple[bool, list[int]]]) -> None:
    memory = np.zeros(1 << LOG2, dtype=lay.BUCKET[family])
    buckets = Buckets(memory, LOG2)
    model: dict[int, int] = {}
    for turn, (adding, numbers) in enumerate(steps, 1):
        words = np.zeros((len(numbers), lay.KEY_WORDS[family]), dtype=np.uint64)
        words[:, -1] = numbers
        hashes = (words[:, -1] & np.uint64(1)) << np.uint64(63)
        places = buckets.find(words, hashes)
        assert (places != NOWHERE).tolist() == [number in model for number in numbers]
        if adding:
            new = places == NOWHERE
            places[new] = buckets.room(hashes[new])
            fits = places != NOWHERE
            values = np.zeros(len(numbers), dtype=lay.FLOW_ENTRY)
            values["target"], values["slot"] = turn, numbers
            buckets.write(places[fits], words[fits], hashes[fits], values[fits])
            model |= {number: turn for number, fit in zip(numbers, fits, strict=True) if fit}
        else:
            there = places != NOWHERE
            buckets.clear(places[there], hashes[there])
            model = {number: target for number, target in model.items() if number not in numbers}
        for odd in (0, 1):
            stored = memory["places"][odd]
            used = stored[stored["entry"]["target"] != 0]
            found = dict(zip(used["words"][:, -1].tolist(), used["entry"]["target"].tolist(), strict=True))
            assert found == {number: target for number, target in model.items() if number % 2 == odd}
            assert len(used) == len(found)
            assert used["entry"]["slot"].tolist() == used["words"][:, -1].tolist()


def test_twins_are_equal_keys_not_equal_hashes() -> None:
    words = np.array([[1, 2], [1, 3], [1, 2]], dtype=np.uint64)
    same = np.zeros(3, dtype=np.uint64)
    assert has_twins(words, same)
    assert not has_twins(words[:2], same[:2])
    assert not has_twins(words, np.arange(3, dtype=np.uint64))
