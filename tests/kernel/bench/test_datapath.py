# SPDX-License-Identifier: Apache-2.0
"""The bench: its packets are the flows that they are said to be, and packets that go astray are noticed. No timing."""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nfcore.api.flows import FlowMatch
from nfcore.bench.datapath import BenchError, Subject, measure, prove, rows_of
from nfcore.bench.packet_source import FlowSource
from nfcore.bench.processes import ShowProgress, at_once, in_process, in_processes
from nfcore.bench.traffic import Family, flow_keys, make_services
from nfcore.bench.workload import BenchRequest
from nfcore.errors import HostError
from nfcore.kernel import XdpAction
from nfcore.plugins.katran_accel.benchmark import FLOOD, subjects
from nfcore.plugins.katran_accel.config import VipTable
from nfcore.plugins.katran_accel.layouts import AccelCounter
from tests.isolation import on_one_cpu
from tests.kernel.katran_accel.world import World, open_world

FLOWS = 100


@pytest.fixture(scope="module")
def cpu() -> Iterator[int]:
    with on_one_cpu() as cpu:
        yield cpu


@pytest.fixture(scope="module", params=[4, 6])
def present(request: pytest.FixtureRequest, cpu: int) -> Iterator[list[Subject]]:
    with subjects(BenchRequest(request.param, (cpu,), (FLOWS,), (FLOWS,))) as opened:
        yield opened


def named(present: list[Subject], row: str) -> Subject:
    (subject,) = [subject for subject in present if subject.row == row]
    return subject


@pytest.mark.slow
def test_every_row_is_there_and_says_what_was_counted(present: list[Subject]) -> None:
    rows = {(row.row, row.flows): row for row in rows_of(measure(present, 1))}
    marked, unmarked = [("flow-id", FLOWS), ("dest-id", FLOWS)], [("slow", FLOWS), ("syn-flood", FLOOD[0])]
    floors = [("noop", 1), ("head", FLOWS), ("head", FLOOD[0]), ("metadata", FLOWS)]
    assert sorted(rows) == sorted([*marked, *unmarked, *floors, ("bare-lru", FLOWS)])
    assert {rows[each].fast_share for each in marked} == {1.0}
    assert {rows[each].fast_share for each in unmarked} == {0.0}
    assert rows[("slow", FLOWS)].hit_ratio == 1.0
    assert rows[("syn-flood", FLOOD[0])].hit_ratio == 0.0
    for row in rows.values():
        assert row.family == present[0].source.family
        assert 0 < row.min <= row.ns <= row.max
        assert row.net_ns == row.ns - row.floor_ns
        assert (row.floor_ns > 0) == ((row.row, row.flows) not in floors)
        assert row.rounds == 1


def test_sampled_frames_must_go_to_their_reals(present: list[Subject]) -> None:
    for row in ("slow", "flow-id", "dest-id", "bare-lru", "syn-flood"):
        subject = named(present, row)
        prove(subject, FLOWS, samples=20)
        reals = subject.reals
        assert reals is not None
        shifted = replace(subject, reals=lambda flows, reals=reals: reals(flows + 1))
        with pytest.raises(BenchError, match=rf"^{row}, IPv.*went to another real"):
            prove(shifted, FLOWS, samples=20)


def test_a_verdict_other_than_sent_is_noticed(present: list[Subject]) -> None:
    bare = named(present, "bare-lru")
    with pytest.raises(BenchError, match="ended as XDP_DROP, all should as XDP_TX"):
        prove(replace(bare, source=named(present, "syn-flood").source), FLOWS)


def test_packets_on_the_wrong_path_are_noticed(present: list[Subject]) -> None:
    slow, dest = (replace(named(present, row), floor=None) for row in ("slow", "dest-id"))
    with pytest.raises(BenchError, match=r"^slow, .* took the fast path, none should"):
        measure([replace(slow, source=dest.source, reals=None)], 1)
    with pytest.raises(BenchError, match=r"^dest-id, .* took the fast path, all should"):
        measure([replace(dest, source=slow.source, reals=None)], 1)


def test_unknown_flows_are_noticed(present: list[Subject]) -> None:
    slow = replace(named(present, "slow"), floor=None, flows=(250_000,))
    with pytest.raises(BenchError, match="look-ups found no flow"):
        measure([slow], 1)


def source_of(world: World, family: Family) -> FlowSource:
    """Flows to the world's TCP VIP of this family."""
    vips: list[VipTable] = list(world.balancer.table.vips)
    ends = [(vip.address.network_address, vip.port) for vip in vips if vip.protocol == "tcp"]
    return FlowSource(make_services(end for end in ends if end[0].version == family), family, in_turn=True)


@pytest.mark.parametrize("events", ["ringbuf", "perf"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_burst_is_so_many_new_flows(tmp_path: Path, family: Family, events: str) -> None:
    flows, packets, first = 1000, 4, 65_000
    offload = f'min_packets = {packets}\nevents = "{events}"'
    with open_world(tmp_path, offload=offload) as world, source_of(world, family) as source:
        source.send_to(world.balancer.program)
        assert source.burst(flows, packets - 1, first).verdict is XdpAction.TX
        assert world.count(AccelCounter.SLOW) == flows * (packets - 1)
        assert len(world.balancer.read_events(flows + 1)) == 0
        source.burst(flows, 1, first)
        rows = world.balancer.read_events(flows + 1).rows
        expected = flow_keys(np.arange(first, first + flows), source.services, family)
        assert rows["key"].tobytes() == expected.tobytes()
        assert set(rows["family"]) == {family}
        assert set(rows["packets"]) == {packets}


def test_flows_by_number() -> None:
    services = make_services((ipaddress.ip_address(text), 80) for text in ("198.18.0.1", "198.18.0.2"))
    keys = flow_keys(np.array([0, 65_537]), services, 4)
    texts = [str(FlowMatch.from_key(key, 4)) for key in keys]
    assert texts == ["198.19.0.0:1024 > 198.18.0.1:80/tcp", "198.19.0.1:1025 > 198.18.0.2:80/tcp"]
    assert len(np.unique(flow_keys(np.arange(200_000), services, 4))) == 200_000


def test_a_burst_needs_flows_in_turn(tmp_path: Path) -> None:
    with open_world(tmp_path) as world, source_of(world, 4) as source:
        services = source.services
        with pytest.raises(ValueError, match=r"4,227,858,432"):
            source.burst(1, first=2**32)
    with FlowSource(services, 4) as random, pytest.raises(ValueError, match="in_turn=True"):
        random.burst(1)


def test_twins_send_the_same_flows_each_by_itself(tmp_path: Path) -> None:
    with open_world(tmp_path) as world, source_of(world, 4) as source, source.twin() as twin:
        for each in (source, twin):
            each.send_to(world.balancer.program)
        source.begin(5)
        twin.begin(5)
        assert source.run(3).output == twin.run(3).output
        assert source.run(1).output != twin.run(2).output


def fails() -> None:
    raise HostError("no such thing")


def dies() -> None:
    os._exit(3)


def wrong() -> None:
    raise ValueError("no such value")


def test_processes_hand_back_results_and_errors() -> None:
    mine = os.getpid()
    given = in_processes(os.getpid, 2)
    assert len({mine, *given}) == 3
    with pytest.raises(HostError, match="no such thing"):
        in_processes(fails, 1)
    with pytest.raises(HostError, match="died"):
        in_processes(dies, 1)
    with pytest.raises(HostError, match="ValueError: no such value"):
        in_processes(wrong, 1)


def test_one_process_that_fails_ends_the_others() -> None:
    begin = time.monotonic()
    with pytest.raises(HostError, match="no such thing"):
        at_once([lambda show_progress: time.sleep(60), lambda show_progress: fails()])
    assert time.monotonic() - begin < 50


def test_what_processes_say_is_heard() -> None:
    heard: list[str] = []

    def talks(show_progress: ShowProgress) -> int:
        show_progress("one")
        show_progress("two")
        return 3

    assert in_process(talks, heard.append) == 3
    assert heard == ["one", "two"]
