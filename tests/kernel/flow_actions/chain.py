# SPDX-License-Identifier: Apache-2.0
"""flow_actions in front of the balancer: the configuration, entries, frames, and what tests ask of a running daemon.

The same with the emulated NIC on this kernel and with flower in the guest.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from nfcore.bench.testbed import run
from tests.kernel.network import send_frame
from tests.kernel.site import VIPS
from tests.waiting import eventually

from .frames import DST, SRC, ipv4, ipv6, layer4
from .model import TCP, UDP

CONFIG = """
[nf]
plugins = ["flow_actions", "katran_accel", "marking", {plugins} "stats"]
socket = "{folder}/nf.sock"
[[interfaces]]
name = "{interface}"
chain = ["flow_actions", "katran_accel"]
offload = [{backends} "none"]
[marking]
strategy = "{strategy}"
carrier = "{carrier}"
quarantine = "100ms"
[offload]
min_packets = {min_packets}
counter_lag = "50ms"
idle_timeout = "{idle_timeout}"
{nic}
[katran_accel]
lru_size = 4096
{balancer}
{vips}
[flow_actions]
{actions}
"""
PROTO = {4: "tcp", 6: "udp"}
PORT = {4: 80, 6: 53}
NETWORK = {4: "198.18.1.0/24", 6: "2001:db8:1::/48"}
"""Family → the network of the client."""


def chain_config(
    folder: Path,
    interface: str,
    backend: str,
    nic: str,
    *,
    strategy: str,
    carrier: str = "metadata",
    min_packets: int = 3,
    idle_timeout: str = "5s",
    balancer: str = "",
    actions: str = "",
) -> Path:
    """Write the TOML of a chain, with its socket, into `folder`.

    backend: empty for none. nic: what the backend has to know. balancer, actions: more for these tables.
    """
    named = f'"{backend}",' if backend else ""
    path = folder / "nf.toml"
    text = CONFIG.format(
        folder=folder,
        interface=interface,
        plugins=named,
        backends=named,
        nic=nic if backend else "",
        strategy=strategy,
        carrier=carrier,
        min_packets=min_packets,
        idle_timeout=idle_timeout,
        balancer=balancer,
        vips=VIPS,
        actions=actions,
    )
    path.write_text(text)
    return path


def frame(family: int = 4, sport: int = 4000, *, src: str = "", tos: int = 0) -> bytes:
    """A frame of a client to its family's VIP. Its end shows the flow."""
    src = src or SRC[family]
    tail = f"{src} {sport}".encode().rjust(60, b"x")
    if family == 4:
        return ipv4(src, proto=TCP, payload=layer4(TCP, sport, PORT[4], 0) + tail, tos=tos)
    header = layer4(UDP, sport, PORT[6], len(tail))[:8]
    return ipv6(src, proto=UDP, payload=header + tail, tos=tos)


def exact(name: str, family: int = 4, sport: int = 4000, **about: Any) -> dict[str, Any]:
    """An entry for the flow of :func:`frame`."""
    match = {"src": SRC[family], "dst": DST[family], "sport": sport, "dport": PORT[family], "proto": PROTO[family]}
    return {"name": name, **match, **about}


def masked(name: str, family: int = 4, **about: Any) -> dict[str, Any]:
    """An entry for all flows of the client's network, or of another `src`."""
    return {"name": name, "src": NETWORK[family], **about}


class _Request(Protocol):
    def __call__(self, method: str, **parameters: Any) -> Any: ...


class _Metric(Protocol):
    def __call__(self, name: str, **labels: str) -> float: ...


class Chain:
    """A running chain, and what a test asks of its entries."""

    PATIENCE: ClassVar[float] = 30.0
    """Seconds until something that should happen counts as not happening."""
    request: _Request
    metric: _Metric
    network: socket.socket
    """Sends frames to the NIC, and receives those that come back."""
    out: socket.socket
    """Receives what is redirected to out0."""

    def change(self, *add: dict[str, Any], delete: tuple[str, ...] = ()) -> None:
        """Add and delete entries."""
        self.request("flow.change", add=list(add), delete=list(delete))

    def entry(self, name: str) -> dict[str, Any]:
        """An entry with its counters."""
        row: dict[str, Any] = self.request("flow.show", name=name)
        return row

    def counted(self, name: str, packets: int) -> bool:
        """Whether the entry has counted so many packets, no more, in time."""
        eventually(lambda: self.entry(name)["packets"] >= packets, self.PATIENCE)
        return bool(self.entry(name)["packets"] == packets)

    def ready(self, name: str) -> bool:
        """Whether the NIC has the entry's rule in time."""
        return bool(eventually(lambda: self.entry(name)["in_hardware"], self.PATIENCE))

    def actions(self, action: str) -> tuple[int, int]:
        """Packets that XDP has handled by an action: by mark, by look-up."""
        name = "nfcore_flow_actions_packets_total"
        return tuple(int(self.metric(name, action=action, path=path)) for path in ("fast", "slow"))  # type: ignore[return-value]

    def others(self, kind: str) -> int:
        """Packets to which something else has happened in XDP."""
        return int(self.metric("nfcore_flow_actions_other_packets_total", kind=kind))

    def send(self, *frames: bytes) -> None:
        """Send frames from the network."""
        for each in frames:
            send_frame(self.network, each)

    def redirected(self) -> bytes:
        """The next frame that was redirected to out0."""
        return self.out.recv(4096)

    def balanced(self, sent: bytes) -> bytes:
        """Send a frame; what the balancer makes of it, without Ethernet and outer header. It may come back changed."""
        self.send(sent)
        while True:
            received = self.network.recv(4096)
            if len(received) > len(sent) and received[-40:] == sent[-40:]:
                return received[len(received) - len(sent) + 14 :]

    @contextmanager
    def redirecting(self) -> Iterator[None]:
        """With out0 and its other end for a block."""
        make_out()
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as self.out:
                self.out.bind(("out1", 3))
                self.out.settimeout(self.PATIENCE)
                yield
        finally:
            subprocess.run(["ip", "link", "del", "out0"], check=False, capture_output=True)


def make_out() -> None:
    """Make the link for redirected frames; its end out0 takes them since out1 has GRO."""
    run("ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1")
    for end in ("out0", "out1"):
        run("ip", "link", "set", end, "addrgenmode", "none", "up")
    run("ethtool", "-K", "out1", "gro", "on")
