# SPDX-License-Identifier: Apache-2.0
"""The site of the other kernel tests with a chain on it: flow_actions in front of the balancer.

::

    net0 ══ wire0 [NIC] port0 ══ eth1 [flow_actions → balancer]        out0 ══ out1: where redirected frames come out
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from nfcore.bench.testbed import GATEWAY_MAC, HOST, NIC_MAC, run, testbed_here
from tests.kernel.network import send_frame
from tests.kernel.site import PATIENCE, VIPS, Site, eventually, packet_socket

CONFIG = """
[nf]
plugins = ["flow_actions", "katran_accel", "marking", {plugins} "stats"]
socket = "{folder}/nf.sock"
[[interfaces]]
name = "{host}"
chain = ["flow_actions", "katran_accel"]
offload = [{offload} "none"]
[marking]
strategy = "{strategy}"
quarantine = "100ms"
[offload]
min_packets = 3
counter_lag = "50ms"
idle_timeout = "5s"
{nic}
[katran_accel]
lru_size = 4096
{vips}
[flow_actions]
{actions}
"""
ENDS = {4: ("198.18.1.2", "198.18.10.1"), 6: ("2001:db8:1::2", "2001:db8:10::1")}
"""Family → a client and a VIP: TCP port 80, UDP port 53."""
PROTO = {4: "tcp", 6: "udp"}
PORT = {4: 80, 6: 53}


def frame(family: int = 4, sport: int = 4000, *, src: str = "", tos: int = 0, load: int = 60) -> bytes:
    """A frame of a client to its family's VIP."""
    client, vip = ENDS[family]
    eth, body = Ether(src=GATEWAY_MAC, dst=NIC_MAC), Raw(bytes(range(load)))
    if family == 4:
        return bytes(eth / IP(src=src or client, dst=vip, tos=tos) / TCP(sport=sport, dport=80, flags="A") / body)
    return bytes(eth / IPv6(src=src or client, dst=vip, tc=tos) / UDP(sport=sport, dport=53) / body)


def exact(name: str, family: int = 4, sport: int = 4000, **about: Any) -> dict[str, Any]:
    """An entry for the flow of :func:`frame`."""
    client, vip = ENDS[family]
    match = {"src": client, "dst": vip, "sport": sport, "dport": PORT[family], "proto": PROTO[family]}
    return {"name": name, **match, **about}


def masked(name: str, family: int = 4, **about: Any) -> dict[str, Any]:
    """An entry for all flows of the client's network."""
    return {"name": name, "src": {4: "198.18.1.0/24", 6: "2001:db8:1::/48"}[family], **about}


class ChainedSite(Site):
    """A site, and what a test asks of its entries."""

    out: socket.socket
    """Receives what is redirected to out0."""

    def chain_config(self, *, strategy: str = "dest-id", nic: bool = True, actions: str = "") -> Path:
        """Write the TOML. nic: whether the emulated NIC may be used. actions: what is in `[flow_actions]`."""
        path = self.folder / "nf.toml"
        text = CONFIG.format(
            folder=self.folder,
            host=HOST,
            plugins='"softnic",' if nic else "",
            offload='"softnic",' if nic else "",
            nic=self._backend_toml("softnic") if nic else "",
            strategy=strategy,
            vips=VIPS,
            actions=actions,
        )
        path.write_text(text)
        return path

    def change(self, *add: dict[str, Any], delete: tuple[str, ...] = ()) -> None:
        """Add and delete entries."""
        self.request("flow.change", add=list(add), delete=list(delete))

    def entry(self, name: str) -> dict[str, Any]:
        """An entry with its counters."""
        row: dict[str, Any] = self.request("flow.show", name=name)
        return row

    def counted(self, name: str, packets: int) -> bool:
        """Whether the entry has counted so many packets, no more, in time."""
        eventually(lambda: self.entry(name)["packets"] >= packets)
        return bool(self.entry(name)["packets"] == packets)

    def ready(self, name: str) -> bool:
        """Whether the NIC has the entry's rule in time."""
        return bool(eventually(lambda: self.entry(name)["in_hardware"]))

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
        """Send a frame; what the balancer makes of it, without Ethernet and outer header.

        Unlike :meth:`exchange`, it may come back changed.
        """
        send_frame(self.network, sent)
        while True:
            received = self.network.recv(4096)
            if len(received) > len(sent) and received[-40:] == sent[-40:]:
                return received[len(received) - len(sent) + 14 :]


@contextmanager
def open_chained_site(folder: Path) -> Iterator[ChainedSite]:
    """Make the network; leave nothing behind."""
    with testbed_here(ChainedSite(folder)) as site, packet_socket() as site.network:
        site.network.settimeout(PATIENCE)
        make_out()
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as site.out:
                site.out.bind(("out1", 3))
                site.out.settimeout(PATIENCE)
                yield site
        finally:
            site.daemons.kill_all()
            subprocess.run(["ip", "link", "del", "out0"], check=False, capture_output=True)
            if site.pins.is_mount():
                run("umount", str(site.pins))


def make_out() -> None:
    """Make the link for redirected frames; its end out0 takes them since out1 has GRO."""
    run("ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1")
    for end in ("out0", "out1"):
        run("ip", "link", "set", end, "up")
    run("ethtool", "-K", "out1", "gro", "on")
