# SPDX-License-Identifier: Apache-2.0
"""A balancer on native veth without a NIC in front: whatever carries marks there, a test sets on frames by hand."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nfcore.api.config import ConfigTable
from nfcore.api.rules import Device
from nfcore.bench.testbed import NIC_MAC
from nfcore.config.loader import load_config
from nfcore.daemon.attachment import Attachments
from nfcore.daemon.bootstrap import make_context, make_engine, set_up
from nfcore.daemon.chain import Chains
from nfcore.devices.null_backend import NULL_BACKEND, NullBackend
from nfcore.devices.worker import InlineWorker
from nfcore.engine.engine import Engine
from nfcore.hooks.manager import PluginManager
from nfcore.kernel import BPF_SOURCES, XdpMode, attach_xdp, compile_program, interface_index
from nfcore.plugins.katran_accel.balancer import Balancer
from nfcore.plugins.katran_accel.layouts import AccelCounter
from nfcore.plugins.katran_accel.metrics import accel_counters
from nfcore.testing import Neighbour
from tests.kernel.network import enter, ip

PASS = BPF_SOURCES / "pass.c"
Carry = Callable[[socket.socket, int], None]
"""Sees to it that the next frame of a socket arrives with a mark."""


@dataclass
class Link:
    """net0 ══ eth1 with the balancer on it."""

    engine: Engine
    balancer: Balancer
    network: socket.socket
    device: Device
    carry: Carry
    neighbours: dict[str, Neighbour]
    """By name: the functions that stand before the balancer."""

    def exchange(self, frame: bytes, mark: int = 0) -> bytes:
        """Send the frame with a mark; what the balancer sends back."""
        self.carry(self.network, mark)
        self.network.send(frame)
        while True:
            received = self.network.recv(4096)
            if received.endswith(frame[14:]) and len(received) > len(frame):
                return received

    def count(self, which: AccelCounter) -> int:
        return int(accel_counters(self.balancer)[which])


@contextmanager
def open_link(
    toml: Path,
    carry: Carry,
    here: str,
    network: str,
    *,
    queues: int = 1,
    backend: object = None,
    table: Mapping[str, ConfigTable] | None = None,
    before: Sequence[str] = (),
) -> Iterator[Link]:
    """Open a link from namespace `network` to `here`, with so many queues each way, and a TOML's balancer on it.

    `backend` is its offload backend, the null one unless it is given; `table` has its tables by plugin name. `before`
    names functions of the chain that only count packets.
    """
    plugins = PluginManager()
    config = load_config(toml, plugins, [f"nf.socket={toml.with_name('nf.sock')}"])
    interfaces = [each.model_copy(update={"chain": [*before, *each.chain]}) for each in config.interfaces]
    config = replace(config, sections={**config.sections, **(table or {})}, interfaces=interfaces)
    neighbours = {each: Neighbour(each) for each in before}
    for each, neighbour in neighbours.items():
        plugins.register(neighbour, each)
    name = next(iter(table)) if table else NULL_BACKEND
    plugins.register(backend or NullBackend(), name)
    size = ["numrxqueues", str(queues), "numtxqueues", str(queues)]
    ip(here, "link", "add", "name", "eth1", "address", NIC_MAC, *size, "type", "veth", "peer", "name", "net0", *size)
    if network != here:
        ip(here, "link", "set", "net0", "netns", network)
    for namespace, interface in ((here, "eth1"), (network, "net0")):
        # Without addresses of IPv6 the kernel sends nothing of its own, which functions would count.
        ip(namespace, "link", "set", interface, "addrgenmode", "none")
        ip(namespace, "link", "set", interface, "up")
    with enter(network):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sender.bind(("net0", 3))
        sender.settimeout(10)
        # GRO would do for redirected frames, but what XDP_TX sends waits for a program at the other end.
        passing = compile_program(PASS, "pass", defines={}, maps={})
        attach_xdp(interface_index("net0"), passing, mode=XdpMode.NATIVE)
        passing.close()
    with enter(here), sender:
        device = Device("eth1", interface_index("eth1"), (name,))
        context = make_context(config, plugins, [device])
        with context.locks, Chains(context) as chains, set_up(context, plugins):
            engine = make_engine(context, plugins, {device.ifindex: InlineWorker()})
            engine.start()
            balancer = next(nf for nf in context.nfs if isinstance(nf, Balancer))
            chains.link()
            attachments = Attachments.of(context)
            try:
                attachments.attach(device, chains.program(device))
                yield Link(engine, balancer, sender, device, carry, neighbours)
            finally:
                attachments.detach(device)


def set_mark(sender: socket.socket, mark: int) -> None:
    """Carry marks on the socket buffer, as a filter on net0's egress would."""
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)


def choose_queue(namespace: str, queues: int) -> Carry:
    """Carry marks by the queue, as a NIC's classifier would: every CPU's packets leave net0 on one of them."""
    every_cpu = f"{(1 << min(os.cpu_count() or 1, 32)) - 1:x}"

    def carry(sender: socket.socket, mark: int) -> None:
        cpus = {number: every_cpu if number == mark else "0" for number in range(queues)}
        lines = [f"echo {each} > /sys/class/net/net0/queues/tx-{number}/xps_cpus" for number, each in cpus.items()]
        # In a process of its own: /sys shows the devices of the namespace that mounted it.
        subprocess.run(["ip", "netns", "exec", namespace, "sh", "-e"], input="\n".join(lines), text=True, check=True)

    return carry
