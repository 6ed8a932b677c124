# SPDX-License-Identifier: Apache-2.0
"""A balancer's daemon and the routers beside it, with real neighbours: frames in, and where they leave to.

::

    this namespace: eth1, eth2 [nfcore run] ══ net1, net2: routers' namespace
"""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from nfcore.bench.testbed import Daemons, config_text, run
from nfcore.kernel import BPF_SOURCES, XdpMode, attach_xdp, compile_program
from nfcore.kernel.links import format_mac, read_link
from tests.kernel.network import enter, ip, namespaces, send_frame
from tests.kernel.site import nfcore
from tests.waiting import eventually as wait_until

from .world import tcp

PATIENCE = 30.0
eventually = partial(wait_until, patience=PATIENCE)
CLIENT = "198.18.1.2"
VIP = "198.18.10.1"
LINKS = (1, 2)
PORT = 9464


@dataclass(frozen=True)
class Sent:
    """A frame that the balancer has sent."""

    source: str
    to: str
    """MAC addresses."""
    real: str


@dataclass
class Routers:
    """The links and the daemon. `ip` is for this namespace, `router` for the other one."""

    folder: Path
    namespace: str
    daemons: Daemons
    taps: dict[int, socket.socket] = field(default_factory=dict)
    """Number of the link → a packet socket at the routers' end."""

    def ip(self, command: str) -> str:
        return run("ip", *command.split())

    def router(self, command: str) -> str:
        return ip(self.namespace, *command.split())

    def mac(self, link: int = 1) -> str:
        """The routers' address on a link."""
        (found,) = json.loads(self.router(f"-j link show net{link}"))
        return str(found["address"])

    @staticmethod
    def own_mac(link: int = 1) -> str:
        """The balancer's address on a link."""
        found = read_link(socket.if_nametoindex(f"eth{link}"))
        assert found is not None
        return format_mac(found.mac)

    def config(self, katran: str, *, interfaces: tuple[str, ...] = ("eth1",)) -> Path:
        """Write the TOML; katran: what is in its table, VIPs included."""
        path = self.folder / "nf.toml"
        others = "".join(f'[[interfaces]]\nname = "{name}"\nchain = ["katran_accel"]\n' for name in interfaces[1:])
        table = f"[katran_accel]\nlru_size = 1024\n{katran}"
        stats = f'[stats]\nlisten = "127.0.0.1:{PORT}"'
        path.write_text(config_text(self.folder, "katran_accel", "none", others, table, stats, interface=interfaces[0]))
        return path

    def send(self, frame: bytes, link: int = 1, to: str | None = None) -> Sent | None:
        """Send a frame to the balancer, to its own address unless `to` says another one. None: nothing came back."""
        destination = bytes.fromhex((to or self.own_mac(link)).replace(":", ""))
        tap = self.taps[link]
        while True:
            try:
                tap.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
        send_frame(tap, destination + frame[6:])
        found = wait_until(lambda: self._received(tap, frame[14:]), 1.0)
        return found if isinstance(found, Sent) else None

    @staticmethod
    def _received(tap: socket.socket, packet: bytes) -> Sent | None:
        while True:
            try:
                frame = tap.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            if frame.endswith(packet) and len(frame) > 14 + len(packet):
                outer = Ether(frame)
                ip_header = outer[IPv6] if outer.type == 0x86DD else outer[IP]
                return Sent(outer.src, outer.dst, str(ip_header.dst))

    def goes_to(self, mac: str, *frames: bytes, link: int = 1) -> bool:
        """Whether frames come to be sent to this address, in time."""
        wanted = frames or (tcp(CLIENT, VIP),)

        def all_go() -> bool:
            return all((sent := self.send(frame, link)) is not None and sent.to == mac for frame in wanted)

        return bool(eventually(all_go))

    def troubles(self) -> list[str]:
        return list(self.daemons.request("health")["troubles"])

    def healthz(self) -> tuple[int, str]:
        """Status and text of /healthz."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def doctor(self, config: Path) -> dict[str, tuple[str, str]]:
        """What doctor says of the balancer: what was checked → status and words."""
        told: list[dict[str, Any]] = json.loads(nfcore("doctor", str(config), "--json").stdout)["findings"]
        return {each["what"]: (each["status"], f"{each['found']} {each['advice']}") for each in told}


@contextmanager
def open_routers(folder: Path) -> Iterator[Routers]:
    """Make links and routers: 198.18.2.1 and 2001:db8:2::1 on net1, 198.18.3.1 on net2; no routes yet."""
    namespace = f"nftest-routers-{os.getpid()}"
    with namespaces(namespace), ExitStack() as leaving:
        daemons = Daemons(folder / "nf.sock")
        routers = Routers(folder, namespace, daemons)
        for link in LINKS:
            routers.ip(f"link add eth{link} type veth peer name net{link} netns {namespace}")
            leaving.callback(run, "ip", "link", "del", f"eth{link}")
            # No duplicate is looked for: link-local addresses, by which neighbours are asked, are there at once.
            run("sysctl", "-qw", f"net.ipv6.conf.eth{link}.accept_dad=0")
            run("ip", "netns", "exec", namespace, "sysctl", "-qw", f"net.ipv6.conf.net{link}.accept_dad=0")
            routers.ip(f"link set eth{link} up")
            routers.router(f"link set net{link} up")
            routers.ip(f"address add 198.18.{link + 1}.2/24 dev eth{link}")
            routers.router(f"address add 198.18.{link + 1}.1/24 dev net{link}")
            routers.ip(f"address add 2001:db8:{link + 1}::2/64 dev eth{link} nodad")
            routers.router(f"address add 2001:db8:{link + 1}::1/64 dev net{link} nodad")
            with enter(namespace):
                # A veth end takes frames of XDP_TX only while it has a program of its own.
                with compile_program(BPF_SOURCES / "pass.c", "pass", defines={}, maps={}) as passing:
                    attach_xdp(socket.if_nametoindex(f"net{link}"), passing, mode=XdpMode.NATIVE)
                tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
                tap.bind((f"net{link}", 3))
            leaving.callback(tap.close)
            routers.taps[link] = tap
        leaving.callback(daemons.kill_all)
        yield routers
