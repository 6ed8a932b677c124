# SPDX-License-Identifier: Apache-2.0
"""Entries of applications outlive the daemon, however it ends: the real file, cut at any byte of its last change."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nfcore.errors import HostError
from nfcore.plugins.flow_actions import journal as module
from nfcore.plugins.flow_actions.entries import EntryError, EntryTable, parse_orders
from nfcore.plugins.flow_actions.journal import Journal
from nfcore.plugins.flow_actions.orders import Orders
from nfcore.plugins.flow_actions.table import Owner, Table

from .serving import NullDataPlane

Order = Mapping[str, Any]
ACTIONS: list[dict[str, Any]] = [
    {"action": "drop"},
    {"action": "pass"},
    {"action": "set_dscp", "dscp": 46, "require": {"family": 4}},
    {"action": "police", "bytes_per_second": 1000, "burst": 10},
]


class World:
    """A daemon's entries, which can be killed and started again."""

    def __init__(self, path: Path, entries: int = 30, targets: int = 20) -> None:
        self.path, self.entries, self.targets = path, entries, targets
        self.now = 1000.0
        self.orders: Orders
        self.data_plane: NullDataPlane

    @property
    def table(self) -> Table:
        return self.orders.table

    def start(self, *toml: Order) -> None:
        table = Table(self.entries, self.targets, lambda: self.now)
        self.data_plane = NullDataPlane(table)
        self.orders = Orders(table, Journal(self.path), self.data_plane)
        self.orders.start([EntryTable(**order) for order in toml])

    def add(self, *orders: Order, delete: tuple[str, ...] = ()) -> None:
        self.table.release_targets(self.orders.change(parse_orders(list(orders)), delete).gone_targets)

    def state(self) -> dict[str, tuple[Any, ...]]:
        """All that an entry keeps, by name."""
        table = self.table
        return {
            table.name_of(slot): (
                slot,
                table.rows[slot].tobytes(),
                table.target(slot),
                float(table.expires[slot]),
                bool(table.offload[slot]),
                Owner(int(table.owners[slot])),
            )
            for slot in table.slots().tolist()
        }


def drop(name: str, src: str, **keys: Any) -> Order:
    return {"name": name, "src": src, "action": "drop", **keys}


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "nfcore.sock.flows")
    world.start()
    return world


def test_a_restart_keeps_slots_targets_and_what_is_left_of_lifetimes(world: World) -> None:
    world.add(*({"name": f"e{number}", "src": f"198.18.1.{number}", **keys} for number, keys in enumerate(ACTIONS)))
    world.add(
        drop("short", "198.18.2.1", ttl="10s"), drop("long", "198.18.2.2", ttl="1h", offload=False), delete=("e0",)
    )
    before = world.state()
    world.now += 20
    world.start()
    del before["short"]
    assert world.state() == before
    assert [change.restored for change in world.data_plane.changes] == [True]


def test_a_damaged_line_is_said_and_left_out(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.add(drop("a", "198.18.1.1"))
    world.add(drop("b", "198.18.1.2"))
    content = world.path.read_bytes()
    world.path.write_bytes(content[:-10])
    world.start()
    assert list(world.state()) == ["a"]
    assert "has a damaged line, of a change that was not finished" in caplog.text
    world.add(drop("c", "198.18.1.3"))
    world.start()
    assert list(world.state()) == ["a", "c"]


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b'{"nfcore_flows": 99}\n{}\n', b"[]\n[]\n", b"\xff\xfe\n" * 3])
def test_a_file_that_is_none(world: World, content: bytes) -> None:
    world.path.write_bytes(content)
    world.start()
    assert world.state() == {}
    world.add(drop("a", "198.18.1.1"))
    world.start()
    assert list(world.state()) == ["a"]


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"7",
        b'{"delete": [], "names": ["x"], "rows": "", "targets": {}}',
        b'{"delete": [], "names": [], "rows": "!", "targets": {}}',
        b'{"delete": [], "names": [], "rows": "AAAA", "targets": {}}',
        b"[" * 100_000,
    ],
)
def test_lines_that_are_none(world: World, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    world.add(drop("a", "198.18.1.1"))
    world.path.write_bytes(world.path.read_bytes() + line + b"\n")
    world.start()
    assert list(world.state()) == ["a"]
    assert "damaged" in caplog.text


def test_a_change_that_is_refused_is_not_kept(world: World) -> None:
    world.add(drop("a", "198.18.1.1"))
    world.data_plane.refuses = True
    with pytest.raises(HostError, match="the map is full"):
        world.add(drop("b", "198.18.1.2"))
    assert list(world.state()) == ["a"]
    world.data_plane.refuses = False
    world.add(drop("c", "198.18.1.3"))
    world.start()
    assert list(world.state()) == ["a", "c"]


def test_a_file_that_cannot_be_written_refuses_the_change(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(drop("a", "198.18.1.1"))
    # The file system is full: /dev/full takes nothing, and refuses with ENOSPC.
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(world.orders._journal, "_fd", full.fileno())
        monkeypatch.setattr(module.os, "ftruncate", lambda fd, size: None)
        with pytest.raises(HostError, match=r"the change cannot be kept in .*: No space left on device"):
            world.add(drop("b", "198.18.1.2"))
    assert list(world.state()) == ["a"]


def test_the_file_is_written_anew_when_it_has_doubled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST", 2000)
    for number in range(100):
        world.add(drop(f"e{number}", "198.18.1.1"), delete=(f"e{number - 1}",) if number else ())
        assert world.path.stat().st_size < 6000
    world.start()
    assert list(world.state()) == ["e99"]


def test_smaller_sizes_in_the_toml(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.add(*(drop(f"e{number}", f"198.18.1.{number}") for number in range(10)))
    world.add({"name": "p", "src": "198.18.2.1", "action": "pass"}, delete=("e0", "e1", "e2"))
    world.entries = 8
    world.start()
    assert sorted(world.state()) == ["e3", "e4", "e5", "e6", "e7", "e8", "e9", "p"]
    assert [slot for slot, *_ in world.state().values()] == list(range(8))
    world.entries, world.targets = 5, 1
    world.start()
    assert sorted(world.state()) == ["e3", "e4", "e8", "e9"]  # `pass` would be the second action
    assert "entries of the run before do not fit any more" in caplog.text


def test_the_toml_wins_at_the_start(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.add(drop("a", "198.18.1.1"), drop("b", "198.18.1.2"))
    world.start(drop("t", "198.18.1.1"))
    assert {name: each[-1] for name, each in world.state().items()} == {"b": Owner.APPLICATION, "t": Owner.TOML}
    assert "entries of applications give way to the TOML's: 'a'" in caplog.text
    before = world.state()
    world.start(drop("t", "198.18.1.1"))
    assert world.state() == before


class Lives(RuleBasedStateMachine):
    """Changes, lifetimes, reloads; and kills, which cut the file anywhere in its last change."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.world = World(self.folder / "s.flows", entries=12, targets=30)
        self.toml: list[Order] = []
        self.world.start()
        self.expected = self.world.state()
        self.before: tuple[int, dict[str, Any], list[Order]] = (self.size, self.expected, [])
        self.number = 0

    @property
    def size(self) -> int:
        return self.world.path.stat().st_size

    def note(self) -> None:
        """Note the state before a change."""
        self.before = (self.size, self.world.state(), self.toml)

    @rule(
        keys=st.lists(
            st.tuples(st.integers(0, 9), st.sampled_from(ACTIONS), st.sampled_from(["", "5s", "1h"])), max_size=4
        ),
        data=st.data(),
    )
    def change(self, keys: list[tuple[int, dict[str, Any], str]], data: st.DataObject) -> None:
        mine = sorted(self.world.table.names(Owner.APPLICATION))
        gone = data.draw(st.sets(st.sampled_from(mine), max_size=3)) if mine else set()
        orders = []
        for host, action, ttl in keys:
            self.number += 1
            lifetime = {"ttl": ttl} if ttl else {}
            match = {"src": f"198.18.1.{host}"} if host % 2 else {"dst": f"198.18.1.{host}/32", "proto": 6}
            orders.append({"name": f"e{self.number}", **match, "priority": self.number, **action, **lifetime})
        self.note()
        try:
            self.world.add(*orders, delete=tuple(gone))
        except EntryError:  # contradictions, which test_table.py looks at
            assert self.world.state() == self.before[1]

    @rule(hosts=st.sets(st.integers(0, 5), max_size=3))
    def reload(self, hosts: set[int]) -> None:
        toml = [drop(f"t{host}", f"198.19.1.{host}") for host in sorted(hosts)]
        self.note()
        if len(self.world.table.names(Owner.APPLICATION)) + len(toml) <= 12:
            change = self.world.orders.reload([EntryTable(**order) for order in toml])
            self.world.table.release_targets(change.gone_targets)
            self.toml = toml

    @rule(seconds=st.sampled_from([1.0, 6.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        self.note()
        change = self.world.orders.expire()
        if change is not None:
            self.world.table.release_targets(change.gone_targets)

    @rule()
    def refuse(self) -> None:
        self.note()
        self.world.data_plane.refuses = True
        with pytest.raises(HostError):
            self.world.add(drop("refused", "198.18.9.9"))
        self.world.data_plane.refuses = False
        assert (self.world.state(), self.size) == (self.before[1], self.before[0])

    @rule(share=st.floats(0.0, 1.0))
    def kill(self, share: float) -> None:
        size, before, toml = self.before
        expected, end = self.world.state(), self.size
        if end > size:  # else the last change was not written, or the file was written anew
            cut = size + int((end - size) * share)
            if cut < end:
                expected, self.toml = before, toml
            with self.world.path.open("rb+") as file:
                file.truncate(cut)
        self.world.path.with_name("s.flows.new").write_bytes(b"half of")
        self.world.start(*self.toml)
        now = self.world.now
        assert self.world.state() == {name: each for name, each in expected.items() if each[3] > now}
        self.note()

    @invariant()
    def never_more_than_what_is_there(self) -> None:
        assert len(self.world.table) <= 12

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


@pytest.fixture(autouse=True)
def _logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
