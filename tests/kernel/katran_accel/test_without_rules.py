# SPDX-License-Identifier: Apache-2.0
"""Packets of flows with rules that come without their marks go to the same real, whatever has been forgotten."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nfcore.api.flows import FlowBatch
from nfcore.api.reasons import Reason
from nfcore.engine.flow_state import FlowState
from nfcore.engine.state import ACTIVE
from nfcore.plugins.katran_accel.layouts import AccelCounter

from .world import World, forget_connections, open_world, sent_to, set_ring, tcp, udp

STRATEGIES = pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
FRAMES = {  # of one flow to each VIP, in the order of the VIPs
    "tcp": tcp("198.18.1.2", "198.18.10.1"),
    "udp": udp("198.18.1.2", "198.18.10.2"),
    "tcp6": tcp("2001:db8:1::2", "2001:db8:10::1"),
    "udp6": udp("2001:db8:1::2", "2001:db8:10::2"),
}
FLOW = FRAMES["tcp"]
KINDS = pytest.mark.parametrize("kind", FRAMES)
SYN = tcp("198.18.1.2", "198.18.10.1", flags="S")


def turn_ring(world: World, kind: str = "tcp") -> tuple[str, str]:
    """Let the ring give every new flow to another real than that of the kind's frame. Both."""
    now, number = sent_to(world.send(FRAMES[kind])), list(FRAMES).index(kind)
    reals = [real.address for real in world.balancer.inventory.vips[number].reals]
    other = next(real for real in reals if str(real) != now)
    set_ring(world, number, world.balancer.inventory.reals[other])
    return now, str(other)


def age(world: World) -> None:
    """Let every entry of the connection table be 31 s old."""
    for table in world.balancer.maps.lrus.values():
        keys, values = table.lookup_all()
        values["atime"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 31 * 10**9
        table.update_batch(keys, values)


def point_to(world: World, real: str) -> None:
    """Let every connection be one to another real."""
    number = next(number for address, number in world.balancer.inventory.reals.items() if str(address) == real)
    for table in world.balancer.maps.lrus.values():
        keys, values = table.lookup_all()
        values["pos"] = number
        table.update_batch(keys, values)


def routes(world: World) -> int:
    return len(world.balancer.maps["hw_accel_routes"].lookup_all()[0])


def end_all(world: World) -> None:
    """Until no flow has a rule, or waits for one, and no grace period runs."""
    deadline = time.monotonic() + 10
    while world.engine.table.count(*ACTIVE):
        world.engine.tick()
        assert time.monotonic() < deadline
        time.sleep(0.01)


FORGETTING: dict[str, Callable[[World], None]] = {"aged": age, "evicted": forget_connections}


@STRATEGIES
@KINDS
@pytest.mark.parametrize("way", FORGETTING)
def test_a_flow_with_a_rule_goes_to_its_real_without_its_mark(
    tmp_path: Path, strategy: str, kind: str, way: str
) -> None:
    frame = FRAMES[kind]
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(frame)
        real, other = turn_ring(world, kind)
        FORGETTING[way](world)
        for _ in range(40):
            assert sent_to(world.send(frame)) == real
            world.engine.poll()
        assert world.engine.table.count(FlowState.INSTALLED) == 1
        assert world.mark_of(frame) == mark
        # The ring would have chosen otherwise.
        assert sent_to(world.send(frame.replace(b"\x9c\x40", b"\x9c\x41", 1))) == other


@STRATEGIES
def test_also_on_a_cpu_that_has_never_seen_it(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        world.offload(FLOW)
        real, _ = turn_ring(world)
        others = os.sched_getaffinity(os.getppid()) - {world.cpu}
        if not others:
            pytest.skip("one CPU")
        os.sched_setaffinity(0, {min(others)})
        try:
            assert sent_to(world.send(FLOW)) == real
        finally:
            os.sched_setaffinity(0, {world.cpu})


@STRATEGIES
def test_a_report_alone_moves_no_flow(tmp_path: Path, strategy: str) -> None:
    """A connection table may have the flow with another real: from a CPU on which it was before its route was there."""
    with open_world(tmp_path, strategy=strategy) as world:
        world.offload(FLOW)
        real, other = turn_ring(world)
        point_to(world, other)
        assert sent_to(world.send(FLOW)) == other
        world.engine.poll()
        assert world.engine.table.count(FlowState.INSTALLED) == 1
        assert sent_to(world.send(FLOW)) == real


@STRATEGIES
@pytest.mark.parametrize("wiped", [False, True])
def test_a_syn_without_a_mark_moves_the_flow(tmp_path: Path, strategy: str, wiped: bool) -> None:
    """Its first report tells, or already the connection table when the daemon finds that the rule has vanished."""
    with open_world(tmp_path, strategy=strategy) as world:
        world.offload(FLOW)
        _, other = turn_ring(world)
        assert sent_to(world.send(SYN)) == other
        if wiped:
            (device,) = world.engine.state.devices.values()
            installed = world.engine.table.slots_in(FlowState.INSTALLED)
            world.engine._reconciler._vanished(device, installed, time.monotonic())
        assert sent_to(world.send(FLOW)) == other
        world.engine.poll()
        table = world.engine.table
        assert table.count(FlowState.INSTALLED) == 0
        assert Reason.MOVED in table.reason[table.slots_in(FlowState.DRAINING, FlowState.REFUSED)].tolist()
        end_all(world)
        for _ in range(8):
            world.send(FLOW)
        assert sent_to(world.send(FLOW, world.offload(FLOW))) == other
        assert routes(world) == 1


@STRATEGIES
def test_a_lost_report_of_a_syn_is_found_out_by_the_next(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOW)
        _, other = turn_ring(world)
        world.send(SYN, mark)
        assert len(world.balancer.read_events(10)) == 1
        assert routes(world) == 0
        forget_connections(world)
        assert sent_to(world.send(FLOW)) == other
        world.engine.poll()
        assert world.engine.table.count(FlowState.INSTALLED) == 0
        assert sent_to(world.send(FLOW)) == other


@STRATEGIES
def test_a_forged_mark_of_a_moved_flow_voids_no_other_flows(tmp_path: Path, strategy: str) -> None:
    neighbour = tcp("198.18.1.3", "198.18.10.1")
    with open_world(tmp_path, strategy=strategy) as world:
        world.offload(FLOW)
        mark = world.offload(neighbour)
        turn_ring(world)
        world.send(SYN, mark)
        before = world.count(AccelCounter.FAST)
        world.send(neighbour, mark)
        assert world.count(AccelCounter.FAST) == before + 1


@STRATEGIES
def test_no_route_is_left_when_the_rules_are_gone(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        for sport in range(40_000, 40_030):
            world.send(tcp("198.18.1.2", "198.18.10.1", sport=sport))
        world.engine.poll()
        assert routes(world) == 30
        for sport in range(40_000, 40_010):
            world.send(tcp("198.18.1.2", "198.18.10.1", sport=sport, flags="F"), 1)
        world.engine.poll()
        world.engine.switch(on=False)
        end_all(world)
        assert routes(world) == 0


@STRATEGIES
def test_a_flow_without_a_place_among_the_routes_gets_no_rule(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        held = world.balancer.maps["hw_accel_routes"]
        keys = np.zeros(held.spec.max_entries, dtype=held.spec.key)
        keys["src"].view("<u4")[:, 0] = np.arange(len(keys))
        held.update_batch(keys, np.zeros(len(keys), dtype=held.spec.value))
        world.send(FLOW)
        world.engine.poll()
        table = world.engine.table
        assert table.reason[table.slots_in(FlowState.REFUSED)].tolist() == [Reason.NOT_PUBLISHED]
        batch = FlowBatch.empty(1)
        assert world.balancer.publish(batch, np.zeros(1, dtype=np.uint32)).tolist() == [False]
