# SPDX-License-Identifier: Apache-2.0
"""VLAN tags of flows: their rules match them, and a flow is the same whatever its tags are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from nfcore.api.flows import NO_TAGS, SERVICE_TAG
from nfcore.api.reasons import Reason
from nfcore.engine.flow_state import FlowState

from .world import GRACE, IDLE, LAG, World

QINQ = (SERVICE_TAG | 100, 7)


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    world: World = make("dest-id", nic=4)
    world.nic.capabilities = replace(world.nic.capabilities, vlans=True)
    return world


def report(world: World, port: int, vlans: tuple[int, int]) -> None:
    batch = world.flows(port)
    batch.rows["vlans"] = vlans
    world.nf.reports.append(batch)
    world.engine.poll()


def tags(world: World) -> dict[int, tuple[int, int]]:
    """Tags of the rules on the NIC, by source port."""
    return {rule.match.sport: rule.vlans for rule in world.nic.rules.values()}


def test_a_rule_matches_the_tags_of_its_flow(world: World) -> None:
    world.start()
    for port, vlans in enumerate((NO_TAGS, (100, 0), QINQ), start=1):
        report(world, port, vlans)
    assert tags(world) == {1: NO_TAGS, 2: (100, 0), 3: QINQ}


def test_a_backend_that_matches_no_tags_gets_none(make: Callable[..., World]) -> None:
    world = make("dest-id", nic=4)
    world.start()
    report(world, 1, NO_TAGS)
    report(world, 2, (100, 0))
    assert tags(world) == {1: NO_TAGS}
    assert world.why(2) == Reason.UNSUPPORTED
    assert world.adds_up()


def test_a_waiting_flow_gets_the_rule_for_its_last_tags(world: World) -> None:
    world.nic.size = 0
    world.start()
    report(world, 1, (100, 0))
    report(world, 1, (200, 0))
    assert world.ports(FlowState.WAITING) == [1]
    world.nic.size = 4
    world.pass_time(1)
    assert tags(world) == {1: (200, 0)}


def test_a_flow_with_other_tags_keeps_its_rule_until_that_is_idle(world: World) -> None:
    world.start()
    report(world, 1, (100, 0))
    report(world, 1, (200, 0))
    assert tags(world) == {1: (100, 0)}
    assert len(world.engine.table) == 1
    world.pass_time(IDLE + LAG)
    assert tags(world) == {}
    world.pass_time(GRACE)
    report(world, 1, (200, 0))
    assert tags(world) == {1: (200, 0)}
    assert world.adds_up()


def test_a_rule_with_other_tags_than_its_flow_is_none_of_it(world: World) -> None:
    world.start()
    report(world, 1, (100, 0))
    ((cookie, rule),) = world.nic.rules.items()
    world.nic.rules[cookie] = replace(rule, vlans=(200, 0))
    world.pass_time(5)
    assert world.engine.counters.totals["vanished"] == 1
    world.pass_time(1)
    assert tags(world) == {1: (100, 0)}
