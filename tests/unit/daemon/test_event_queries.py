# SPDX-License-Identifier: Apache-2.0
"""What `nfcore events` is told of an engine at work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from nfcore.api.flows import FLOW_ROW, ReportKind
from nfcore.cli.events import parse_since
from nfcore.daemon.event_queries import MOST_EVENTS, follow, look
from nfcore.daemon.run import _Daemon
from nfcore.engine.event_kind import EventKind
from nfcore.engine.event_log import EventLog
from nfcore.errors import ConfigError
from nfcore.kernel.link_monitor import LinkChange
from tests.unit.engine.world import GRACE, IDLE, IFINDEX, LAG, World

TEXT = "198.18.1.2:{} > 198.18.10.1:80/tcp"


def told(world: World, **about: Any) -> list[tuple[str, int]]:
    """Kind and source port of each event of a flow."""
    answer = look(world.engine.state, **about)
    assert answer == json.loads(json.dumps(answer))
    assert [event["seq"] for event in answer["events"]] == sorted(event["seq"] for event in answer["events"])
    flows = [event for event in answer["events"] if "flow" in event]
    return [(event["kind"], int(event["flow"].split(" ")[0].split(":")[1])) for event in flows]


def notes(world: World, **about: Any) -> list[tuple[str, str]]:
    events = look(world.engine.state, **about)["events"]
    return [(event["kind"], event["message"]) for event in events if "flow" not in event]


def test_a_flow_is_installed_and_ages(make: Callable[..., World]) -> None:
    world = make("flow-id")
    world.start()
    world.report(1001, target=107)
    world.hit(1001, 50)
    world.pass_time(1.0)
    world.idle_and_gone()
    world.idle_and_gone()
    assert told(world) == [("installed", 1001), ("aged", 1001)]
    installed, aged = look(world.engine.state)["events"]
    assert installed["flow"] == TEXT.format(1001) and installed["mark"] > 0
    assert (installed["vip"], installed["real"], installed["backend"], installed["interface"]) == (
        "vip1",
        "real7",
        "nic",
        "eth1",
    )
    assert (aged["reason"], aged["packets"], aged["mark"]) == ("idle", 50, installed["mark"])


def test_what_is_refused_deferred_and_replaced_says_why(make: Callable[..., World]) -> None:
    world = make("dest-id", nic=1)
    world.start()
    world.nf.refuses = {9}
    world.report(1001, target=9)
    world.report(1002)
    world.report(1003)
    events = look(world.engine.state)["events"]
    assert [(e["kind"], e.get("reason")) for e in events if "flow" in e] == [
        ("refused", "not_published"),
        ("installed", None),
        ("deferred", "nic_full"),
    ]
    assert ("nic", "full, with 1 rules: the coldest make room") in notes(world)
    for _ in range(4):
        world.report(1003, packets=80_000)
        world.pass_time(LAG)
    world.pass_time(GRACE)
    assert ("replaced", 1002) in told(world) and ("installed", 1003) in told(world)


def test_what_fails_says_so_in_the_backends_words(make: Callable[..., World]) -> None:
    from nfcore.api.rules import Outcome

    world = make("dest-id", nic=0)
    world.nic.refuses = Outcome.FAILED
    world.start()
    world.report(1001)
    (failed,) = look(world.engine.state, kinds=["failed"])["events"]
    assert failed["message"] == "nic has 0 places" and failed["reason"] == "failed"
    world.nic.size = 10
    world.pass_time(1.0)
    assert told(world) == [("failed", 1001), ("deferred", 1001), ("installed", 1001)]


def test_a_rule_that_cannot_be_removed(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.start()
    world.report(1001)
    world.nic.stuck = True
    world.engine.switch(on=False)
    (failed,) = look(world.engine.state, kinds=["failed"])["events"]
    assert (failed["message"], failed["reason"]) == ("its rule could not be removed", "switched_off")


def test_what_vanishes_is_put_back(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.start()
    world.report(1001, 1002)
    world.nic.rules.clear()
    for _ in range(3):
        world.pass_time(IDLE / 4)
    assert told(world)[2:] == [("vanished", 1001), ("vanished", 1002), ("put-back", 1001), ("put-back", 1002)]


def test_what_an_earlier_run_left_is_adopted(make: Callable[..., World]) -> None:
    first = make("dest-id")
    first.nf.known_targets = [7]
    first.start()
    first.report(1001)
    second = make("dest-id")
    second.nf.known_targets, second.nic.rules, second.nic.hits = [7], first.nic.rules, first.nic.hits
    second.nf.entries = dict(first.nf.entries)
    second.context.state_file = first.context.state_file
    second.start()
    assert told(second) == [("adopted", 1001)]


def test_the_managers_own_events(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.start()
    world.report(1001)

    class Links:
        def poll(self) -> dict[int, LinkChange]:
            return {IFINDEX: LinkChange("eth1", up=False, gone=False)}

        def watch_qdiscs(self, wanted: bool) -> None:
            """Nothing is in the way of rules here."""
            assert not wanted

    class NoPrograms:
        def run(self, changed: object) -> None:
            """Has none to look after."""

    _Daemon(world.engine, Links(), NoPrograms(), SimpleQueue())._tick()  # type: ignore[arg-type]
    world.engine.switch(on=False)
    world.engine.switch(on=True)
    assert [kind for kind, _ in notes(world)][:1] == ["link"]
    switched = notes(world, kinds=["switch"])
    assert [words for _, words in switched] == [
        "offloading is switched off: 1 flows go back to the slow path",
        "offloading is switched on",
    ]
    assert told(world) == [("installed", 1001), ("ended", 1001)]
    assert notes(world, reasons=["switched_off"]) == [] and told(world, reasons=["switched_off"]) == [("ended", 1001)]
    assert notes(world, interfaces=["eth1"], kinds=["link"]) == notes(world, match="changed")
    assert told(world, interfaces=["eth2"]) == []


@pytest.fixture
def busy(make: Callable[..., World]) -> World:
    world = make("dest-id")
    world.start()
    world.report(1001, 1002, target=107)
    world.report(1003, target=208)
    return world


@pytest.mark.parametrize(
    ("match", "ports"),
    [
        ("198.18.1.2:1001", [1001]),
        ("vip1", [1001, 1002]),
        ("vip1 198.18.1.2:1002", [1002]),
        ("real8", [1003]),
        ("198.18.10.0/24", [1001, 1002, 1003]),
        ("nic", [1001, 1002, 1003]),
        ("nowhere", []),
    ],
)
def test_events_by_a_part_of_their_text(busy: World, match: str, ports: list[int]) -> None:
    assert [port for _, port in told(busy, match=match)] == ports


def test_the_last_events_and_those_after(busy: World) -> None:
    assert [port for _, port in told(busy, last=2)] == [1002, 1003]
    assert told(busy, last=0) == []
    assert [port for _, port in told(busy, last=1, match="vip1")] == [1002]
    seen, since = [], 0
    while (answer := look(busy.engine.state, since=since, limit=1))["events"]:
        seen += [event["seq"] for event in answer["events"]]
        since = answer["next"]
    assert seen == [0, 1, 2] and since == answer["newest"] == 3
    assert told(busy, since=99) == told(busy)  # a number of another run


def test_a_follower_that_is_too_slow_is_told_what_it_lost(busy: World) -> None:
    busy.engine.state.events = log = EventLog(1000)
    log.note(EventKind.RELOAD, "changed")
    for _ in range(30):
        rows = np.zeros(100, dtype=FLOW_ROW)
        rows["nf"], rows["family"], rows["ifindex"] = 1, 4, IFINDEX
        log.record(EventKind.REFUSED, rows)
    answer = look(busy.engine.state, since=0)
    assert answer["lost"] == 2000
    assert len(answer["events"]) == MOST_EVENTS
    assert look(busy.engine.state)["lost"] == 0  # who asks for what there is has lost nothing
    assert look(busy.engine.state, since=answer["next"])["lost"] == 0
    assert look(busy.engine.state, since=answer["next"], kinds=["aged"]) == {
        "events": [],
        "next": log.next,
        "newest": log.next,
        "lost": 0,
    }


def test_waiting_for_an_event(busy: World) -> None:
    async def wait() -> dict[str, Any]:
        floor = busy.engine.state
        assert await follow(floor, {"since": 3, "wait": 0}) == {"events": [], "next": 3, "newest": 3, "lost": 0}
        assert (await follow(floor, {"since": 3, "wait": 0.2}))["events"] == []
        task = asyncio.create_task(follow(floor, {"last": 0, "wait": 20, "match": "vip1"}))
        await asyncio.sleep(0.2)
        busy.report(1004, target=208)
        await asyncio.sleep(0.2)
        assert not task.done()
        busy.report(1005, target=107)
        return await asyncio.wait_for(task, 10)

    (event,) = asyncio.run(wait())["events"]
    assert event["flow"] == TEXT.format(1005)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"kinds": ["melted"]}, "'melted'; should be one of installed"),
        ({"kinds": "installed"}, "should be a list of words"),
        ({"reasons": ["tired"]}, "'tired'; should be one of admit"),
        ({"since": -1}, "should be a number, not below 0"),
        ({"since": True}, "should be a number"),
        ({"last": 1.5}, "should be a number"),
        ({"wait": float("nan")}, "should be a number"),
        ({"match": 3}, "should be a text"),
        ({"interfaces": ["eth9"]}, "'eth9'; the daemon's interfaces are: eth1"),
        ({"color": "red"}, "is no parameter; there are: after"),
    ],
)
def test_mistakes_are_named(busy: World, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        asyncio.run(follow(busy.engine.state, parameters))


def test_since_long_ago_is_since_the_beginning() -> None:
    assert parse_since("99999999999999h", 1e9) == 0.0
    assert parse_since("5m", 1e9) == 1e9 - 300


def test_a_plugins_own_reason_can_be_asked_for(busy: World) -> None:
    answer = asyncio.run(follow(busy.engine.state, {"reasons": ["plugin_77"]}))
    assert answer["events"] == []


def test_masked_flows_are_written_as_such(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.nf.orders = 10
    world.start()
    texts = ["198.18.1.0/24:* > 0.0.0.0/0:*/*", "[2001:db8:1::]:* > [::/0]:53/udp"]
    for text in texts:
        batch = world.flows(0, packets=0, text=text)
        batch.rows["kind"] = ReportKind.ORDERED
        world.nf.reports.append(batch)
        world.engine.poll()
    assert [event["flow"] for event in look(world.engine.state)["events"]] == texts
