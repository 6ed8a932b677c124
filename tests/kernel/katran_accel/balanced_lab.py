# SPDX-License-Identifier: Apache-2.0
"""The demo's lab without an emulated NIC, for tests that send a client's real traffic through a real daemon.

::

    client ── gw ══ lb: eth1 [nfcore run]
               ╠═══ real1: eth0 [nfcore decap], the VIPs on lo; it answers past the balancer
               ╚═══ real2
"""

from __future__ import annotations

import select
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.lab import BALANCER4, BALANCER6, CLIENT4, CLIENT6, VIP4, VIP6, Lab, Real
from nfcore.bench.testbed import Daemons, config_text
from nfcore.kernel import BPF_SOURCES, XdpMode, attach_xdp, compile_program, interface_index
from tests.kernel.network import enter
from tests.kernel.site import PATIENCE, command_line

GUE_PORT = 6080
PORT = 80
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24
"""Of linux/in.h and linux/in6.h."""
ENCAPSULATIONS = {
    "ipip": "",
    "gue": f'encapsulation = "gue"\nsource_v4 = "{BALANCER4}"\nsource_v6 = "{BALANCER6}"',
}
"""Encapsulation → keys of the balancer's table."""
BOTH_VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
VIP, CLIENT = {4: VIP4, 6: VIP6}, {4: CLIENT4, 6: CLIENT6}


def family_of(version: int) -> socket.AddressFamily:
    """The address family of an IP version."""
    return socket.AF_INET if version == 4 else socket.AF_INET6


def path_mtu(opened: socket.socket) -> int:
    """What the kernel takes for the MTU of the way to a socket's peer."""
    if opened.family == socket.AF_INET:
        return opened.getsockopt(socket.IPPROTO_IP, IP_MTU)
    return opened.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)


def forbid_fragments(opened: socket.socket) -> None:
    """Let a socket send no packet that is longer than the path's MTU, with DF set."""
    if opened.family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)


@dataclass
class BalancedLab:
    """The lab, and what runs in it."""

    lab: Lab
    folder: Path
    daemons: Daemons

    def config(
        self,
        katran: str,
        *,
        protocol: str = "tcp",
        flags: str = "",
        others: Mapping[int, str] | None = None,
        more: str = "",
    ) -> Path:
        """Write the TOML: both VIPs with all reals.

        katran: keys of the table; others: version → one more real of this VIP; more: tables behind the VIPs.
        """
        tables = [f"[katran_accel]\nlru_size = 1024\n{katran}"]
        for version, vip in VIP.items():
            tables_of_reals = [f'{{ address = "{self.address(real, version)}" }}' for real in self.lab.reals]
            reals = ", ".join([*tables_of_reals, *([others[version]] if others else [])])
            head = f'[[katran_accel.vips]]\naddress = "{vip}"\nport = {PORT}\nprotocol = "{protocol}"'
            tables.append(f"{head}\nflags = [{flags}]\nreals = [{reals}]")
        path = self.folder / "nf.toml"
        path.write_text(config_text(self.folder, "katran_accel", "none", *tables, more))
        return path

    @staticmethod
    def address(real: Real, version: int) -> str:
        return real.v4 if version == 4 else real.v6

    def open(self, role: str, version: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """Open a socket in a role's namespace."""
        with enter(self.lab.namespace(role)):
            opened = socket.socket(family_of(version), kind, protocol)
        opened.settimeout(PATIENCE)
        return opened

    def connect(self, role: str, version: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Connect to the VIP of this version."""
        opened = self.open(role, version, kind)
        opened.connect((VIP[version], PORT))
        return opened

    @contextmanager
    def listeners(self, version: int, kind: int, *roles: str) -> Iterator[list[socket.socket]]:
        """Sockets at the VIP in each real's namespace, or in those of `roles`; those of TCP listen."""
        with ExitStack() as leaving:
            sockets = []
            for role in roles or [real.name for real in self.lab.reals]:
                opened = leaving.enter_context(self.open(role, version, kind))
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                opened.bind((VIP[version], PORT))
                if kind == socket.SOCK_STREAM:
                    opened.listen()
                sockets.append(opened)
            yield sockets

    def forget_path_mtus(self) -> None:
        """Let the reals and the client forget what they have learned about the ways to others."""
        for role in ("client", *(real.name for real in self.lab.reals)):
            for version in ("-4", "-6"):
                self.lab.run(role, ["ip", version, "route", "flush", "cache"])


def first_ready(sockets: Sequence[socket.socket]) -> socket.socket:
    """The socket at which something comes first."""
    ready, _, _ = select.select(sockets, [], [], PATIENCE)
    assert ready, "nothing came to any real"
    found: socket.socket = ready[0]
    return found


@contextmanager
def open_balanced_lab(prefix: str, folder: Path) -> Iterator[BalancedLab]:
    """Build the lab, and let `nfcore decap` run on both reals. Daemons are started by who needs them."""
    with Lab(prefix, reals=2, nic=False) as lab:
        for process in [_start_decap(lab, real) for real in lab.reals]:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "ready: eth0: decapsulates" in line, line + process.stderr.read()
        _take_sent_frames(lab)
        daemons = Daemons(folder / "nf.sock", lab.enter("lb", []))
        try:
            yield BalancedLab(lab, folder, daemons)
        finally:
            daemons.kill_all()


def _take_sent_frames(lab: Lab) -> None:
    """Give gw's end of the balancer's link a program: without one, XDP_TX does not wake it. GRO alone is not enough."""
    with enter(lab.namespace("gw")), compile_program(BPF_SOURCES / "pass.c", "pass", defines={}, maps={}) as passing:
        attach_xdp(interface_index("net0"), passing, mode=XdpMode.NATIVE)


def _start_decap(lab: Lab, real: Real) -> subprocess.Popen[str]:
    return lab.popen(real.name, command_line("decap", "eth0", "--gue", str(GUE_PORT)), stderr=subprocess.PIPE)
