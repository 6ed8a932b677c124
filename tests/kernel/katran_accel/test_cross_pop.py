# SPDX-License-Identifier: Apache-2.0
"""Packets that another balancer has sent in a tunnel are balanced here, by the program of a killed daemon, too."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from nfcore.kernel import attached_xdp, interface_index
from tests.kernel.network import enter, send_frame
from tests.kernel.site import command_line

from .balanced_lab import BOTH_VERSIONS, CLIENT, GUE_PORT, PORT, VIP, BalancedLab, first_ready, open_balanced_lab

ENDS = {4: "198.18.2.9", 6: "2001:db8:2::9"}
"""Where the tunnels end: addresses of no interface."""
EGRESS = {4: "198.18.2.10", 6: "2001:db8:2::10"}
OTHERS = {4: "198.18.2.77", 6: "2001:db8:2::77"}
"""Of the other balancer."""
DECAP = f"""
[katran_accel.decap]
ipip = true
gue = true
addresses = [
  {{ address = "{ENDS[4]}" }},
  {{ address = "{ENDS[6]}" }},
  {{ address = "{EGRESS[4]}", egress = true }},
  {{ address = "{EGRESS[6]}", egress = true }},
]
"""
_numbers = count()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BalancedLab]:
    with open_balanced_lab("nfxp-", tmp_path_factory.mktemp("cross-pop")) as opened:
        yield opened


def ip_header(version: int, source: str, destination: str) -> Packet:
    return IP(src=source, dst=destination) if version == 4 else IPv6(src=source, dst=destination)


def query(version: int) -> tuple[Packet, bytes]:
    """A client's datagram to the VIP, and what is in it: no two are alike, and each is of a flow of its own."""
    number = next(_numbers)
    data = f"query {number}".encode()
    udp = UDP(sport=20_000 + number, dport=PORT)
    return ip_header(version, CLIENT[version], VIP[version]) / udp / data, data


def tunnelled(kind: str, outer: int, end: str, inner: Packet) -> Packet:
    """A packet as the other balancer sends it."""
    header = ip_header(outer, OTHERS[outer], end)
    return header / inner if kind == "ipip" else header / UDP(sport=9000, dport=GUE_PORT, chksum=0) / inner


@contextmanager
def router(world: BalancedLab) -> Iterator[socket.socket]:
    """A packet socket at the router's end of the balancer's link."""
    with (
        enter(world.lab.namespace("gw")),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as opened,
    ):
        opened.bind(("net0", 3))
        opened.settimeout(30)
        yield opened


def send(world: BalancedLab, packet: Packet, link: socket.socket) -> None:
    ends = world.lab.end("gw", "net0").mac, world.lab.end("lb", "eth1").mac
    send_frame(link, bytes(Ether(src=ends[0], dst=ends[1]) / packet))


def crosses(world: BalancedLab, listeners: Sequence[socket.socket], kind: str, outer: int, version: int) -> None:
    """Send a client's datagram in a tunnel; it reaches a real."""
    inner, data = query(version)
    with router(world) as link:
        send(world, tunnelled(kind, outer, ENDS[outer], inner), link)
    received, sender = first_ready(listeners).recvfrom(100)
    assert (received, sender[0]) == (data, CLIENT[version])


def config(world: BalancedLab, katran: str = "") -> Path:
    return world.config(katran, protocol="udp", more=DECAP)


def pins(world: BalancedLab) -> list[Path]:
    return sorted(world.folder.glob("nf.sock.chain/subprograms_*"))


@BOTH_VERSIONS
def test_what_comes_in_a_tunnel_is_balanced(world: BalancedLab, version: int) -> None:
    with world.daemons.running(config(world)), world.listeners(version, socket.SOCK_DGRAM) as listeners:
        for kind in ("ipip", "gue"):
            for outer in (4, 6):
                crosses(world, listeners, kind, outer, version)
        assert world.daemons.metric("nfcore_verdicts_total", verdict="tx") == 4


@BOTH_VERSIONS
def test_at_the_egress_it_goes_back_to_where_it_came_from(world: BalancedLab, version: int) -> None:
    # To the client: the router forwards it.
    with (
        world.daemons.running(config(world)),
        world.open("client", version, socket.SOCK_DGRAM) as client,
        router(world) as link,
    ):
        client.bind((CLIENT[version], 9))
        answer = ip_header(version, VIP[version], CLIENT[version]) / UDP(sport=PORT, dport=9) / b"answer"
        for outer in (4, 6):
            send(world, tunnelled("gue", outer, EGRESS[outer], answer), link)
            received, sender = client.recvfrom(100)
            assert (received, sender[:2]) == (b"answer", (VIP[version], PORT))


@pytest.mark.parametrize("pinned", [False, True], ids=["unpinned", "pinned"])
def test_a_killed_daemons_program_goes_on(world: BalancedLab, pinned: bool) -> None:
    path = config(world, f'pin_dir = "{world.folder}/pins"' if pinned else "")
    with world.listeners(4, socket.SOCK_DGRAM) as listeners:
        daemon = world.daemons.start(path)
        crosses(world, listeners, "gue", 4, 4)
        daemon.kill()
        daemon.wait()
        (pin,) = pins(world)
        for kind in ("ipip", "gue"):
            crosses(world, listeners, kind, 4, 4)
        with world.daemons.running(path):
            crosses(world, listeners, "gue", 4, 4)
            (replaced,) = pins(world)
            assert replaced != pin
    assert not pin.parent.exists()
    world.lab.run("lb", [*command_line("cleanup", str(path))])


def test_cleanup_removes_what_a_killed_daemon_has_left(world: BalancedLab) -> None:
    path = config(world)
    daemon = world.daemons.start(path)
    daemon.kill()
    daemon.wait()
    (pin,) = pins(world)
    told = world.lab.run("lb", command_line("cleanup", str(path))).stdout
    assert f"katran_accel: removed pin {pin}" in told
    assert not pin.parent.exists()
    with enter(world.lab.namespace("lb")):
        assert attached_xdp(interface_index("eth1")) is None


def test_a_run_without_decapsulation_removes_the_pin_of_a_killed_one(world: BalancedLab) -> None:
    daemon = world.daemons.start(config(world))
    daemon.kill()
    daemon.wait()
    (pin,) = pins(world)
    with world.daemons.running(world.config("", protocol="udp")):
        assert not pin.parent.exists()
