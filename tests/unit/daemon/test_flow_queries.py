# SPDX-License-Identifier: Apache-2.0
"""What `nfcore flows` and `nfcore explain` are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from nfcore.api.flows import NO_TAGS, SERVICE_TAG, ReportKind
from nfcore.api.json_rows import JsonRows, materialize
from nfcore.api.reasons import Reason
from nfcore.daemon.flow_queries import MOST_FLOWS, explain, list_flows
from nfcore.engine.flow_state import SORT_KEYS
from nfcore.engine.reconcile import LONGEST_POLL
from nfcore.errors import ConfigError
from tests.unit.engine.world import GRACE, IDLE, LAG, Waiting, World

TEXT = "198.18.1.2:{} > 198.18.10.1:80/tcp"


def names(answer: dict[str, object]) -> list[str]:
    flows = answer["flows"]
    assert isinstance(flows, JsonRows)
    return [flow["flow"] for flow in flows]


@pytest.fixture
def busy(make: Callable[..., World]) -> World:
    world = make("flow-id", nic=2)
    world.start()
    world.report(1001, 1002, target=107)
    world.report(1003, target=208)
    world.nf.refuses = {9}
    world.report(1004, target=9)
    world.hit(1001, 50)
    world.hit(1002, 20)
    world.pass_time(1.0)
    return world


def test_all_flows_with_all_that_is_known_of_them(busy: World) -> None:
    answer = materialize(list_flows(busy.engine.state))
    assert answer == json.loads(json.dumps(answer))
    assert answer["states"] == {"installed": 2, "pending": 0, "waiting": 1, "draining": 0, "refused": 1, "ended": 0}
    assert (answer["matching"], answer["offload"]) == (4, True)
    (first,) = [flow for flow in answer["flows"] if flow["flow"] == TEXT.format(1001)]
    assert first["mark"] in busy.nf.entries
    assert {
        key: first[key] for key in ("state", "in_hardware", "reason", "backend", "interface", "nf", "vip", "real")
    } == {
        "state": "installed",
        "in_hardware": True,
        "reason": None,
        "backend": "nic",
        "interface": "eth1",
        "nf": "nf",
        "vip": "vip1",
        "real": "real7",
    }
    assert (first["packets_when_reported"], first["since_seconds"]) == (8, 1.0)
    assert not any(flow["ordered"] for flow in answer["flows"])


def test_a_flow_has_the_ids_of_its_vlan_tags(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.start()
    batch = world.flows(1001, 1002, 1003)
    batch.rows["vlans"] = NO_TAGS, (100, 0), (SERVICE_TAG | 200, 7)
    world.nf.reports.append(batch)
    world.engine.poll()
    rows = {row["sport"]: row["vlans"] for row in materialize(list_flows(world.engine.state))["flows"]}
    assert rows == {1001: [], 1002: [100], 1003: [200, 7]}


def test_ordered_flows_are_told_from_reported_ones(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.nf.orders = 10
    world.start()
    batch = world.flows(1001, target=7, packets=0)
    batch.rows["kind"], batch.rows["mark"] = ReportKind.ORDERED, 0
    world.nf.reports.append(batch)
    world.engine.poll()
    world.report(1002, target=7)
    found = [explain(world.engine.state, TEXT.format(port))["found"][0]["ordered"] for port in (1001, 1002)]
    assert found == [True, False]


def test_flows_by_state(busy: World) -> None:
    assert names(list_flows(busy.engine.state, states=["waiting"])) == [TEXT.format(1003)]
    assert names(list_flows(busy.engine.state, states=["refused"])) == [TEXT.format(1004)]
    assert len(names(list_flows(busy.engine.state, states=["refused", "installed"]))) == 3


@pytest.mark.parametrize(
    ("match", "ports"),
    [
        ("198.18.1.2:1001", [1001]),
        ("198.18.10.1:1001", []),
        ("198.18.1.0/24", [1001, 1002, 1003, 1004]),
        ("2001:db8::/32", []),
        ("eth1", [1001, 1002, 1003, 1004]),
        ("vip1", [1001, 1002]),
        ("real8", [1003]),
        ("not_published", [1004]),
        ("nowhere", []),
    ],
)
def test_flows_by_a_part_of_their_text(busy: World, match: str, ports: list[int]) -> None:
    answer = list_flows(busy.engine.state, match=match)
    assert sorted(names(answer)) == [TEXT.format(port) for port in ports]
    assert answer["matching"] == len(ports)
    assert list_flows(busy.engine.state, match=match, limit=1)["matching"] == len(ports)


def test_flows_in_an_order(busy: World) -> None:
    busy.pass_time(IDLE / 4)
    assert names(list_flows(busy.engine.state, sort="packets", limit=2)) == [TEXT.format(1001), TEXT.format(1002)]
    for key in SORT_KEYS:
        assert len(names(list_flows(busy.engine.state, sort=key))) == 4
    assert names(list_flows(busy.engine.state, limit=0)) == names(list_flows(busy.engine.state, limit=-3)) == []
    assert len(names(list_flows(busy.engine.state, limit=MOST_FLOWS * 2))) == 4


@pytest.mark.parametrize("sort", SORT_KEYS)
def test_the_first_of_an_order_are_the_first_of_all(make: Callable[..., World], sort: str) -> None:
    world = make("dest-id")
    world.start()
    for port in range(1001, 1021):
        world.report(port)
        world.hit(port, port % 7)
        world.now += port % 3
    world.pass_time(1.0)
    everything = names(list_flows(world.engine.state, sort=sort))
    assert len(everything) == 20
    for limit in range(21):
        assert names(list_flows(world.engine.state, sort=sort, limit=limit)) == everything[:limit]


def test_a_list_is_of_the_instant_in_which_it_was_asked_for(busy: World) -> None:
    answer = list_flows(busy.engine.state)
    before = materialize(answer)
    busy.engine.switch(on=False)
    busy.report(1005)
    busy.pass_time(GRACE)
    assert materialize(answer) == before
    assert materialize(list_flows(busy.engine.state)) != before


def test_the_oldest_come_first_by_age(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.start()
    for port in (1001, 1002, 1003):
        world.report(port)
        world.now += 1
    assert names(list_flows(world.engine.state, sort="age")) == [TEXT.format(port) for port in (1001, 1002, 1003)]


def rates(world: World, **about: Any) -> list[tuple[int, float]]:
    rows = list_flows(world.engine.state, **about)["flows"]
    return [(int(row["flow"].split(" ")[0].split(":")[1]), row["rate"]) for row in rows]


def test_a_flow_that_stands_still_has_no_rate(make: Callable[..., World]) -> None:
    world = make("dest-id")
    world.start()
    world.report(1001, 1002)
    for _ in range(3):
        world.hit(1001, 100)
        world.hit(1002, 5000)
        world.pass_time(LONGEST_POLL)
    assert [port for port, rate in rates(world) if rate > 0] == [1002, 1001]
    assert [port for port, _ in rates(world, reverse=True)] == [1001, 1002]
    world.hit(1001, 100)
    world.pass_time(LONGEST_POLL)
    (first, moving), still = rates(world)
    assert first == 1001 and moving > 0 and still == (1002, 0.0)
    assert world.engine.table.rate.max() > moving  # the engine does not take its place away at once


def test_a_flow_without_a_rule_slows_down_when_it_is_not_reported(make: Callable[..., World]) -> None:
    world = make("dest-id", nic=0)
    world.start()
    for packets in (10, 1000):
        world.report(1001, packets=packets)
        world.now += 0.1
    ((_, before),) = rates(world)
    world.now += 1000
    ((_, after),) = rates(world)
    assert before > 100 * after > 0


def test_mistakes_are_named(busy: World) -> None:
    with pytest.raises(ConfigError, match="'heat'; should be one of rate"):
        list_flows(busy.engine.state, sort="heat")
    with pytest.raises(ConfigError, match="'melted'; should be one of installed"):
        list_flows(busy.engine.state, states=["melted"])
    with pytest.raises(ConfigError, match="is not a flow"):
        explain(busy.engine.state, "1.2.3.4")


def why(world: World, port: int) -> str:
    (row,) = explain(world.engine.state, TEXT.format(port))["found"]
    words: str = row["why"]
    return words


def test_each_state_is_explained(busy: World) -> None:
    assert explain(busy.engine.state, TEXT.format(1001))["in_hardware"] is True
    assert why(busy, 1001) == "the NIC marks its packets"
    assert why(busy, 1003) == f"it waits for a rule: {Reason.NIC_FULL.sentence}"
    assert why(busy, 1004) == f"it has no rule: {Reason.NOT_PUBLISHED.sentence}"
    busy.nic.size = 0
    for _ in range(3):
        busy.pass_time(IDLE + LAG)
    assert why(busy, 1001) in {
        f"its rule is being removed: {Reason.IDLE.sentence}",
        f"it has no rule: {Reason.IDLE.sentence}",
    }
    busy.pass_time(GRACE)
    assert explain(busy.engine.state, TEXT.format(1001))["in_hardware"] is False


def test_a_rule_on_its_way_and_one_that_should_go(make: Callable[..., World]) -> None:
    world = make("flow-id")
    world.worker = worker = Waiting(9)
    world.start()
    world.report(1001)
    assert why(world, 1001) == "its rule is on its way to the NIC"
    worker.run()
    world.nic.stuck = True
    world.engine.switch(on=False)
    worker.run()
    assert why(world, 1001) == f"its rule is to be removed: {Reason.SWITCHED_OFF.sentence}"


def test_a_flow_that_nobody_reported(busy: World) -> None:
    answer = explain(busy.engine.state, TEXT.format(4242))
    assert (answer["found"], answer["in_hardware"]) == ([], False)
    assert "min_packets = 8" in answer["why"]
    busy.engine.switch(on=False)
    assert explain(busy.engine.state, TEXT.format(4242))["why"] == Reason.SWITCHED_OFF.sentence


def test_flows_whose_connections_were_closed_are_listed_only_when_asked_for(busy: World) -> None:
    batch = busy.flows(1001, target=107, marks=[0])
    batch.rows["kind"] = ReportKind.ENDED
    busy.nf.reports.append(batch)
    busy.engine.poll()
    busy.pass_time(GRACE)
    closed, state = TEXT.format(1001), busy.engine.state
    answer = materialize(list_flows(state))
    assert (answer["states"]["ended"], answer["matching"]) == (1, 3)
    assert closed not in names(list_flows(state))
    assert names(list_flows(state, states=["ended"])) == [closed]
    assert set(names(list_flows(state, ended=True))) == {*names(list_flows(state)), closed}
    (found,) = materialize(explain(state, closed))["found"]
    assert (found["state"], found["reason"]) == ("ended", "ended")
    assert found["why"] == "it has no rule: its rule was removed because its connection was closed"


def test_a_functions_words_replace_nothing_of_the_core(busy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"state": "happy", "mark": "none", "nf": "me", "zone": "a"}
    monkeypatch.setattr(busy.nf, "describe", lambda target: words)
    rows = materialize(list_flows(busy.engine.state, states=["installed"]))["flows"]
    assert {(row["state"], row["nf"], row["zone"]) for row in rows} == {("installed", "nf", "a")}
    assert all(row["target"] == words and row["mark"] != "none" for row in rows)
