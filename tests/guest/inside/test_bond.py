# SPDX-License-Identifier: Apache-2.0
"""The balancer on links above others: a bond, whose packets XDP sees on the bond's ports, and a VLAN.

::

    bond0 [nfcore run]: p0, p1, later p2 ══ q0, q1, q2: another namespace
    p0.100 [nfcore run], of p0           ══ q0
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nfcore.bench.testbed import Daemons, config_text, run
from nfcore.errors import HostError
from nfcore.kernel.links import format_mac, read_link
from tests.guest.inside.programs import OFFLOAD, pass_everything
from tests.kernel.katran_accel.world import tcp
from tests.kernel.network import enter, ip, namespaces, send_frame
from tests.waiting import eventually

PATIENCE = 120.0
GATEWAY = "02:00:5e:00:00:fe"
BALANCER = f"""
[katran_accel]
gateway_mac = "{GATEWAY}"
lru_size = 1024
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{{ address = "198.18.20.11" }}]
"""
FILTERS = '[tc_offload]\nskip_sw = "off"'


@dataclass
class Bond:
    folder: Path
    namespace: str
    daemons: Daemons
    taps: dict[int, socket.socket] = field(default_factory=dict)

    def add_port(self, number: int) -> None:
        """Add a port to the bond, with a packet socket at its other end."""
        port, peer = f"p{number}", f"q{number}"
        run("ip", "link", "add", port, "type", "veth", "peer", "name", peer, "netns", self.namespace)
        ip(self.namespace, "link", "set", peer, "up")
        run("ip", "link", "set", port, "master", "bond0")
        run("ip", "link", "set", port, "up")
        with enter(self.namespace):
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            tap.bind((peer, 3))
            with pass_everything() as passing:
                attach(peer, passing)
        self.taps[number] = tap

    def config(self, backend: str, tables: str, interface: str = "bond0") -> Path:
        path = self.folder / "nf.toml"
        options = {"interface": interface, "offload": OFFLOAD}
        text = config_text(self.folder, "katran_accel", backend, BALANCER, tables, **options)
        # Only a bond has native XDP.
        mode = "native" if interface == "bond0" else "generic"
        path.write_text(text.replace("offload = [", f'xdp_mode = "{mode}"\noffload = [', 1))
        return path

    @property
    def mac(self) -> str:
        link = read_link(socket.if_nametoindex("bond0"))
        assert link is not None
        return format_mac(link.mac)

    def send(self, number: int, sport: int, tag: bytes = b"") -> None:
        """Send three packets of a connection by a port; `tag`: of its VLAN."""
        frame = tcp("198.18.1.2", "198.18.10.1", sport=sport)
        for _ in range(3):
            send_frame(self.taps[number], bytes.fromhex(self.mac.replace(":", "")) + frame[6:12] + tag + frame[12:])

    def sent(self) -> list[tuple[str, str]]:
        """Source and destination of the encapsulated frames that have come out of any port."""
        found = []
        for tap in self.taps.values():
            while True:
                try:
                    frame = tap.recv(4096, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                if frame[12:14] == b"\x08\x00" and frame[23] == 4:  # IPIP
                    found.append((format_mac(frame[6:12]), format_mac(frame[:6])))
        return found

    def flows(self) -> dict[str, dict[str, Any]]:
        """Client's port → what the engine knows of the flow."""
        rows = self.daemons.request("flows", limit=100)["flows"]
        return {row["flow"].partition(" ")[0].rpartition(":")[2]: row for row in rows}


def attach(interface: str, program: Any) -> None:
    from nfcore.kernel import XdpMode, attach_xdp

    attach_xdp(socket.if_nametoindex(interface), program, mode=XdpMode.NATIVE)


@pytest.fixture
def bond(tmp_path: Path) -> Iterator[Bond]:
    run("modprobe", "bonding", "max_bonds=0")
    namespace = f"nftest-bond-{os.getpid()}"
    with namespaces(namespace), ExitStack() as leaving:
        run("ip", "link", "add", "bond0", "type", "bond", "mode", "balance-rr", "miimon", "100")
        leaving.callback(run, "ip", "link", "del", "bond0")
        made = Bond(tmp_path, namespace, Daemons(tmp_path / "nf.sock"))
        leaving.callback(made.daemons.kill_all)
        for number in (0, 1):
            made.add_port(number)
        run("ip", "link", "set", "bond0", "up")
        yield made


def test_flows_of_each_port_belong_to_the_bond(bond: Bond) -> None:
    wait = partial(eventually, patience=PATIENCE)
    with bond.daemons.running(bond.config("tc_offload", FILTERS)):
        for number in (0, 1):
            bond.send(number, 40000 + number)
        assert wait(lambda: bond.flows().keys() >= {"40000", "40001"}), bond.flows()
        bond.add_port(2)  # while the daemon runs

        def third() -> bool:
            bond.send(2, 40002)
            return "40002" in bond.flows()

        assert wait(third), bond.flows()
        for row in bond.flows().values():
            assert (row["interface"], row["reason"]) != ("", "no_backend") and row["interface"] == "bond0", row
        frames = bond.sent()
        assert frames and set(frames) == {(bond.mac, GATEWAY)}, json.dumps(frames)


def test_an_emulated_nic_in_front_of_a_bond_is_refused_by_name(bond: Bond) -> None:
    with pytest.raises(HostError, match=r"bond0 is a bond \(its ports: p0, p1\).*offload = \[.none.\]"):
        bond.daemons.start(bond.config("softnic", "[softnic]"))


def test_flows_of_a_vlan_belong_to_it(bond: Bond) -> None:
    """The bond has taken its first port's address, and the VLAN has it, too."""
    run("ip", "link", "set", "p0", "nomaster")
    run("ip", "link", "add", "link", "p0", "name", "p0.100", "type", "vlan", "id", "100")
    for link in ("p0", "p0.100"):
        run("ip", "link", "set", link, "address", bond.mac)
        run("ip", "link", "set", link, "up")
    with bond.daemons.running(bond.config("tc_offload", FILTERS, "p0.100")):
        tag = bytes.fromhex("81000064")

        def known() -> bool:
            bond.send(0, 40100, tag)
            return "40100" in bond.flows()

        assert eventually(known, PATIENCE)
        row = bond.flows()["40100"]
        assert row["interface"] == "p0.100" and row["reason"] != "no_backend", row
