# SPDX-License-Identifier: Apache-2.0
"""The real program and the real engine, with test runs instead of an interface. To load the program needs root."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from nfcore.api.flows import FlowBatch, FlowMatch
from nfcore.api.rules import Device
from nfcore.config.loader import load_config
from nfcore.daemon.bootstrap import make_context, make_engine, set_up
from nfcore.daemon.chain import Chains
from nfcore.devices.null_backend import NULL_BACKEND, NullBackend
from nfcore.devices.worker import InlineWorker
from nfcore.engine.flow_state import FlowState
from nfcore.errors import ConfigError
from nfcore.hooks.manager import PluginManager
from nfcore.testing import Neighbour, sample_flow, sample_frame

from nfcore_my_name.meter import NAME, Meter

EXAMPLE = Path(__file__).parents[1] / "example.toml"
LOOPBACK = 1
"""The ifindex that packets of a test run have."""
MIN_PACKETS = 8
HTTP = sample_flow(1)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loading a BPF program needs root")


class World:
    """The plugin, set up from the example, and an engine whose NIC accepts every rule.

    `chain`: the functions of the interface; those beside the meter only count packets.
    """

    def __init__(self, stack: ExitStack, *overrides: str, chain: Sequence[str] = (NAME,)) -> None:
        self.plugins = PluginManager()
        config = load_config(EXAMPLE, self.plugins, overrides)
        config = replace(config, interfaces=[config.interfaces[0].model_copy(update={"chain": list(chain)})])
        self.plugins.register(NullBackend(), NULL_BACKEND)
        self.neighbours = {name: Neighbour(name) for name in chain if name != NAME}
        for name, neighbour in self.neighbours.items():
            self.plugins.register(neighbour, name)
        device = Device("eth1", LOOPBACK, (NULL_BACKEND,))
        context = make_context(config, self.plugins, [device], tracing=True)
        chains = stack.enter_context(Chains(context))
        stack.enter_context(set_up(context, self.plugins))
        self.engine = make_engine(context, self.plugins, {LOOPBACK: InlineWorker()})
        self.engine.start()
        chains.link()
        self.program = chains.program(device)
        self.meter = next(function for function in context.nfs if isinstance(function, Meter))

    def send(self, flow: FlowMatch, count: int = 1, mark: int = 0) -> None:
        for _ in range(count):
            run = self.program.test_run(sample_frame(flow), metadata=struct.pack("=I", mark) if mark else b"")
            assert run.verdict.name == "XDP_PASS"

    def counted(self) -> list[list[int]]:
        """(fast, slow) of port 80, then of port 443."""
        counted: list[list[int]] = self.meter.counted().tolist()
        return counted


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


def test_a_flow_with_enough_packets_gets_a_rule_and_is_counted_by_its_mark(world: World) -> None:
    world.send(HTTP, MIN_PACKETS - 1)
    assert world.engine.poll() == 0
    world.send(HTTP)
    assert world.engine.poll() == 1
    (slot,) = world.engine.table.slots_in(FlowState.INSTALLED)
    assert world.engine.table.flow["target"][slot] == HTTP.dport
    world.send(HTTP, 3, mark=int(world.engine.table.mark[slot]))
    assert world.counted() == [[3, MIN_PACKETS], [0, 0]]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_every_kind_of_flow_is_reported(world: World, family: int, protocol: str) -> None:
    flow = sample_flow(7, family, protocol)
    world.send(flow, MIN_PACKETS)
    world.engine.poll()
    (found,) = world.engine.table.batch(world.engine.table.slots_in(FlowState.INSTALLED))
    assert found.match == flow


def test_a_mark_of_another_port_is_ignored(world: World) -> None:
    marks = world.plugins.call_first("allocate_mark", batch=world.meter.targets())[1].tolist()
    assert len(set(marks)) == len(world.meter.ports)
    world.send(HTTP, mark=marks[1])
    world.send(HTTP, mark=9999)
    assert world.counted() == [[0, 2], [0, 0]]


def test_packets_to_other_ports_are_not_counted(world: World) -> None:
    world.send(FlowMatch(HTTP.src, HTTP.dst, HTTP.proto, HTTP.sport, 81), MIN_PACKETS)
    assert world.engine.poll() == 0
    assert world.counted() == [[0, 0], [0, 0]]


def test_the_metrics_tell_what_was_done_with_packets(world: World) -> None:
    world.send(HTTP, 3)
    world.send(FlowMatch(HTTP.src, HTTP.dst, HTTP.proto, HTTP.sport, 81), 2)
    families = {family.name: family for family in world.plugins.call(NAME, "collect_stats")}
    outcomes = families["nfcore_function_packets_total"].everything()
    assert {each.labels["outcome"]: each.value for each in outcomes} == {"counted": 3, "passed_on": 2}


def test_a_restored_flow_is_reported_again(world: World) -> None:
    for _ in range(2):
        world.send(HTTP, MIN_PACKETS)
        batch = world.meter.read_events(100)
        assert [flow.match for flow in batch] == [HTTP]
        world.plugins.call(NAME, "restore_flows", batch=batch)


def test_a_retired_mark_means_nothing(world: World) -> None:
    marks = world.plugins.call_first("allocate_mark", batch=world.meter.targets())[1]
    world.plugins.call(NAME, "retire_marks", nf=world.meter.number, marks=marks)
    world.send(HTTP, mark=int(marks[0]))
    assert world.counted() == [[0, 1], [0, 0]]


@pytest.mark.parametrize("chain", [(NAME, "after"), ("before", NAME, "after"), ("before", NAME)])
def test_it_is_one_of_a_chain(chain: tuple[str, ...]) -> None:
    """Without a mark each function sees the packet; a mark of the meter leads straight to it, and then on."""
    with ExitStack() as stack:
        world = World(stack, chain=chain)
        world.send(HTTP, MIN_PACKETS)
        assert {name: each.seen for name, each in world.neighbours.items()} == dict.fromkeys(
            world.neighbours, MIN_PACKETS
        )
        world.engine.poll()
        (slot,) = world.engine.table.slots_in(FlowState.INSTALLED)
        world.send(HTTP, 3, mark=int(world.engine.table.mark[slot]))
        assert world.counted() == [[3, MIN_PACKETS], [0, 0]]
        expected = {"before": MIN_PACKETS, "after": MIN_PACKETS + 3}
        for name, neighbour in world.neighbours.items():
            assert neighbour.seen == expected[name]


def test_a_flow_that_it_must_see_is_claimed(world: World) -> None:
    flows = FlowBatch.empty(2)
    flows.rows["key"][0] = HTTP.to_key()
    flows.rows["key"][1] = FlowMatch(HTTP.src, HTTP.dst, HTTP.proto, HTTP.sport, 81).to_key()
    assert world.meter.claims(flows).tolist() == [True, False]


def test_marks_of_flows_are_refused() -> None:
    with ExitStack() as stack, pytest.raises(ConfigError, match=r"marking\.strategy: is 'flow-id'"):
        World(stack, "marking.strategy=flow-id")
