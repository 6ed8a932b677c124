# SPDX-License-Identifier: Apache-2.0
"""The balancer over real TC: real TCP connections, flower rules that the daemon installed, marks by skbedit.

client ══ gateway, net0 ══ eth1 (balancer), both in the gateway's namespace: a mark does not cross into another.
                    └ clsact egress: flower, skbedit mark
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from demo.lab import VIP4, VIP6, Lab
from nfcore.bench.testbed import Daemons, config_text
from nfcore.errors import HostError
from nfcore.kernel import Program, XdpMode, attach_xdp, interface_index
from nfcore.plugins.katran_accel.decap.program import DecapOptions, Decapsulation
from tests.guest.inside.programs import OFFLOAD, pass_everything
from tests.kernel.network import enter
from tests.waiting import eventually

PATIENCE = 120.0
"""Seconds until something counts as not happening; the guest is slow."""
REAL_FOR = {"v4": VIP4, "v6": VIP6}
TABLES = """
[tc_offload.devices.eth1]
filter_on = "net0"
direction = "egress"
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11" }, { address = "198.18.20.12" }]
[[katran_accel.vips]]
address = "2001:db8:10::1"
port = 80
protocol = "tcp"
reals = [{ address = "2001:db8:20::11" }, { address = "2001:db8:20::12" }]
"""


@dataclass
class Site:
    """The lab with echo servers on the reals."""

    lab: Lab
    folder: Path
    daemons: Daemons
    stopping: threading.Event = field(default_factory=threading.Event)

    def config(self, strategy: str) -> Path:
        path = self.folder / "nf.toml"
        gateway = self.lab.end("gw", "net0").mac
        table = f'[katran_accel]\ngateway_mac = "{gateway}"\nlru_size = 1024\npin_dir = "{self.folder}/pins"'
        marking = f'strategy = "{strategy}"\ncarrier = "skb-mark"'
        parts = {"marking": marking, "offload": OFFLOAD}
        path.write_text(config_text(self.folder, "katran_accel", "tc_offload", table, TABLES, **parts))
        return path

    def metric(self, name: str, **labels: str) -> float:
        return self.daemons.metric(name, **labels)

    def connect(self, family: str) -> socket.socket:
        with enter(self.lab.namespace("client")):
            client = socket.socket(socket.AF_INET if family == "v4" else socket.AF_INET6)
        client.settimeout(PATIENCE)
        client.connect((REAL_FOR[family], 80))
        return client

    def serve(self, role: str) -> None:
        """Echo every line with the real's name in front."""
        for family, vip in ((socket.AF_INET, VIP4), (socket.AF_INET6, VIP6)):
            with enter(self.lab.namespace(role)):
                server = socket.create_server((vip, 80), family=family)
            server.settimeout(0.5)
            threading.Thread(target=self._accept, args=(server, role), daemon=True).start()

    def _accept(self, server: socket.socket, role: str) -> None:
        with server:
            while not self.stopping.is_set():
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=_echo, args=(peer, role), daemon=True).start()


def _echo(peer: socket.socket, role: str) -> None:
    with peer, peer.makefile("rwb") as lines:
        for line in lines:
            lines.write(role.encode() + b" " + line)
            lines.flush()


def ask(client: socket.socket, word: str) -> str:
    """Send a line, wait for its echo; the real that answered."""
    client.sendall(word.encode() + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        received = client.recv(4096)
        assert received, "the connection was closed"
        answer += received
    real, echoed = answer.decode().split()
    assert echoed == word
    return real


def attach(lab: Lab, role: str, interface: str, program: Program) -> None:
    with enter(lab.namespace(role)):
        attach_xdp(interface_index(interface), program, mode=XdpMode.NATIVE)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Lab("nfguest-", reals=2, nic=False, balancer="gw") as lab:
        with pass_everything() as program:
            attach(lab, "gw", "net0", program)
        with Decapsulation(DecapOptions()) as decapsulation:
            for real in lab.reals:
                attach(lab, real.name, "eth0", decapsulation.program)
        made = Site(lab, tmp_path, Daemons(tmp_path / "nf.sock", lab.enter("gw", [])))
        for real in lab.reals:
            made.serve(real.name)
        yield made
        made.stopping.set()
        made.daemons.kill_all()


def filters(site: Site) -> list[dict[str, Any]]:
    """The flower filters at net0's egress, as tc tells them."""
    shown = site.lab.run("gw", ["tc", "-j", "-s", "filter", "show", "dev", "net0", "egress"], timeout=PATIENCE)
    return [each for each in json.loads(shown.stdout or "[]") if "keys" in each.get("options", {})]


def hits(site: Site) -> int:
    """Packets that the kernel counted on those filters."""
    actions = [action for each in filters(site) for action in each["options"]["actions"]]
    return sum(int(action["stats"]["packets"]) for action in actions if action["kind"] == "skbedit")


@pytest.mark.parametrize("strategy", ["dest-id", "flow-id"])
def test_connections_ride_on_flower_rules_and_survive_a_killed_daemon(site: Site, strategy: str) -> None:
    config = site.config(strategy)
    daemon = site.daemons.start(config)
    clients = [site.connect(family) for family in ("v4", "v6") for _ in range(3)]
    reals = [ask(client, "first") for client in clients]
    for number in range(6):
        assert [ask(client, f"warm{number}") for client in clients] == reals
    assert eventually(lambda: site.metric("nfcore_flows", state="installed") == len(clients), PATIENCE)

    # The rules are the kernel's own, one per connection, with marks, and they count.
    assert len(filters(site)) == len(clients)
    before = settled(site)
    for number in range(10):
        assert [ask(client, f"fast{number}") for client in clients] == reals
    counted, fast, slow = (now - then for now, then in zip(settled(site), before, strict=True))
    assert fast >= 10 * len(clients)
    assert fast / (fast + slow) >= 0.8
    assert counted == fast

    # Killed: rules and program go on. Restarted: the rules are taken over as they are.
    handles = sorted(each["options"]["handle"] for each in filters(site))
    daemon.kill()
    daemon.wait()
    assert [ask(client, "alone") for client in clients] == reals
    daemon = site.daemons.start(config)
    assert site.metric("nfcore_adopted_total") == len(clients)
    assert sorted(each["options"]["handle"] for each in filters(site)) == handles
    fast, _ = paths(site)
    assert [ask(client, "again") for client in clients] == reals
    assert paths(site)[0] - fast >= len(clients)

    # Somebody removes a rule: it is put back, and the connection never notices.
    shown = filters(site)[0]
    place = ["dev", "net0", "egress", "protocol", shown["protocol"], "pref", str(shown["pref"])]
    site.lab.run("gw", ["tc", "filter", "del", *place, "handle", f"{shown['options']['handle']:#x}", "flower"])
    assert [ask(client, "less") for client in clients] == reals
    assert eventually(lambda: len(filters(site)) == len(clients), PATIENCE)

    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE) == 0
    assert "clsact" not in site.lab.run("gw", ["tc", "qdisc", "show", "dev", "net0"]).stdout
    for client in clients:
        client.close()


def paths(site: Site) -> tuple[float, float]:
    """Packets by mark and without."""
    return site.metric("nfcore_packets_total", path="fast"), site.metric("nfcore_packets_total", path="slow")


def settled(site: Site) -> tuple[float, float, float]:
    """Hits of the filters, packets by mark and without, once nothing is on its way any more."""
    last = (-1.0, -1.0, -1.0)
    while (now := (hits(site), *paths(site))) != last:
        last = now
        time.sleep(0.5)
    return now


def test_a_width_that_the_carrier_gives_is_no_error_and_one_more_is(site: Site) -> None:
    config = site.config("dest-id")
    config.write_text(config.read_text().replace('carrier = "skb-mark"', 'carrier = "skb-mark"\nwidth = 1'))
    command = [sys.executable, "-m", "nfcore.cli", "run", str(config)]
    with pytest.raises(HostError, match=r"marking\.width: dest-id needs 4 marks"):
        site.lab.run("gw", command, timeout=PATIENCE)
