# SPDX-License-Identifier: Apache-2.0
"""The carrier skb-mark on native veth: a socket's SO_MARK stands in for the filter that would set the mark."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import nfcore
from nfcore.config import load_config
from nfcore.engine import Engine
from nfcore.host import PluginHost
from nfcore.kernel import XdpMode, attach_xdp, compile_program, interface_index
from nfcore.null_backend import NULL_BACKEND, NullBackend
from nfcore.plugins.katran_accel.balancer import Balancer
from nfcore.plugins.katran_accel.figures import accel_counters
from nfcore.plugins.katran_accel.layouts import AccelCounter
from nfcore.rules import Device
from nfcore.session import make_context, make_engine, set_up
from nfcore.worker import InlineWorker

from .balancer_world import TWO_FAMILIES, VIPS, tcp
from .network import enter, ip, namespaces

HERE, THERE = f"nftest-skbmark-{os.getpid()}", f"nftest-skbmark2-{os.getpid()}"
PASS = Path(nfcore.__file__).parent / "bpf" / "pass.c"
FRAME = tcp("198.18.1.2", "198.18.10.1")


@dataclass
class Link:
    """net0 ══ eth1 with the balancer on it."""

    engine: Engine
    balancer: Balancer
    network: socket.socket

    def exchange(self, mark: int = 0) -> bytes:
        """Send the frame with a mark on its socket buffer; what the balancer sends back."""
        self.network.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        self.network.send(FRAME)
        while True:
            received = self.network.recv(4096)
            if received.endswith(FRAME[14:]) and len(received) > len(FRAME):
                return received

    def count(self, which: AccelCounter) -> int:
        return int(accel_counters(self.balancer)[which])


@contextmanager
def link(tmp_path: Path, strategy: str, network: str) -> Iterator[Link]:
    path = tmp_path / "nf.toml"
    marking = f'strategy = "{strategy}"\ncarrier = "skb-mark"'
    path.write_text(VIPS.format(marking=marking, offload="min_packets = 2", katran="", lru_size=4096) + TWO_FAMILIES)
    host = PluginHost()
    config = load_config(path, host, [f"nf.socket={tmp_path / 'nf.sock'}"])
    host.register(NullBackend(), NULL_BACKEND)
    ip(HERE, "link", "add", "eth1", "type", "veth", "peer", "net0")
    if network != HERE:
        ip(HERE, "link", "set", "net0", "netns", network)
    ip(HERE, "link", "set", "eth1", "up")
    ip(network, "link", "set", "net0", "up")
    with enter(network):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sender.bind(("net0", 3))
        sender.settimeout(10)
        # GRO would do for redirected frames, but what XDP_TX sends waits for a program at the other end.
        passing = compile_program(PASS, "pass", defines={}, maps={})
        attach_xdp(interface_index("net0"), passing, mode=XdpMode.NATIVE)
        passing.close()
    with enter(HERE), sender:
        device = Device("eth1", interface_index("eth1"), (NULL_BACKEND,))
        context = make_context(config, host, [device])
        with context.claims, set_up(context, host):
            engine = make_engine(context, host, {device.ifindex: InlineWorker()})
            engine.start()
            (balancer,) = context.nfs
            assert isinstance(balancer, Balancer)
            balancer.attach(device)
            yield Link(engine, balancer, sender)


@pytest.fixture
def two_namespaces() -> Iterator[None]:
    with namespaces(HERE, THERE):
        yield


@pytest.mark.usefixtures("two_namespaces")
@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_the_mark_of_the_socket_buffer_takes_the_fast_path(tmp_path: Path, strategy: str) -> None:
    with link(tmp_path, strategy, HERE) as here:
        plain = [here.exchange() for _ in range(2)]
        assert here.engine.poll() == 1
        mark = int(here.engine.table.mark[0])
        assert mark
        marked = [here.exchange(mark) for _ in range(3)]
        assert set(plain) == set(marked)
        assert here.count(AccelCounter.FAST) == 3
        assert here.exchange(60_001) in plain
        assert (here.count(AccelCounter.FAST), here.count(AccelCounter.UNKNOWN_MARK)) == (3, 1)


@pytest.mark.usefixtures("two_namespaces")
def test_a_mark_does_not_cross_into_another_namespace(tmp_path: Path) -> None:
    with link(tmp_path, "dest-id", THERE) as there:
        assert there.exchange() == there.exchange(1)
        assert there.count(AccelCounter.SLOW) == 2
