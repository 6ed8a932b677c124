# SPDX-License-Identifier: Apache-2.0
"""The carrier rx-queue on native veth with several queues: XPS stands in for the NIC that steers flows to them."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from nfcore.api.carriers import Carrier, examine_carrier
from nfcore.api.findings import Status
from nfcore.errors import HostError
from nfcore.kernel.ethtool import queue_facts
from nfcore.plugins.katran_accel.layouts import AccelCounter
from tests.isolation import own_cpu
from tests.kernel.katran_accel.world import balancer_toml, open_world, tcp
from tests.kernel.network import namespaces

from .veth_link import Link, choose_queue, open_link

HERE = f"nftest-rxqueue-{os.getpid()}"
QUEUES = 8
FRAME = tcp("198.18.1.2", "198.18.10.1")
MARKING = 'strategy = "{}"\ncarrier = "rx-queue"\nwidth = 3\npool_chunk = 4'
OFFLOAD = "min_packets = 2\nmax_rules = 7"
FOUR_TARGETS = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11" }, { address = "198.18.20.12" }, { address = "198.18.20.13" }]
[[katran_accel.vips]]
address = "198.18.10.2"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.14" }]
"""
OTHER_VIP, UNUSED = 4, 7
"""Marks, with dest-id: targets are numbered in the configuration's order, from 1."""


def link(tmp_path: Path, strategy: str, before: Sequence[str] = ()) -> AbstractContextManager[Link]:
    path = tmp_path / "nf.toml"
    marking = MARKING.format(strategy)
    # With few marks none may lie in stock for a CPU that no frame comes to.
    katran = f"forwarding_cpus = [{own_cpu()}]"
    path.write_text(balancer_toml(path.parent, FOUR_TARGETS, marking, OFFLOAD, katran))
    return open_link(path, choose_queue(HERE, QUEUES), HERE, HERE, queues=QUEUES, before=before)


@pytest.fixture
def namespace() -> Iterator[None]:
    with namespaces(HERE):
        yield


@pytest.mark.usefixtures("namespace", "_one_cpu")
@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_the_queue_takes_the_fast_path(tmp_path: Path, strategy: str) -> None:
    with link(tmp_path, strategy) as here:
        plain = [here.exchange(FRAME) for _ in range(2)]
        assert here.engine.poll() == 1
        mark = int(here.engine.table.mark[0])
        assert 0 < mark < QUEUES
        assert here.count(AccelCounter.FAST) == 0
        marked = [here.exchange(FRAME, mark) for _ in range(3)]
        assert set(plain) == set(marked)
        assert here.count(AccelCounter.FAST) == 3
        assert here.exchange(FRAME, UNUSED) in plain
        assert (here.count(AccelCounter.FAST), here.count(AccelCounter.UNKNOWN_MARK)) == (3, 1)


@pytest.mark.usefixtures("namespace", "_one_cpu")
def test_the_checks_stand_between_a_wrong_queue_and_the_packet(tmp_path: Path) -> None:
    with link(tmp_path, "dest-id") as here:
        plain = here.exchange(FRAME)
        assert here.exchange(FRAME, OTHER_VIP) == plain
        assert (here.count(AccelCounter.FAST), here.count(AccelCounter.OTHER_FLOW)) == (0, 1)
        # Within its VIP the queue chooses: that is why nothing but rules may put packets there.
        outer_destinations = {here.exchange(FRAME, queue)[30:34] for queue in (1, 2, 3)}
        assert outer_destinations == {socket.inet_aton(f"198.18.20.{last}") for last in (11, 12, 13)}
        assert here.count(AccelCounter.FAST) == 3


@pytest.mark.usefixtures("namespace", "_one_cpu")
def test_the_kernel_tells_the_program_its_queue(tmp_path: Path) -> None:
    """The same by a test run, with the queues that the device really has."""
    with link(tmp_path, "dest-id") as here:
        program, ifindex = here.balancer.program, here.device.ifindex
        fast = [program.test_run(FRAME, ifindex=ifindex, rx_queue_index=queue).output for queue in (1, 2, 3)]
        assert len(set(fast)) == 3
        assert here.count(AccelCounter.FAST) == 3
        program.test_run(FRAME, ifindex=ifindex, rx_queue_index=0)
        assert (here.count(AccelCounter.FAST), here.count(AccelCounter.SLOW)) == (3, 1)
        # Metadata is no carrier here.
        program.test_run(FRAME, metadata=struct.pack("=I", 1), ifindex=ifindex)
        assert here.count(AccelCounter.FAST) == 3
        with pytest.raises(HostError, match="receive queue"):
            program.test_run(FRAME, ifindex=ifindex, rx_queue_index=QUEUES)


@pytest.mark.usefixtures("namespace")
def test_a_device_that_does_not_tell_how_it_spreads_packets_is_warned_about(tmp_path: Path) -> None:
    with link(tmp_path, "dest-id") as here:
        facts = queue_facts("eth1")
        assert (facts.receive_queues, facts.rss) == (QUEUES, None)
        finding = examine_carrier(Carrier.RX_QUEUE, here.device)
        assert finding is not None and finding.status is Status.WARNING
        assert "queue 0" in finding.found


def test_a_traced_packet_carries_its_mark_in_metadata(tmp_path: Path) -> None:
    with open_world(tmp_path, vips=FOUR_TARGETS, marking='carrier = "rx-queue"\nwidth = 3') as world:
        assert world.send(FRAME).verdict.name == "XDP_TX"
        world.send(FRAME, mark=1)
        assert (world.count(AccelCounter.SLOW), world.count(AccelCounter.FAST)) == (1, 1)


@pytest.mark.usefixtures("namespace", "_one_cpu")
def test_in_a_chain_the_queue_leads_straight_to_the_owner_of_its_mark(tmp_path: Path) -> None:
    with link(tmp_path, "dest-id", ["one"]) as here:
        plain = [here.exchange(FRAME) for _ in range(2)]
        assert here.engine.poll() == 1
        mark = int(here.engine.table.mark[0])
        for turn in range(1, 50):
            before = here.neighbours["one"].seen
            assert here.exchange(FRAME, mark) in plain
            assert here.count(AccelCounter.FAST) == turn
            # The link has frames of its own now and then; the marked one would be seen each time.
            if here.neighbours["one"].seen == before:
                break
        else:
            raise AssertionError("the first function has seen each marked packet")
