# SPDX-License-Identifier: Apache-2.0
"""The carrier rx-queue on native veth with several queues: XPS stands in for the NIC that steers flows to them."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import nfcore
from nfcore.carriers import Carrier, examine_carrier
from nfcore.config import load_config
from nfcore.engine import Engine
from nfcore.errors import HostError
from nfcore.ethernet import queue_facts
from nfcore.findings import Status
from nfcore.host import PluginHost
from nfcore.kernel import XdpMode, attach_xdp, compile_program, interface_index
from nfcore.null_backend import NULL_BACKEND, NullBackend
from nfcore.plugins.katran_accel.balancer import Balancer
from nfcore.plugins.katran_accel.figures import accel_counters
from nfcore.plugins.katran_accel.layouts import AccelCounter
from nfcore.rules import Device
from nfcore.session import make_context, make_engine, set_up
from nfcore.worker import InlineWorker

from .balancer_world import VIPS, open_world, tcp
from .network import enter, ip, namespaces

HERE = f"nftest-rxqueue-{os.getpid()}"
PASS = Path(nfcore.__file__).parent / "bpf" / "pass.c"
QUEUES = 8
FRAME = tcp("198.18.1.2", "198.18.10.1")
ALL_CPUS = f"{(1 << min(os.cpu_count() or 1, 32)) - 1:x}"
MARKING = 'strategy = "{}"\ncarrier = "rx-queue"\nwidth = 3\npool_chunk = 2'
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


@dataclass
class Link:
    """net0 ══ eth1 with the balancer on it, 8 queues each way."""

    engine: Engine
    balancer: Balancer
    network: socket.socket
    device: Device

    def exchange(self, queue: int = 0) -> bytes:
        """Let the frame arrive on a queue; what the balancer sends back."""
        for number in range(QUEUES):
            cpus = ALL_CPUS if number == queue else "0"
            write = f"echo {cpus} > /sys/class/net/net0/queues/tx-{number}/xps_cpus"
            subprocess.run(["ip", "netns", "exec", HERE, "sh", "-c", write], check=True)
        self.network.send(FRAME)
        while True:
            received = self.network.recv(4096)
            if received.endswith(FRAME[14:]) and len(received) > len(FRAME):
                return received

    def count(self, which: AccelCounter) -> int:
        return int(accel_counters(self.balancer)[which])


@contextmanager
def link(tmp_path: Path, strategy: str) -> Iterator[Link]:
    path = tmp_path / "nf.toml"
    marking = MARKING.format(strategy)
    path.write_text(VIPS.format(marking=marking, offload=OFFLOAD, katran="", lru_size=4096) + FOUR_TARGETS)
    host = PluginHost()
    config = load_config(path, host, [f"nf.socket={tmp_path / 'nf.sock'}"])
    host.register(NullBackend(), NULL_BACKEND)
    queues = ["numrxqueues", str(QUEUES), "numtxqueues", str(QUEUES)]
    ip(HERE, "link", "add", "name", "eth1", *queues, "type", "veth", "peer", "name", "net0", *queues)
    for name in ("eth1", "net0"):
        ip(HERE, "link", "set", name, "up")
    with enter(HERE):
        network = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        network.bind(("net0", 3))
        network.settimeout(10)
        passing = compile_program(PASS, "pass", defines={}, maps={})
        attach_xdp(interface_index("net0"), passing, mode=XdpMode.NATIVE)
        passing.close()
        device = Device("eth1", interface_index("eth1"), (NULL_BACKEND,))
        context = make_context(config, host, [device])
        with network, context.claims, set_up(context, host):
            engine = make_engine(context, host, {device.ifindex: InlineWorker()})
            engine.start()
            (balancer,) = context.nfs
            assert isinstance(balancer, Balancer)
            balancer.attach(device)
            yield Link(engine, balancer, network, device)


@pytest.fixture
def namespace() -> Iterator[None]:
    with namespaces(HERE):
        yield


@pytest.mark.usefixtures("namespace", "_one_cpu")
@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_the_queue_takes_the_fast_path(tmp_path: Path, strategy: str) -> None:
    with link(tmp_path, strategy) as here:
        plain = [here.exchange() for _ in range(2)]
        assert here.engine.poll() == 1
        mark = int(here.engine.table.mark[0])
        assert 0 < mark < QUEUES
        assert here.count(AccelCounter.FAST) == 0
        marked = [here.exchange(mark) for _ in range(3)]
        assert set(plain) == set(marked)
        assert here.count(AccelCounter.FAST) == 3
        assert here.exchange(UNUSED) in plain
        assert (here.count(AccelCounter.FAST), here.count(AccelCounter.UNKNOWN_MARK)) == (3, 1)


@pytest.mark.usefixtures("namespace", "_one_cpu")
def test_the_checks_stand_between_a_wrong_queue_and_the_packet(tmp_path: Path) -> None:
    with link(tmp_path, "dest-id") as here:
        plain = here.exchange()
        assert here.exchange(OTHER_VIP) == plain
        assert (here.count(AccelCounter.FAST), here.count(AccelCounter.OTHER_FLOW)) == (0, 1)
        # Within its VIP the queue chooses: that is why nothing but rules may put packets there.
        outer_destinations = {here.exchange(queue)[30:34] for queue in (1, 2, 3)}
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
