# SPDX-License-Identifier: Apache-2.0
"""`nfcore run` behind an emulated NIC, in a network namespace of its own: real frames go in and come out at net0."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nfcore.api.metrics import total
from nfcore.control.client import request
from nfcore.plugins.softnic.backend import SoftnicBackend
from tests.daemons import Daemons
from tests.daemons import eventually as daemons_eventually
from tests.kernel.katran_accel.world import GATEWAY, NIC

from .network import enter, namespaces, send_frame
from .network import ip as ip_in

NAMESPACE = f"nftest-daemon-{os.getpid()}"
ip = partial(ip_in, NAMESPACE)
PATIENCE = 30.0
"""Seconds until something that should happen counts as not happening."""
eventually = partial(daemons_eventually, patience=PATIENCE)

VIP = "198.18.10.1"
REALS = ("198.18.20.11", "198.18.20.12", "198.18.20.13")

CONFIG = """
[nf]
plugins = ["katran_accel", "marking", "softnic", "stats"]
socket = "{socket}"
[[interfaces]]
name = "eth1"
chain = ["katran_accel"]
offload = ["softnic"]
[marking]
strategy = "{strategy}"
quarantine = "100ms"
[offload]
min_packets = 3
idle_timeout = "{idle_timeout}"
counter_lag = "50ms"
events = "{events}"
{offload}
[softnic]
pins = {{ eth1 = "{nic}" }}
[katran_accel]
lru_size = {lru_size}
{katran}
{vips}"""


def vip_toml(*reals: str, address: str = VIP, port: int = 80, protocol: str = "tcp") -> str:
    """One VIP as TOML; a real with a weight is written ``address*weight``."""
    pairs = [(*real.split("*"), "1")[:2] for real in reals]
    written = ", ".join(f'{{ address = "{real}", weight = {weight} }}' for real, weight in pairs)
    written = written.replace(", weight = 1 }", " }")
    head = f'[[katran_accel.vips]]\naddress = "{address}"\nport = {port}\nprotocol = "{protocol}"\n'
    return f"{head}reals = [{written}]\n"


SIX = vip_toml("2001:db8:20::11", "2001:db8:20::12", address="2001:db8:10::1", port=53, protocol="udp")
VIPS = vip_toml(*REALS) + SIX


def inside(*command: str) -> list[str]:
    """A command in the namespace."""
    return ["nsenter", f"--net=/run/netns/{NAMESPACE}", *command]


def nfcore(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = inside(sys.executable, "-m", "nfcore.cli", *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def succeed(*arguments: str) -> str:
    """Run the command line, which must succeed; what it printed."""
    done = nfcore(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Site:
    """net0 ══ wire0 [NIC] port0 ══ eth1 [balancer], all in one namespace; frames go in and come out at net0."""

    folder: Path
    network: socket.socket
    daemons: Daemons

    @property
    def nic(self) -> Path:
        return self.folder / "nic"

    @property
    def socket(self) -> Path:
        return self.folder / "nf.sock"

    @property
    def pins(self) -> Path:
        return self.folder / "pins"

    def config(
        self,
        *,
        strategy: str = "dest-id",
        katran: str = "",
        idle_timeout: str = "30s",
        events: str = "ringbuf",
        offload: str = "",
        vips: str = VIPS,
        lru_size: int = 4096,
    ) -> Path:
        """Write the TOML that all daemons of this site are started with."""
        path = self.folder / "nf.toml"
        text = CONFIG.format(
            socket=self.socket,
            nic=self.nic,
            strategy=strategy,
            katran=katran,
            idle_timeout=idle_timeout,
            events=events,
            offload=offload,
            vips=vips,
            lru_size=lru_size,
        )
        path.write_text(text)
        return path

    def start(self, config: Path) -> subprocess.Popen[str]:
        return self.daemons.start(config)

    def running(self, config: Path) -> AbstractContextManager[subprocess.Popen[str]]:
        return self.daemons.running(config)

    def figure(self, name: str, **labels: str) -> float:
        return self.daemons.figure(name, **labels)

    def figures(self) -> Figures:
        """All figures at one instant."""
        return Figures(self.metrics())

    def metrics(self) -> list[dict[str, Any]]:
        """Metric families as `nfcore stats --json` prints them."""
        metrics: list[dict[str, Any]] = request(self.socket, "stats", timeout=PATIENCE)["metrics"]
        return metrics

    def installed(self, number: int) -> bool:
        """Whether so many flows get their rules in time."""
        return bool(eventually(lambda: self.figure("nfcore_flows", state="installed") == number))

    def in_hardware(self, match: str = "") -> dict[str, tuple[int, str]]:
        """Mark and real of the flows that have a rule, without the time that a command takes."""
        found = request(self.socket, "flows", timeout=PATIENCE, states=["installed"], match=match, limit=10_000)
        return {row["flow"]: (row["mark"], row["real"]) for row in found["flows"]}

    def flows(self, *options: str) -> list[dict[str, Any]]:
        """Ask `nfcore flows`."""
        answer = json.loads(succeed("flows", "--socket", str(self.socket), "--json", *options))
        rows: list[dict[str, Any]] = answer["flows"]
        return rows

    def exchange(self, frame: bytes) -> bytes:
        """Send a frame from the network; the balancer's answer to it."""
        send_frame(self.network, frame)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            received = self.network.recv(4096)
            if received.endswith(frame[14:]) and len(received) > len(frame):
                return received
        raise AssertionError("no encapsulated frame came back")

    @contextmanager
    def backend(self) -> Iterator[SoftnicBackend]:
        """The NIC as its driver sees it."""
        opened = SoftnicBackend.open(self.nic, "nic")
        try:
            yield opened
        finally:
            opened.close()

    def rules(self) -> int:
        """How many rules the NIC has."""
        with self.backend() as nic:
            return len(nic.dump())

    def make_nic(self, *options: str) -> None:
        succeed("softnic", "create", "--wire", "wire0", "--port", "port0", "--pin", str(self.nic), *options)

    def remove_nic(self) -> None:
        succeed("softnic", "remove", "--pin", str(self.nic))

    def program(self) -> int | None:
        """Id of the program on eth1."""
        (link,) = json.loads(ip("-j", "-d", "link", "show", "eth1"))
        return link["xdp"]["prog"]["id"] if "xdp" in link else None


class Figures:
    """What the daemon said of itself at one instant."""

    def __init__(self, metrics: list[dict[str, Any]]) -> None:
        self._metrics = metrics

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return total(self._metrics, name, **labels)

    def adds_up(self) -> bool:
        """Whether each report, and each rule that vanished, became something: nothing is lost silently."""
        came = self("nfcore_events_total") + self("nfcore_vanished_total")
        became = self("nfcore_events_known_total") + self("nfcore_installed_total")
        became += self("nfcore_not_offloaded_total")
        under_way = self("nfcore_flows", state="waiting") + self("nfcore_flows", state="pending")
        return came == became + under_way


@contextmanager
def open_site(folder: Path) -> Iterator[Site]:
    """Make namespace, links and NIC; leave nothing behind, also when a test failed half-way."""
    daemons = Daemons(inside(), folder / "nf.sock", PATIENCE)
    with namespaces(NAMESPACE), ExitStack() as leaving:
        leaving.callback(_stop_all, daemons, folder)
        for link, peer in (("wire0", "net0"), ("port0", "eth1")):
            ip("link", "add", link, "type", "veth", "peer", peer)
        ip("link", "set", "eth1", "address", NIC)
        for link in ("lo", "net0", "wire0", "port0", "eth1"):
            ip("link", "set", link, "up")
        subprocess.run(inside("ethtool", "-K", "net0", "gro", "on"), check=True, capture_output=True)
        ip("address", "add", "198.18.2.2/24", "dev", "eth1")
        ip("neighbour", "add", "198.18.2.1", "lladdr", GATEWAY, "dev", "eth1")
        ip("route", "add", "default", "via", "198.18.2.1")
        with leaving.enter_context(packet_socket()) as network:
            network.settimeout(PATIENCE)
            made = Site(folder, network, daemons)
            made.make_nic()
            yield made


def packet_socket() -> socket.socket:
    """A socket that sends frames at net0 and receives those that come there."""
    with enter(NAMESPACE):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    opened.bind(("net0", 3))
    return opened


def _stop_all(daemons: Daemons, folder: Path) -> None:
    daemons.kill_all()
    nfcore("softnic", "remove", "--pin", str(folder / "nic"))
    if (folder / "pins").is_mount():
        subprocess.run(["umount", folder / "pins"], check=True)


def wait_while(running: subprocess.Popen[str], meanwhile: Callable[[], object]) -> str:
    """Do something until a command has ended, which must succeed; what it printed."""
    deadline = time.monotonic() + PATIENCE
    while running.poll() is None and time.monotonic() < deadline:
        meanwhile()
    if running.poll() is None:
        running.send_signal(signal.SIGKILL)
    out, error = running.communicate()
    assert running.returncode == 0, error
    return out


def begin(*arguments: str) -> subprocess.Popen[str]:
    """Start the command line, for :func:`wait_while`."""
    command = inside(sys.executable, "-m", "nfcore.cli", *arguments)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
