# SPDX-License-Identifier: Apache-2.0
"""A balancer on the bench: program, maps, hooks and engine as in the daemon, frames by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from nfcore.api.context import Context
from nfcore.api.flows import PROTOCOL_NUMBERS, FlowMatch
from nfcore.api.rules import Device
from nfcore.bench.testbed import config_text
from nfcore.config.loader import load_config
from nfcore.daemon.bootstrap import make_context, make_engine, set_up
from nfcore.devices.null_backend import NULL_BACKEND, NullBackend
from nfcore.devices.worker import InlineWorker
from nfcore.engine.engine import Engine
from nfcore.hooks.manager import PluginManager
from nfcore.kernel import TestRun
from nfcore.plugins.katran_accel.balancer import Balancer
from nfcore.plugins.katran_accel.hashing import ring_slot
from nfcore.plugins.katran_accel.layouts import AccelCounter
from nfcore.plugins.katran_accel.metrics import accel_counters
from tests.isolation import on_one_cpu

GATEWAY = "02:00:5e:00:00:fe"
NIC = "02:00:5e:00:00:01"
CLIENT = "02:00:5e:00:00:02"

TWO_FAMILIES = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11" }, { address = "198.18.20.12" }, { address = "198.18.20.13" }]
[[katran_accel.vips]]
address = "198.18.10.2"
port = 53
protocol = "udp"
reals = [{ address = "198.18.20.11" }, { address = "198.18.20.14" }]
[[katran_accel.vips]]
address = "2001:db8:10::1"
port = 80
protocol = "tcp"
reals = [{ address = "2001:db8:20::11" }, { address = "2001:db8:20::12" }]
[[katran_accel.vips]]
address = "2001:db8:10::2"
port = 53
protocol = "udp"
reals = [{ address = "2001:db8:20::11" }, { address = "2001:db8:20::13" }]
"""


def balancer_toml(
    folder: Path,
    vips: str,
    marking: str,
    offload: str = "",
    katran: str = "",
    lru_size: int = 4096,
    gateway: str = GATEWAY,
) -> str:
    """The TOML of a balancer without a backend; all but `folder` is TOML of the tables that it is named after."""
    table = f'[katran_accel]\ngateway_mac = "{gateway}"\nlru_size = {lru_size}\n{katran}\n{vips}'
    return config_text(folder, "katran_accel", "none", table, marking=marking, offload=offload)


@dataclass
class World:
    """What a test needs of it."""

    context: Context
    engine: Engine
    balancer: Balancer
    cpu: int

    def send(self, frame: bytes, mark: int = 0) -> TestRun:
        """Run one frame, with the mark in its metadata unless it is 0."""
        return self.balancer.program.test_run(frame, metadata=struct.pack("=I", mark) if mark else b"")

    def offload(self, frame: bytes) -> int:
        """Send a flow's frame until it is reported, and give its mark."""
        for _ in range(self.context.config.offload.min_packets):
            self.send(frame)
        self.engine.poll()
        return self.mark_of(frame)

    def mark_of(self, frame: bytes) -> int:
        """The mark of a frame's flow; LookupError when it is not tracked."""
        packet = Ether(frame)
        ip, layer4 = packet.payload, packet.payload.payload
        match = FlowMatch(
            ipaddress.ip_address(ip.src),
            ipaddress.ip_address(ip.dst),
            PROTOCOL_NUMBERS[layer4.name.lower()],
            layer4.sport,
            layer4.dport,
        )
        table = self.engine.table
        found = np.flatnonzero((table.mark != 0) & (table.flow["key"] == match.to_key()))
        if len(found) != 1:
            raise LookupError(f"{match} is tracked {len(found)} times")
        return int(table.mark[found[0]])

    def count(self, which: AccelCounter) -> int:
        """One of `hw_accel_stats`."""
        return int(accel_counters(self.balancer)[which])

    def ring_real(self, vip: int, src: str, sport: int, dport: int) -> str:
        """The real that ring and hash give, computed without the kernel."""
        number = self.balancer.inventory.ring(vip)[ring_slot(ipaddress.ip_address(src), sport, dport)]
        return str(self.balancer.inventory.real_name(int(number)))


@contextmanager
def open_world(
    tmp_path: Path,
    *,
    vips: str = TWO_FAMILIES,
    strategy: str = "dest-id",
    marking: str = "",
    offload: str = "min_packets = 1",
    katran: str = "",
    backend: object | None = None,
    lru_size: int = 4096,
    gateway: str = GATEWAY,
) -> Iterator[World]:
    """Open a world; this thread stays on one CPU meanwhile."""
    path = tmp_path / "world.toml"
    marking = f'strategy = "{strategy}"\n{marking}'
    path.write_text(balancer_toml(tmp_path, vips, marking, offload, katran, lru_size, gateway))
    plugins = PluginManager()
    config = load_config(path, plugins)
    plugins.register(NullBackend() if backend is None else backend, NULL_BACKEND)
    context = make_context(config, plugins, [Device("bench", 1, (NULL_BACKEND,))], tracing=True)
    with on_one_cpu() as cpu, set_up(context, plugins):
        engine = make_engine(context, plugins, {1: InlineWorker()})
        engine.start()
        (balancer,) = context.nfs
        assert isinstance(balancer, Balancer)
        yield World(context, engine, balancer, cpu)


def tcp(src: str, dst: str, sport: int = 40000, dport: int = 80, flags: str = "A", size: int = 20) -> bytes:
    """A TCP frame with `size` bytes of payload."""
    return _frame(src, dst, TCP(sport=sport, dport=dport, flags=flags), size)


def udp(src: str, dst: str, sport: int = 40000, dport: int = 53, size: int = 20) -> bytes:
    """A UDP frame with `size` bytes of payload."""
    return _frame(src, dst, UDP(sport=sport, dport=dport), size)


def _frame(src: str, dst: str, layer4: TCP | UDP, size: int) -> bytes:
    ip = IPv6(src=src, dst=dst) if ":" in dst else IP(src=src, dst=dst)
    return bytes(Ether(src=CLIENT, dst=NIC) / ip / layer4 / Raw(b"x" * size))


def outer(run: TestRun) -> IP | IPv6:
    """The outer IP header of a frame that was sent, after the Ethernet header was checked."""
    assert run.verdict.name == "XDP_TX"
    frame = Ether(run.output)
    assert (frame.dst, frame.src) == (GATEWAY, NIC)
    return frame.payload


def sent_to(run: TestRun) -> str:
    """The real that a frame was sent to."""
    return str(ipaddress.ip_address(outer(run).dst))


def set_ring(world: World, vip: int, real: int) -> None:
    """Let every slot of a VIP's ring lead to one real."""
    world.balancer.maps["ch_rings"].write_array(vip * 65_537, np.full(65_537, real, dtype="<u4"))


def forget_connections(world: World) -> None:
    """Empty the connection tables, as if other flows had pushed everything out."""
    for lru in [*world.balancer.maps.lrus.values(), world.balancer.maps["fallback_cache"]]:
        lru.delete_batch(lru.lookup_all()[0])
