# SPDX-License-Identifier: Apache-2.0
"""Numbers of VIPs and reals: they stay while the TOML changes, and none is given again before it has rested."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.plugins.katran_accel.config import KatranTable
from nfcore.plugins.katran_accel.hashing import ring_slot, ring_slots
from nfcore.plugins.katran_accel.inventory import Inventory, Numbering, Numbers, NumbersExhaustedError, identity
from nfcore.plugins.katran_accel.layouts import MAX_REALS, MAX_VIPS

REST = 1.2
WANTED = st.lists(st.sampled_from("abcdefgh"), max_size=8)


def vip(number: int = 1, reals: tuple[int, ...] = (1,), **changes: Any) -> dict[str, Any]:
    address = f"198.18.{10 + number // 250}.{number % 250}"
    stations = [{"address": f"198.19.{real // 250}.{real % 250}"} for real in reals]
    return {"address": address, "port": 80, "protocol": "tcp", "reals": stations} | changes


def table(*vips: dict[str, Any]) -> KatranTable:
    return KatranTable.model_validate({"vips": list(vips)})


def numbered(*vips: dict[str, Any]) -> Inventory:
    return Numbering(0.0).plan(table(*vips))


def reals(inventory: Inventory) -> dict[int, int]:
    return {int(str(address).rsplit(".", 1)[1]): number for address, number in inventory.reals.items()}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(WANTED, st.floats(0, 2 * REST)), max_size=20))
def test_numbers_stay_and_none_is_given_again_too_early(steps: list[tuple[list[str], float]]) -> None:
    clock = Clock()
    numbers = Numbers(1, 13, REST, clock)
    given_up: dict[int, float] = {}
    for wanted, pause in steps:
        clock.now += pause
        before = dict(numbers.taken)
        try:
            plan = numbers.plan(wanted)
        except NumbersExhaustedError:
            resting = {number for number, since in given_up.items() if clock.now - since < REST}
            free = set(range(1, 13)) - set(before.values()) - resting
            assert len(set(wanted) - before.keys()) > len(free)
            assert numbers.taken == before
            continue
        assert numbers.taken == before
        assert plan.keys() == set(wanted)
        assert len(set(plan.values())) == len(plan)
        for name, number in plan.items():
            if name in before:
                assert number == before[name]
            else:
                assert clock.now >= given_up.get(number, -REST) + REST
        fresh = sorted(number for name, number in plan.items() if name not in before)
        rested = [n for n in range(1, 13) if n not in before.values() and clock.now >= given_up.get(n, -REST) + REST]
        assert fresh == rested[: len(fresh)]
        numbers.take(plan)
        given_up |= dict.fromkeys(set(before.values()) - set(plan.values()), clock.now)


def test_a_first_table_is_numbered_in_its_order() -> None:
    inventory = numbered(vip(2, (7, 3)), vip(1, (3, 5)), vip(3, (7,)))
    assert [(number, vip.name) for number, vip in inventory.vips.items()] == [
        (0, "198.18.10.2:80/tcp"),
        (1, "198.18.10.1:80/tcp"),
        (2, "198.18.10.3:80/tcp"),
    ]
    assert reals(inventory) == {7: 1, 3: 2, 5: 3}
    assert list(inventory.pairs()) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 1)]


def test_what_makes_a_vip_the_same() -> None:
    one = table(vip()).vips[0]
    same = [vip(reals=(8, 9)), vip(address="198.18.10.1/32")]
    other = [vip(2), vip(port=81), vip(protocol="udp"), vip(flags=["lru_bypass"]), vip(address="198.18.10.0/31")]
    assert {identity(each) for each in table(*same).vips} == {identity(one)}
    assert identity(one) not in {identity(each) for each in table(*other).vips}


def test_a_number_goes_on_for_as_long_as_its_real_serves_anybody() -> None:
    numbering = Numbering(REST, Clock())
    numbering.take(numbering.plan(table(vip(1, (1, 2)), vip(2, (3,)))))
    numbering.take(numbering.plan(table(vip(2, (2, 4)))))
    plan = numbering.plan(table(vip(3, (1,)), vip(2, (4, 2))))
    assert reals(plan) == {1: 5, 4: 4, 2: 2}
    assert plan.vip_numbers == {"198.18.10.3:80/tcp 0": 2, "198.18.10.2:80/tcp 0": 1}


def test_the_room_is_that_of_the_maps() -> None:
    clock = Clock()
    numbering = Numbering(REST, clock)
    full = table(*(vip(number) for number in range(MAX_VIPS)))
    numbering.take(numbering.plan(full))
    assert max(numbering.vips.taken.values()) == MAX_VIPS - 1
    other = table(*(vip(number) for number in range(1, MAX_VIPS + 1)))
    with pytest.raises(NumbersExhaustedError, match=r"VIPs: there are 512 numbers, of which 0 are free"):
        numbering.plan(other)
    numbering.take(numbering.plan(table(*(vip(number) for number in range(1, MAX_VIPS)))))
    with pytest.raises(NumbersExhaustedError, match=r"rests for 1.2 s"):
        numbering.plan(other)
    clock.now += REST
    assert numbering.plan(other).vip_numbers[identity(other.vips[-1])] == 0
    most = tuple(range(1, MAX_REALS))
    assert sorted(numbering.plan(table(vip(1, most))).reals.values())[-1] == MAX_REALS - 1
    with pytest.raises(NumbersExhaustedError, match="reals: there are 4095 numbers"):
        numbering.plan(table(vip(1, (*most, MAX_REALS))))


def test_a_note_carries_the_numbers_over() -> None:
    clock = Clock()
    numbering = Numbering(REST, clock)
    numbering.take(numbering.plan(table(vip(1, (1, 2)), vip(2, (3,)))))
    numbering.take(numbering.plan(table(vip(2, (3, 4)))))
    planned = numbering.plan(table(vip(3, (5,))))
    again = Numbering(REST, clock)
    again.resume(json.loads(json.dumps(numbering.note(planned))))
    assert again.vips.taken == {"198.18.10.2:80/tcp 0": 1, "198.18.10.3:80/tcp 0": 2}
    assert again.reals.taken == {"198.19.0.3": 3, "198.19.0.4": 4, "198.19.0.5": 5}
    assert (again.vips.resting, again.reals.resting) == ([0], [1, 2])
    clock.now += REST
    assert (again.vips.resting, again.reals.resting) == ([], [])


NOTE: dict[str, Any] = {"vips": {"a": 0}, "reals": {"b": 1}, "resting": {"vips": [1], "reals": []}}


@pytest.mark.parametrize(
    "changes",
    [
        {"vips": {"a": 512}},
        {"vips": {"a": -1}},
        {"vips": {"a": "0"}},
        {"vips": {"a": True}},
        {"vips": {"a": 1}},
        {"vips": {"a": 0, "c": 0}},
        {"vips": [0]},
        {"reals": {"b": 0}},
        {"reals": {"b": 4096}},
        {"reals": None},
        {"resting": []},
        {"resting": {"vips": 1, "reals": []}},
    ],
)
def test_a_note_that_cannot_be_is_refused_as_a_whole(changes: dict[str, Any]) -> None:
    numbering = Numbering(REST)
    with pytest.raises(ValueError, match="note"):
        numbering.resume(NOTE | changes)
    assert (numbering.vips.taken, numbering.reals.taken) == ({}, {})
    numbering.resume(NOTE)
    assert numbering.vips.taken == {"a": 0}


def test_who_takes_packets_of_whom() -> None:
    wide, port, exact = vip(address="198.18.10.0/24"), vip(1, port=0), vip(1)
    inventory = numbered(wide, port, exact, vip(9, protocol="udp"))
    name = {number: identity(each) for number, each in inventory.vips.items()}
    assert inventory.winners == {0: {name[2]}, 1: {name[0], name[2]}}
    assert inventory.shadowed() == {0, 1}


PREFIXES = st.tuples(
    st.sampled_from(["198.18.0.0", "198.18.5.0", "198.18.5.7", "2001:db8::", "2001:db8:0:5::7", "::"]),
    st.integers(0, 128),
    st.sampled_from([0, 53, 80]),
    st.sampled_from(["tcp", "udp"]),
)


@given(st.lists(PREFIXES, min_size=1, max_size=25))
def test_winners_are_all_those_to_whom_a_vip_loses(drawn: list[tuple[str, int, int, str]]) -> None:
    vips = {
        (str(ip_network((address, min(length, ip_address(address).max_prefixlen)), strict=False)), port, protocol)
        for address, length, port, protocol in drawn
    }
    inventory = numbered(*(vip(address=address, port=port, protocol=proto) for address, port, proto in sorted(vips)))
    for number, mine in inventory.vips.items():
        others = {identity(other) for other in inventory.vips.values() if mine.loses_to(other)}
        assert inventory.winners.get(number, frozenset()) == others


ENDS = st.tuples(st.ip_addresses(), st.integers(0, 65_535), st.integers(0, 65_535))


@given(st.lists(ENDS, max_size=20))
def test_slots_of_both_families_at_once(ends: list[tuple[Any, int, int]]) -> None:
    keys = np.zeros(len(ends), [("src", "u1", 16), ("sport", ">u2"), ("dport", ">u2")])
    for row, (src, sport, dport) in zip(keys, ends, strict=True):
        row["src"] = np.frombuffer(src.packed.ljust(16, b"\0"), np.uint8)
        row["sport"], row["dport"] = sport, dport
    families = np.array([src.version for src, _, _ in ends], dtype=np.uint32)
    assert ring_slots(keys, families).tolist() == [ring_slot(*each) for each in ends]


def test_a_v4_address_and_the_v6_address_of_its_bytes_have_their_own_slots() -> None:
    assert ring_slot(ip_address("198.18.1.2"), 1, 2) != ring_slot(ip_address("c612:102::"), 1, 2)
