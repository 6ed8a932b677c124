# SPDX-License-Identifier: Apache-2.0
"""Which flows deserve the NIC's places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.engine.eviction import (
    HYSTERESIS,
    LEAST_PATIENCE,
    TIGHT,
    hottest,
    idle_timeout_at,
    replaceable,
    waiting_rates,
)

RATES = st.lists(st.floats(0, 1e9), max_size=40)


@given(
    flows=st.lists(st.tuples(st.sampled_from([0.0, 1.0, 5.5]), st.integers(0, 3)), max_size=40),
    wanted=st.integers(0, 50),
)
def test_the_hottest_come_first_and_equals_in_their_order(flows: list[tuple[float, int]], wanted: int) -> None:
    rates, packets = np.array([f[0] for f in flows]), np.array([f[1] for f in flows], dtype=np.uint64)
    expected = sorted(range(len(flows)), key=lambda n: (-flows[n][0], -flows[n][1], n))[:wanted]
    assert hottest(rates, packets, wanted).tolist() == expected


@given(installed=RATES, waiting=RATES)
def test_a_place_goes_to_a_much_hotter_flow_alone(installed: list[float], waiting: list[float]) -> None:
    installed, waiting = sorted(installed), sorted(waiting, reverse=True)
    count = replaceable(np.array(installed), np.array(waiting))
    pairs = list(zip(installed, waiting, strict=False))
    assert all(new > HYSTERESIS * old for old, new in pairs[:count])
    assert not any(new > HYSTERESIS * old for old, new in pairs[count:])


@given(rates=RATES)
def test_equals_do_not_replace_each_other(rates: list[float]) -> None:
    assert (
        replaceable(np.array(sorted(rates)), np.array(sorted(rates, reverse=True)[:1]))
        <= sum(max(rates) > HYSTERESIS * rate for rate in rates)
        if rates
        else True
    )
    assert replaceable(np.full(5, 7.0), np.full(5, 7.0)) == 0


def test_a_flow_of_unknown_rate_replaces_nobody() -> None:
    assert replaceable(np.zeros(3), np.zeros(3)) == 0
    assert replaceable(np.zeros(3), np.array([1.0, 0.0])) == 1


@given(idle=st.floats(0.1, 1e4), room=st.integers(1, 10**6), held=st.integers(0, 10**6))
def test_patience_shrinks_as_the_table_fills(idle: float, room: int, held: int) -> None:
    now, fuller = idle_timeout_at(idle, held, room), idle_timeout_at(idle, held + 1, room)
    assert idle * LEAST_PATIENCE <= fuller <= now <= idle
    if held <= TIGHT * room:
        assert now == idle
    if held >= room:
        assert now == pytest.approx(idle * LEAST_PATIENCE)


def test_no_room_at_all_leaves_the_least_patience() -> None:
    assert idle_timeout_at(30.0, 0, 0) == pytest.approx(3.0)


def test_a_waiting_flow_that_is_silent_cools_down() -> None:
    rates = np.array([100.0, 100.0, 1.0], dtype=np.float32)
    packets = np.array([16, 16, 16], dtype=np.uint64)
    seen = np.array([10.0, 0.0, 9.0])
    assert waiting_rates(rates, packets, seen, 8, 10.0).tolist() == pytest.approx([100.0, 2.4, 1.0])
