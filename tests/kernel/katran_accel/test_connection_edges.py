# SPDX-License-Identifier: Apache-2.0
"""SYN, FIN and RST of flows that have a rule: they go the slow way, to the right real, and end the rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nfcore.api.reasons import Reason
from nfcore.engine.flow_state import FlowState
from nfcore.plugins.katran_accel.layouts import AccelCounter

from .world import World, forget_connections, open_world, sent_to, set_ring, tcp

FLOW = tcp("198.18.1.2", "198.18.10.1")
STRATEGIES = pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])


def edge(flags: str) -> bytes:
    return tcp("198.18.1.2", "198.18.10.1", flags=flags)


def move_ring(world: World) -> str:
    """Let the ring give every new flow of the first VIP to another real than FLOW's; which."""
    now = sent_to(world.send(FLOW))
    number, name = next(
        (number, str(address))
        for address, number in world.balancer.inventory.reals.items()
        if str(address) != now and number <= 3
    )
    set_ring(world, 0, number)
    return name


def reasons(world: World) -> list[int]:
    table = world.engine.table
    return table.reason[table.slots_in(FlowState.DRAINING, FlowState.REFUSED)].tolist()


@STRATEGIES
@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_the_end_of_a_marked_connection_ends_its_rule(tmp_path: Path, strategy: str, flags: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOW)
        real = sent_to(world.send(FLOW, mark))
        assert sent_to(world.send(edge(flags), mark)) == real
        assert world.count(AccelCounter.INELIGIBLE) == 1
        world.engine.poll()
        assert reasons(world) == [Reason.ENDED]
        assert world.engine.table.count(FlowState.INSTALLED) == 0
        assert sent_to(world.send(FLOW)) == real


@STRATEGIES
@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_a_connection_that_ends_before_it_has_a_rule_is_closed(tmp_path: Path, strategy: str, flags: str) -> None:
    """Its packets have no mark; most connections are so short."""
    with open_world(tmp_path, strategy=strategy) as world:
        for _ in range(20):
            world.send(FLOW)
        real = sent_to(world.send(edge(flags)))
        world.engine.poll()
        table = world.engine.table
        assert (table.count(FlowState.ENDED), table.count(FlowState.INSTALLED)) == (1, 0)
        assert sent_to(world.send(FLOW)) == real
        world.send(tcp("198.18.1.3", "198.18.10.1", flags=flags))
        assert world.engine.poll() == 0  # nobody has heard of that connection


@STRATEGIES
def test_the_last_packets_of_a_connection_do_not_report_it(tmp_path: Path, strategy: str) -> None:
    """One more would have: the acknowledgements after a FIN."""
    with open_world(tmp_path, strategy=strategy, offload="min_packets = 3") as world:
        for _ in range(2):
            world.send(FLOW)
        world.send(edge("FA"))
        for _ in range(2):
            world.send(FLOW)
        assert world.engine.poll() == 0
        for _ in range(60):
            world.send(FLOW)
        assert world.engine.poll() >= 1  # it goes on


@STRATEGIES
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_an_end_that_is_repeated_is_told_once(tmp_path: Path, strategy: str, flags: str, marked: bool) -> None:
    """A client that repeats it would fill the event buffer, and the reports of others would be lost."""
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOW)
        for _ in range(20):
            world.send(FLOW)
        before = world.count(AccelCounter.REPORTED)
        for _ in range(50):
            world.send(edge(flags), mark if marked else 0)
        assert world.count(AccelCounter.REPORTED) - before == 1
        world.engine.poll()
        assert world.engine.table.count(FlowState.INSTALLED) == 0


def lose_real(world: World) -> None:
    """Let the real of FLOW be gone, and the ring lead to another, as between two steps of a reload."""
    gone = sent_to(world.send(FLOW))
    move_ring(world)
    number = next(number for address, number in world.balancer.inventory.reals.items() if str(address) == gone)
    definition = world.balancer.maps["reals"].lookup(number)
    definition["flags"] |= np.uint8(1 << 7)
    world.balancer.maps["reals"].update(number, definition)


@STRATEGIES
def test_a_connection_that_closes_when_its_real_is_gone_is_closing_in_its_new_entry(
    tmp_path: Path, strategy: str
) -> None:
    with open_world(tmp_path, strategy=strategy, offload="min_packets = 3") as world:
        for _ in range(4):
            world.send(FLOW)
        lose_real(world)
        before = world.count(AccelCounter.REPORTED)
        assert before == 1
        for _ in range(5):
            world.send(edge("FA"))
        assert world.count(AccelCounter.REPORTED) - before == 1  # its rule may be on its way to the NIC
        for _ in range(5):
            world.send(FLOW)
        assert world.count(AccelCounter.REPORTED) - before == 1
        assert world.count(AccelCounter.REAL_GONE) == 1


@STRATEGIES
def test_a_reset_whose_real_is_gone_is_told_once(tmp_path: Path, strategy: str) -> None:
    """It makes no new entry, so the old one stays."""
    with open_world(tmp_path, strategy=strategy) as world:
        world.send(FLOW)
        lose_real(world)
        before = world.count(AccelCounter.REPORTED)
        for _ in range(50):
            world.send(edge("R"))
        assert world.count(AccelCounter.REPORTED) - before == 1


@STRATEGIES
@pytest.mark.parametrize("flags", ["FA", "R"])
def test_the_end_goes_where_the_connection_went(tmp_path: Path, strategy: str, flags: str) -> None:
    """Although the ring has changed and the connection table has lost the flow, of which it saw nothing for long."""
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOW)
        real = sent_to(world.send(FLOW, mark))
        other = move_ring(world)
        forget_connections(world)
        assert sent_to(world.send(edge(flags), mark)) == real
        assert sent_to(world.send(FLOW)) == real
        assert sent_to(world.send(tcp("198.18.1.3", "198.18.10.1", flags=flags))) == other


@STRATEGIES
def test_a_new_connection_with_the_same_addresses_ends_the_old_ones_rule(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOW)
        other = move_ring(world)
        assert sent_to(world.send(edge("S"), mark)) == other
        world.engine.poll()
        assert reasons(world) == [Reason.MOVED]
        assert sent_to(world.send(FLOW)) == other


def test_flow_id_forgets_the_old_connection_with_the_first_packet_of_the_new(tmp_path: Path) -> None:
    with open_world(tmp_path, strategy="flow-id") as world:
        mark = world.offload(FLOW)
        other = move_ring(world)
        assert sent_to(world.send(edge("S"), mark)) == other
        # Nobody in user space has heard of it yet, and the NIC goes on marking.
        assert sent_to(world.send(FLOW, mark)) == other


@STRATEGIES
def test_a_syn_to_the_same_real_leaves_the_rule_alone(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOW)
        real = sent_to(world.send(FLOW, mark))
        assert sent_to(world.send(edge("S"), mark)) == real
        world.engine.poll()
        assert world.engine.table.count(FlowState.INSTALLED) == 1


@STRATEGIES
def test_edges_without_a_true_mark_are_no_business_of_the_engine(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOW)
        for flags in ("S", "FA", "R"):
            world.send(edge(flags))
            world.send(edge(flags), mark + 1000)
            world.send(tcp("2001:db8:1::2", "2001:db8:10::1", flags=flags), mark)
        before = world.count(AccelCounter.REPORTED)
        world.engine.poll()
        assert world.count(AccelCounter.REPORTED) == before == 1
        assert world.engine.table.count(FlowState.INSTALLED) == 1
