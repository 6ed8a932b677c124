# SPDX-License-Identifier: Apache-2.0
"""The token bucket: never more than the burst and what time has brought."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nfcore.devices.token_bucket import TokenBucket

PAUSES = st.floats(0, 100, allow_nan=False)


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@given(
    rate=st.floats(0.1, 10_000),
    burst=st.integers(1, 10_000),
    steps=st.lists(st.tuples(PAUSES, st.integers(0, 20_000)), max_size=30),
)
def test_never_more_than_burst_and_time_allow(rate: float, burst: int, steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    spent, begun = 0, clock.now
    for pause, wanted in steps:
        clock.now += pause
        taken = min(wanted, bucket.available())
        assert taken <= burst
        bucket.take(taken)
        spent += taken
        assert spent <= burst + (clock.now - begun) * rate + 1e-3


@given(rate=st.floats(0.1, 10_000), burst=st.integers(1, 10_000), spent=st.integers(0, 10_000))
def test_a_quiet_time_fills_it_up(rate: float, burst: int, spent: int) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    bucket.take(min(spent, bucket.available()))
    clock.now += burst / rate + 1e-6 * burst
    assert bucket.available() == burst


def test_many_short_looks_lose_nothing() -> None:
    clock = Clock()
    bucket = TokenBucket(5.0, 100, clock)
    bucket.take(100)
    for _ in range(10_000):
        clock.now += 0.001
        bucket.available()
    assert bucket.available() in (49, 50)


def test_a_rate_of_zero_limits_nothing() -> None:
    bucket = TokenBucket(0, 1, Clock())
    bucket.take(10**9)
    bucket.give_back(3)
    assert bucket.available() > 10**12


def test_what_came_to_nothing_is_given_back_up_to_the_burst() -> None:
    bucket = TokenBucket(1, 10, Clock())
    bucket.take(4)
    bucket.give_back(3)
    assert bucket.available() == 9
    bucket.give_back(3)
    assert bucket.available() == 10


def test_other_limits_leave_spent_what_was_spent() -> None:
    clock = Clock()
    bucket = TokenBucket(1, 10, clock)
    bucket.take(8)
    bucket.limit(1, 100)
    assert bucket.available() == 2
    bucket.limit(1, 1)
    assert bucket.available() == 1
    bucket.limit(0, 1)
    bucket.take(50)
    clock.now += 1000
    bucket.limit(1, 5)
    assert bucket.available() == 1
    clock.now += 2
    assert bucket.available() == 3
