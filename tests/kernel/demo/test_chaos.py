# SPDX-License-Identifier: Apache-2.0
"""The chaos as a user runs it, that it leaves nothing, and that its claims fail where something went wrong."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.chaos_proof import Absence, Ring, prove_chaos
from demo.events import Event
from demo.host_state import BALANCER_PINS, SCRATCH
from demo.lab import CLIENT4, NETNS_FOLDER, VIP4, Lab
from demo.proof import Prediction, Summary
from demo.scenario import FIRST_RULES, Scenario
from demo.stage import CONFIG
from nfcore.config.loader import load_config
from nfcore.hooks.manager import PluginManager

from .running import run_story, stop_at

pytestmark = pytest.mark.slow
STORY = [
    *("max_rules", "explain", "nic_full", "kill", "kill", "kill_starting", "wipe", "cable"),
    *("drain", "remove", "return", "offload_off", "kill_off", "offload_on"),
]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root (network namespaces, XDP)")


def leftovers() -> set[str]:
    found = {str(path) for path in NETNS_FOLDER.glob("nfdemo-*")}
    own = (SCRATCH, BALANCER_PINS, Path("/run/nfcore/demo.sock"), Path("/run/nfcore/bpf/softnic-demo"))
    found |= {str(path) for path in own if path.exists()}
    return found | {str(path) for path in Path("/run").glob("nfcore-demo*")}


@needs_root
@pytest.mark.parametrize("strategy", ["dest-id", "flow-id"])
def test_nothing_is_lost_whatever_happens(strategy: str) -> None:
    summary, errors = run_story("--chaos", strategy, STORY, requests=6000, timeout=600)
    for event in summary["events"]:
        assert event["what"] in errors
    assert leftovers() == set()


@needs_root
def test_stopped_amid_a_killing_it_leaves_nothing() -> None:
    stop_at("SIGKILL", ["--chaos"])
    assert leftovers() == set()


def test_each_state_of_the_scenario_is_a_configuration(tmp_path: Path) -> None:
    scenario = Scenario(CONFIG, tmp_path / "chaos.toml")
    real = Lab("nfscen-").reals[1]

    def reals() -> list[list[tuple[str, int]]]:
        config = load_config(scenario.path, PluginManager())
        assert config.source == str(scenario.path)
        vips = tomllib.loads(scenario.path.read_text())["katran_accel"]["vips"]
        return [[(each["address"], each["weight"]) for each in vip["reals"]] for vip in vips]

    first = reals()
    example = tomllib.loads(CONFIG.read_text())["katran_accel"]["vips"]
    assert first == [[(each["address"], each["weight"]) for each in vip["reals"]] for vip in example]
    assert load_config(scenario.path, PluginManager()).offload.max_rules == FIRST_RULES
    scenario.allow(1234)
    assert load_config(scenario.path, PluginManager()).offload.max_rules == 1234
    scenario.weigh(real, 0)
    own = (real.v4, real.v6)
    assert reals() == [[(address, 0 if address in own else weight) for address, weight in vip] for vip in first]
    scenario.remove(real)
    assert reals() == [[pair for pair in vip if pair[0] not in own] for vip in first]
    scenario.bring_back()
    assert reals() == first
    assert load_config(scenario.path, PluginManager()).offload.max_rules == 1234


class World:
    """A client's records over a time in which real2 was removed: from 10 to 20 s."""

    def __init__(self, folder: Path) -> None:
        self.reals = Lab("nfproof-").reals
        scenario = Scenario(CONFIG, folder / "chaos.toml")
        full = Prediction(scenario.path, self.reals)
        scenario.remove(self.reals[1])
        without = Prediction(scenario.path, self.reals)
        self.rings = [Ring(full, 0.0, 10.0), Ring(without, 9.9, 20.0), Ring(full, 19.9)]
        self.records: list[dict[str, Any]] = []
        for began, ring in ((1.0, full), (11.0, without), (21.0, full)):
            for port in range(40000, 40060):
                real = ring.real(VIP4, CLIENT4, port)
                self.records.append(
                    {"kind": "kept", "vip": VIP4, "address": CLIENT4, "port": port, "asked": 3, "answered": 3}
                    | {"began": began, "connected": began + 0.1, "last": began + 5}
                    | {"strange": 0, "worst": 0.001, "reals": {real: 3}, "error": None}
                )
        self.events = [Event("wipe", "rules wiped", "rules are put back", 1.0, 0.5, True, "seen")]

    def prove(self) -> Summary:
        return prove_chaos(
            self.records,
            self.events,
            rings=self.rings,
            absences=[Absence("real2", 10.0, 19.9)],
            strategy="dest-id",
            paths=(10, 10),
            retransmitted=0,
            seconds=30.0,
        )

    def first_of(self, real: str, began: float) -> dict[str, Any]:
        return next(r for r in self.records if r["began"] == began and real in r["reals"])


def lose_one(world: World) -> None:
    world.records[5] |= {"answered": 2, "error": "TimeoutError: timed out"}


def move_one(world: World) -> None:
    world.first_of("real1", 1.0)["reals"] = {"real1": 2, "real3": 1}


def answer_by_another(world: World) -> None:
    world.first_of("real1", 21.0)["reals"] = {"real3": 3}


def answer_by_the_removed_one(world: World) -> None:
    world.first_of("real2", 1.0)["last"] = 12.0


def open_by_an_older_ring(world: World) -> None:
    port = world.first_of("real2", 1.0)["port"]
    next(r for r in world.records if r["began"] == 11.0 and r["port"] == port)["reals"] = {"real2": 3}


def miss_an_event(world: World) -> None:
    world.events.append(Event("kill", "daemon killed", "goes on", 2.0, 30.0, False, "not seen"))


def test_what_went_well_is_proven(tmp_path: Path) -> None:
    summary = World(tmp_path).prove()
    assert [check.claim for check in summary.checks if not check.passed] == []
    assert summary.ok
    assert summary.as_json()["events"][0]["name"] == "wipe"


@pytest.mark.parametrize(
    ("damage", "claims"),
    [
        (lose_one, ["every request was answered in time"]),
        (move_one, ["no connection moved from one real to another", "the real is the one computed"]),
        (answer_by_another, ["the real is the one computed"]),
        (answer_by_the_removed_one, ["real2 answered nobody"]),
        (open_by_an_older_ring, ["the real is the one computed", "real2 answered nobody"]),
        (miss_an_event, ["goes on"]),
    ],
)
def test_what_went_wrong_is_found(tmp_path: Path, damage: Callable[[World], None], claims: list[str]) -> None:
    world = World(tmp_path)
    damage(world)
    failed = [check.claim for check in world.prove().checks if not check.passed]
    assert len(failed) == len(claims)
    assert all(said.startswith(claim) for said, claim in zip(failed, claims, strict=True))
