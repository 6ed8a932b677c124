# SPDX-License-Identifier: Apache-2.0
"""Rules, their cookies, and a backend's result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.flows import FLOW_KEY, FlowMatch
from nfcore.api.rules import Drop, Outcome, Outcomes, Rule, RuleBatch, SetMark, are_ordered, make_cookies, split_cookies

V4 = FlowMatch.parse("198.18.1.2:40000 > 198.18.10.1:80/tcp")
V6 = FlowMatch.parse("[2001:db8::1]:40000 > [2001:db8::2]:80/udp")


def test_a_batch_gives_back_its_rules() -> None:
    rules = [Rule(V4, SetMark(7), 1), Rule(V6, Drop(), 2**64 - 1), Rule(V6, SetMark(2**32 - 1), 3)]
    assert list(RuleBatch.of(rules)) == rules
    assert list(RuleBatch.of([])) == []


def test_other_rows_are_refused() -> None:
    with pytest.raises(TypeError, match="rule batch has rows of"):
        RuleBatch(np.zeros(1, dtype=FLOW_KEY))


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**16 - 1), st.booleans()), max_size=20))
def test_cookies_carry_slot_generation_and_order(rules: list[tuple[int, int, bool]]) -> None:
    slots = np.array([slot for slot, _, _ in rules], dtype=np.int64)
    generations = np.array([generation for _, generation, _ in rules], dtype=np.uint16)
    ordered = np.array([is_ordered for _, _, is_ordered in rules], dtype=bool)
    cookies = make_cookies(slots, generations, ordered)
    is_own, slots_back, generations_back = split_cookies(cookies)
    assert is_own.all()
    assert are_ordered(cookies).tolist() == ordered.tolist()
    assert not are_ordered(make_cookies(slots, generations)).any()
    assert slots_back.tolist() == slots.tolist()
    assert generations_back.tolist() == generations.tolist()


@given(st.integers(0, 2**64 - 1))
def test_only_the_tag_makes_a_cookie_nfcores(cookie: int) -> None:
    is_own, _, _ = split_cookies(np.array([cookie], dtype=np.uint64))
    assert bool(is_own[0]) == (cookie.to_bytes(8, "big")[:2] == b"nf")


def test_the_same_status_for_all() -> None:
    outcomes = Outcomes.all(Outcome.FULL, 3, "table is full")
    assert outcomes.status.tolist() == [Outcome.FULL] * 3
    assert outcomes.messages == {0: "table is full"}
    assert Outcomes.all(Outcome.FULL, 0, "table is full").messages == {}
