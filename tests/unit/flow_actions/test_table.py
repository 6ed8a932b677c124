# SPDX-License-Identifier: Apache-2.0
"""The table against a model that compares each entry with each other, one pair at a time."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nfcore.plugins.flow_actions import overlaps
from nfcore.plugins.flow_actions.entries import Entries, EntryError, EntryTable, convert, describe, parse_orders
from nfcore.plugins.flow_actions.table import MOST_SHAPES, Change, Owner, Table

Order = Mapping[str, Any]
NOTHING = Entries.join([])


def add(table: Table, *orders: Order, delete: Sequence[str] = ()) -> Change:
    change = table.plan(parse_orders(list(orders)), delete)
    table.commit(change)
    return change


def drop(name: str, **keys: Any) -> Order:
    return {"name": name, "action": "drop", **keys}


def count(name: str, **keys: Any) -> Order:
    return {"name": name, "action": "count", **keys}


def names(table: Table, rows: np.ndarray[Any, Any]) -> list[str]:
    return sorted(table.name_of(slot) for slot in rows["slot"].tolist())


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(EntryError) as caught:
        call()
    return str(caught.value)


# What a change says


def test_a_change_says_what_is_to_be_done() -> None:
    table = Table(10, 10)
    change = add(
        table,
        drop("a", src="198.18.1.1"),
        drop("b", src="198.18.1.2"),
        {**drop("c", src="198.18.1.3"), "action": "pass"},
    )
    assert change.added["slot"].tolist() == [0, 1, 2]
    assert {number: target.action for number, target in change.new_targets.items()} == {1: "drop", 2: "pass"}
    assert names(table, change.offloadable) == ["a", "b", "c"]
    change = add(table, delete=["c", "a"])
    assert (change.removed["slot"].tolist(), change.gone_targets) == ([0, 2], [2])
    assert (len(change.withdrawn), table.targets.keys()) == (2, {1})


def test_slots_that_are_free_for_longest_are_taken_first() -> None:
    table = Table(4, 4)
    add(table, *(drop(name, src=f"198.18.1.{number}") for number, name in enumerate("abcd")))
    add(table, delete=["c"])
    add(table, delete=["a"])
    assert add(table, drop("e", src="198.18.2.1")).added["slot"].tolist() == [2]
    assert add(table, drop("f", src="198.18.2.2"), delete=["b"]).added["slot"].tolist() == [0]


def test_a_full_table_says_so() -> None:
    table = Table(2, 4)
    add(table, drop("a", src="198.18.1.1"), drop("b", src="198.18.1.2"))
    text = refused(lambda: add(table, drop("c", src="198.18.1.3")))
    assert "add[0]: entry 'c': is one too many: 2 entries fit ([flow_actions] entries), and 2 are there" in text
    add(table, drop("c", src="198.18.1.3"), delete=["a"])
    assert sorted(table.names()) == ["b", "c"]


def test_an_entry_can_be_replaced_in_one_change() -> None:
    table = Table(2, 4)
    add(table, drop("a", src="198.18.1.1"))
    change = add(table, {"name": "a", "src": "198.18.1.1", "action": "pass"}, delete=["a"])
    assert (len(change.removed), len(change.added), table.target(table.slot_of("a") or 0).action) == (1, 1, "pass")


def test_policing_is_of_one_entry_and_numbers_rest_until_they_are_released() -> None:
    table = Table(10, 2)
    police = {"action": "police", "packets_per_second": 10, "burst": 5}
    first = add(table, {"name": "a", "src": "198.18.1.1", **police}, {"name": "b", "src": "198.18.1.2", **police})
    assert sorted(first.new_targets) == [1, 2]
    text = refused(lambda: add(table, drop("c", src="198.18.1.3")))
    assert "add[0].action: entry 'c': needs an action of its own, but 2 different ones fit" in text
    assert add(table, delete=["a"]).gone_targets == [1]
    assert "and 1 others are just ending" in refused(lambda: add(table, drop("c", src="198.18.1.3")))
    table.release_targets([1])
    assert list(add(table, drop("c", src="198.18.1.3")).new_targets) == [1]


def test_lifetimes_end_in_order() -> None:
    now = [1000.0]
    table = Table(10, 4, lambda: now[0])
    add(
        table,
        drop("a", src="198.18.1.1", ttl="10s"),
        drop("b", src="198.18.1.2", ttl="5s"),
        drop("c", src="198.18.1.3"),
    )
    assert table.next_end() == 1005
    assert table.plan_expired().is_empty
    now[0] = 1007
    change = table.plan_expired()
    assert list(change.removed_names) == ["b"]
    table.commit(change)
    add(table, delete=["a"])
    assert table.next_end() == np.inf
    assert table.names() == ["c"]


# Contradictions


def test_the_same_match_twice() -> None:
    table = Table(10, 4)
    add(table, drop("a", src="198.18.1.0/24", proto="tcp"))
    text = refused(lambda: add(table, drop("b", src="198.18.1.0/24", proto=6, priority=3)))
    assert text == (
        "flow: add[0]: entry 'b': matches the same packets as entry 'a' of an application; one of them should go"
    )
    text = refused(lambda: add(table, drop("b", src="198.18.2.1"), drop("c", src="198.18.2.1", priority=1)))
    assert "add[1]: entry 'c': matches the same packets as entry 'b', add[0]; one of them should go" in text


def test_equally_specific_entries_that_overlap_need_different_priorities() -> None:
    table = Table(10, 4)
    add(table, drop("a", src="198.18.0.0/16"))
    text = refused(lambda: add(table, drop("b", dst="198.19.0.0/16")))
    assert "add[0].priority: entry 'b': overlaps entry 'a' of an application, and both are equally specific" in text
    add(table, drop("b", dst="198.19.0.0/16", priority=1))
    add(table, count("c", dst="198.20.0.0/16", priority=2))
    assert [table.is_shadowed(table.slot_of(name) or 0) for name in "abc"] == [True, False, False]


def test_drops_do_not_shadow_each_other() -> None:
    table = Table(10, 4)
    change = add(table, drop("wide", src="198.18.0.0/15"), drop("narrow", dst="198.18.1.1", priority=1))
    assert names(table, change.offloadable) == ["narrow", "wide"]
    change = add(table, count("exact", src="198.18.1.1", dst="198.18.1.1"))
    assert (names(table, change.withdrawn), names(table, change.offloadable)) == (["narrow", "wide"], ["exact"])
    assert table.shadowed_by(table.slot_of("wide") or 0) == ["exact"]
    change = add(table, delete=["exact"])
    assert names(table, change.offloadable) == ["narrow", "wide"]


def test_shadows_come_and_go() -> None:
    table = Table(10, 4)
    wide = add(table, drop("wide", src="198.18.0.0/15"))
    assert names(table, wide.offloadable) == ["wide"]
    change = add(table, count("narrow", src="198.18.1.0/24"), drop("exact", src="198.18.1.1", dst="198.18.9.9"))
    assert names(table, change.withdrawn) == ["wide"]
    assert names(table, change.offloadable) == ["exact"]
    assert sorted(table.shadowed_by(table.slot_of("wide") or 0)) == ["narrow"]
    add(table, delete=["exact", "narrow"])
    change = add(table, count("narrow", src="198.18.1.0/24"), count("exact", src="198.18.1.1", dst="198.18.9.9"))
    assert names(table, change.withdrawn) == ["wide"]
    assert names(table, change.offloadable) == ["exact"]
    assert sorted(table.shadowed_by(table.slot_of("wide") or 0)) == ["exact", "narrow"]
    change = add(table, delete=["exact"])
    assert names(table, change.offloadable) == ["narrow"]
    change = add(table, delete=["narrow"])
    assert names(table, change.offloadable) == ["wide"]


def test_an_entry_without_offload_shadows_all_the_same() -> None:
    table = Table(10, 4)
    change = add(table, drop("wide", src="198.18.0.0/15"), count("narrow", src="198.18.1.0/24", offload=False))
    assert len(change.offloadable) == 0


def test_too_many_shapes() -> None:
    table = Table(100, 4)
    shapes = [(src, dst) for src in range(9, 18) for dst in range(9, 18)][: MOST_SHAPES + 1]
    orders = [
        drop(f"{src}-{dst}", src=f"0.0.0.0/{src}", dst=f"0.0.0.0/{dst}", priority=number)
        for number, (src, dst) in enumerate(shapes)
    ]
    add(table, *orders[:MOST_SHAPES])
    text = refused(lambda: add(table, orders[MOST_SHAPES]))
    assert "needs another shape (prefix lengths, keys that are given), but 64 of IPv4 are there already" in text
    add(
        table,
        drop("six", src="2001:db8::/32"),
        drop("exact", src="198.18.1.1", dst="198.18.1.2", sport=1, dport=2, proto=6),
    )
    add(table, orders[MOST_SHAPES], delete=[str(orders[0]["name"])])
    assert table.shapes() == {4: 64, 6: 1}


# The TOML


def toml(*orders: Order) -> Entries:
    return convert([EntryTable(**order) for order in orders], "flow_actions.flows")


def test_a_reload_keeps_what_has_not_changed() -> None:
    table = Table(10, 10)
    police = {"action": "police", "packets_per_second": 10, "burst": 5}
    first = [drop("a", src="198.18.1.1"), {"name": "b", "src": "198.18.1.2", **police}, drop("c", src="198.18.1.3")]
    table.commit(table.plan_toml(toml(*first)))
    assert table.plan_toml(toml(*first)).is_empty
    change = table.plan_toml(toml(first[1], drop("c", src="198.18.1.4"), drop("d", src="198.18.1.1")))
    assert (list(change.added_names), sorted(change.removed_names)) == (["c", "d"], ["a", "c"])


def test_the_tomls_entries_and_those_of_applications() -> None:
    table = Table(10, 10)
    table.commit(table.plan_toml(toml(drop("a", src="198.18.1.1"))))
    table.note_toml(["a"])
    assert "delete[0]: entry 'a': is flow_actions.flows[0] of the TOML: remove it there, and reload" in refused(
        lambda: add(table, delete=["a"])
    )
    assert "delete[0]: entry 'x': there is no such entry" in refused(lambda: add(table, delete=["x"]))
    assert "is the name of entry 'a' flow_actions.flows[0] of the TOML" in refused(
        lambda: add(table, drop("a", src="198.18.7.7"))
    )
    add(table, drop("b", src="198.18.1.2"), drop("c", src="198.18.1.3"))
    both = toml(drop("a", src="198.18.1.1"), drop("n", src="198.18.1.2"), drop("c", src="198.18.1.9"))
    text = refused(lambda: table.plan_toml(both))
    assert "flow_actions.flows[2].name: entry 'c': is the name of entry 'c' of an application" in text
    change = table.plan_toml(both, others_yield=True)
    assert (sorted(change.removed_names), sorted(change.added_names)) == (["b", "c"], ["c", "n"])
    table.commit(change)
    assert table.names(Owner.APPLICATION) == []


# Against a model

ADDRESSES = {
    4: ["198.18.0.0", "198.18.0.1", "198.18.128.0", "198.19.0.1"],
    6: ["2001:db8::", "2001:db8::1", "2001:db8:8000::"],
}
LENGTHS = {4: [0, 15, 16, 17, 31, 32], 6: [0, 32, 33, 127, 128]}


@st.composite
def matches(draw: st.DrawFn) -> dict[str, Any]:
    family = draw(st.sampled_from([4, 4, 4, 6]))
    found: dict[str, Any] = {"family": family, "priority": draw(st.sampled_from([0, 0, 1, 2]))}
    for end in ("src", "dst"):
        if draw(st.booleans()):
            text = f"{draw(st.sampled_from(ADDRESSES[family]))}/{draw(st.sampled_from(LENGTHS[family]))}"
            found[end] = str(ipaddress.ip_network(text, strict=False))
    if draw(st.booleans()):
        found["proto"] = draw(st.sampled_from([6, 17, 1]))
        for port in ("sport", "dport"):
            if found["proto"] != 1 and draw(st.booleans()):
                found[port] = draw(st.sampled_from([80, 443]))
    return found


def network(match: Mapping[str, Any], end: str) -> Any:
    return ipaddress.ip_network(match.get(end) or ("0.0.0.0/0" if match["family"] == 4 else "::/0"))


def meets(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    same = all(
        one.get(key) is None or other.get(key) is None or one[key] == other[key] for key in ("proto", "sport", "dport")
    )
    if one["family"] != other["family"] or not same:
        return False
    return all(bool(network(one, end).overlaps(network(other, end))) for end in ("src", "dst"))


def identity(match: Mapping[str, Any]) -> tuple[Any, ...]:
    ends = [network(match, end) for end in ("src", "dst")]
    return match["family"], *ends, match.get("proto"), match.get("sport"), match.get("dport")


def rank(match: Mapping[str, Any]) -> tuple[int, int]:
    fixed = sum(int(network(match, end).prefixlen) for end in ("src", "dst"))
    fixed += 16 * ("sport" in match) + 16 * ("dport" in match) + 8 * ("proto" in match)
    return fixed, match["priority"]


def contradict(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return identity(one) == identity(other) or (meets(one, other) and rank(one) == rank(other))


class Changes(RuleBasedStateMachine):
    """Adds and deletes in batches; each state is compared with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(40, 8)
        self.model: dict[str, dict[str, Any]] = {}
        self.offloaded: set[str] = set()
        self.number = 0

    @rule(found=st.lists(matches(), min_size=1, max_size=6), data=st.data())
    def change(self, found: list[dict[str, Any]], data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.sampled_from(sorted(self.model)), max_size=4)) if self.model else set()
        orders = []
        for match in found:
            self.number += 1
            match["action"] = data.draw(st.sampled_from(["drop", "count"]))
            orders.append({"name": f"e{self.number}", **match})
        staying = [match for name, match in self.model.items() if name not in gone]
        wrong = any(contradict(one, other) for one in orders for other in staying)
        wrong |= any(contradict(one, other) for place, one in enumerate(orders) for other in orders[:place])
        try:
            change = self.table.plan(parse_orders(orders), sorted(gone))
        except EntryError:
            assert wrong or len(staying) + len(orders) > 40
            return
        assert not wrong
        slots = {int(row["slot"]): name for row, name in zip(change.removed, change.removed_names, strict=True)}
        for slot in change.withdrawn["slot"].tolist():
            self.offloaded.remove(slots.get(slot) or self.table.name_of(slot))
        self.table.commit(change)
        self.offloaded |= {self.table.name_of(slot) for slot in change.offloadable["slot"].tolist()}
        self.model = {name: match for name, match in self.model.items() if name not in gone}
        self.model |= {str(order["name"]): dict(match) for order, match in zip(orders, found, strict=True)}

    @invariant()
    def agrees(self) -> None:
        assert sorted(self.table.names()) == sorted(self.model)
        free = set()
        for name, match in self.model.items():
            beaten_by = sorted(
                other
                for other, its in self.model.items()
                if meets(match, its) and rank(its) > rank(match) and {match["action"], its["action"]} != {"drop"}
            )
            slot = self.table.slot_of(name)
            assert slot is not None
            assert self.table.beaten_by[slot] == len(beaten_by)
            assert sorted(self.table.shadowed_by(slot, 100)) == beaten_by
            if not beaten_by:
                free.add(name)
        assert self.offloaded == free

    @invariant()
    def slots_and_targets_are_counted(self) -> None:
        slots = self.table.slots()
        assert len(set(slots.tolist())) == len(self.model)
        users = Counter(self.table.rows["target"][slots].tolist())
        assert set(users) == set(self.table.targets)
        assert (self.table.rows["slot"][slots] == slots).all()


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)


@given(st.lists(matches(), min_size=1, max_size=20))
def test_what_a_row_says_is_what_was_ordered(found: list[dict[str, Any]]) -> None:
    entries = parse_orders([drop(f"e{number}", **match) for number, match in enumerate(found)])
    again = list(describe(entries.rows, {0: entries.actions[0]}))
    for match, described in zip(found, again, strict=True):
        full = {**described, "priority": described.get("priority", 0), "family": match["family"]}
        full["proto"] = {"tcp": 6, "udp": 17}.get(full.get("proto"), full.get("proto"))
        assert identity({key: value for key, value in full.items() if value is not None}) == identity(match)
        assert full["priority"] == match["priority"]


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 60))
def test_few_keys_and_many_are_found_the_same_way(seed: int, few: int, many: int) -> None:
    source = np.random.default_rng(seed)
    left, right = (source.integers(0, 4, size=(5, size), dtype=np.uint64) for size in (few, many))
    mask = np.where(source.integers(0, 2, size=5), 3, 0).astype(np.uint64)
    groups, found, found_groups = overlaps.match(left, right, mask)
    pairs = {
        (here, int(there))
        for there, group in zip(found, found_groups, strict=True)
        for here in np.flatnonzero(groups == group).tolist()
    }
    assert pairs == {
        (here, there)
        for here in range(few)
        for there in range(many)
        if ((left[:, here] ^ right[:, there]) & mask == 0).all()
    }
