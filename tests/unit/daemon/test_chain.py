# SPDX-License-Identifier: Apache-2.0
"""The owners of marks, as the engine gives and clears them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.context import Context
from nfcore.daemon.chain import MarkOwnerTable

FUNCTIONS = ["a", "b", "c"]
REGISTERED = ["c", "stray", "a", "b"]
"""In the order in which their plugins were set up; one of them is in no chain."""
SIZE = 16
MARKS = st.lists(st.integers(1, SIZE + 3), max_size=6)
CONTEXT = cast("Context", SimpleNamespace(nfs=[SimpleNamespace(name=name) for name in REGISTERED]))


@given(st.lists(st.tuples(st.sampled_from([*range(1, len(REGISTERED) + 1), None]), MARKS), max_size=12))
def test_each_mark_is_its_last_owners(steps: list[tuple[int | None, list[int]]]) -> None:
    owners = MarkOwnerTable(np.zeros(SIZE, np.uint32), FUNCTIONS, CONTEXT)
    model: dict[int, Any] = {}
    for nf, numbers in steps:
        marks = np.array(numbers, dtype=np.uint32)
        if nf is None:
            owners.clear(marks)
        else:
            owners.give(nf, marks)
        name = None if nf is None else REGISTERED[nf - 1]
        model |= {mark: name if name in FUNCTIONS and mark < SIZE else None for mark in numbers}
    for mark in range(SIZE + 4):
        assert owners.owner(mark) == model.get(mark)
