# SPDX-License-Identifier: Apache-2.0
"""The testbed of the benchmark as tests use it: the balancer behind an emulated NIC, frames in and out at net0."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nfcore.api.metrics import total
from nfcore.bench.testbed import Testbed, config_text, run, testbed_here
from nfcore.plugins.softnic.backend import SoftnicBackend
from nfcore.plugins.softnic.nic import create_nic, remove_nic
from tests.waiting import eventually as wait_until

from .network import send_frame

PATIENCE = 30.0
"""Seconds until something that should happen counts as not happening."""
eventually = partial(wait_until, patience=PATIENCE)
ip = partial(run, "ip")

VIP = "198.18.10.1"
REALS = ("198.18.20.11", "198.18.20.12", "198.18.20.13")


def vip_toml(*reals: str, address: str = VIP, port: int = 80, protocol: str = "tcp") -> str:
    """One VIP as TOML; a real with a weight is written ``address*weight``."""
    pairs = [(*real.split("*"), "1")[:2] for real in reals]
    written = ", ".join(f'{{ address = "{real}", weight = {weight} }}' for real, weight in pairs)
    written = written.replace(", weight = 1 }", " }")
    head = f'[[katran_accel.vips]]\naddress = "{address}"\nport = {port}\nprotocol = "{protocol}"\n'
    return f"{head}reals = [{written}]\n"


SIX = vip_toml("2001:db8:20::11", "2001:db8:20::12", address="2001:db8:10::1", port=53, protocol="udp")
VIPS = vip_toml(*REALS) + SIX


def command_line(*arguments: str) -> list[str]:
    """A command line of nfcore."""
    return [sys.executable, "-m", "nfcore.cli", *arguments]


def nfcore(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(command_line(*arguments), capture_output=True, text=True, check=False, timeout=60)


def succeed(*arguments: str) -> str:
    """Run the command line, which must succeed; what it printed."""
    done = nfcore(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Site(Testbed):
    """net0 ══ wire0 [NIC] port0 ══ eth1 [balancer], in this process's namespace."""

    network: socket.socket
    """Sends frames at net0, and receives those that come there."""

    @property
    def pins(self) -> Path:
        return self.folder / "pins"

    def config(  # type: ignore[override]
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
        offload = f'counter_lag = "50ms"\nevents = "{events}"\n{offload}'
        text = config_text(
            self.folder,
            "katran_accel",
            "softnic",
            self._backend_toml("softnic"),
            f"[katran_accel]\nlru_size = {lru_size}\n{katran}\n{vips}",
            marking=f'strategy = "{strategy}"\nquarantine = "100ms"',
            offload=f'min_packets = 3\nidle_timeout = "{idle_timeout}"\n{offload}',
        )
        path.write_text(text)
        return path

    def start(self, config: Path) -> subprocess.Popen[bytes]:
        return self.daemons.start(config)

    @contextmanager
    def running(self, config: Path) -> Iterator[subprocess.Popen[bytes]]:
        with self.daemons.running(config) as daemon:
            yield daemon

    def metrics(self) -> Metrics:
        """All metrics at one instant."""
        return Metrics(self.request("stats")["metrics"])

    def installed(self, number: int) -> bool:
        """Whether so many flows get their rules in time."""
        return bool(eventually(lambda: self.metric("nfcore_flows", state="installed") == number))

    def in_hardware(self, match: str = "") -> dict[str, tuple[int, str]]:
        """Mark and real of the flows that have a rule, without the time that a command takes."""
        found = self.request("flows", states=["installed"], match=match, limit=10_000)
        return {row["flow"]: (row["mark"], row["real"]) for row in found["flows"]}

    def flows(self, *options: str) -> list[dict[str, Any]]:
        """Run `nfcore flows`."""
        result = json.loads(succeed("flows", "--socket", str(self.socket), "--json", *options))
        rows: list[dict[str, Any]] = result["flows"]
        return rows

    def exchange(self, frame: bytes) -> bytes:
        """Send a frame from the network; what the balancer makes of it."""
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

    def make_nic(self, rules: int = 65_536) -> None:
        create_nic("wire0", "port0", self.nic, rules)

    def remove_nic(self) -> None:
        remove_nic(self.nic, iter([index for index, _ in socket.if_nameindex()]))

    def program(self) -> int | None:
        """Id of the program on eth1."""
        (link,) = json.loads(ip("-j", "-d", "link", "show", "eth1"))
        return link["xdp"]["prog"]["id"] if "xdp" in link else None


class Metrics:
    """What the daemon counted, all at one instant."""

    def __init__(self, families: list[dict[str, Any]]) -> None:
        self.families = families
        """As `nfcore stats --json` prints them."""

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return total(self.families, name, **labels)

    def adds_up(self) -> bool:
        """Whether each report, and each rule that vanished, became something: nothing is lost silently."""
        came = self("nfcore_events_total") + self("nfcore_vanished_total")
        became = self("nfcore_events_known_total") + self("nfcore_installed_total")
        became += self("nfcore_not_offloaded_total")
        under_way = self("nfcore_flows", state="waiting") + self("nfcore_flows", state="pending")
        return came == became + under_way


@contextmanager
def open_site(folder: Path) -> Iterator[Site]:
    """Make links and NIC; leave nothing behind, also when a test failed half-way."""
    with testbed_here(Site(folder)) as site, packet_socket() as site.network:
        site.network.settimeout(PATIENCE)
        try:
            yield site
        finally:
            site.daemons.kill_all()
            if site.pins.is_mount():
                run("umount", str(site.pins))


def packet_socket() -> socket.socket:
    """A socket that sends frames at net0 and receives those that come there."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    opened.bind(("net0", 3))
    return opened


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
    return subprocess.Popen(command_line(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
