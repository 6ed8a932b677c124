# SPDX-License-Identifier: Apache-2.0
"""Path MTU discovery behind the VIPs: a download over a narrow link, and clients that send what is too long.

::

    home ── client: a router here ──1400── gw ══ lb, real1, real2
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

import pytest

from tests.kernel.network import ip, namespaces
from tests.kernel.site import PATIENCE, eventually

from .balanced_lab import (
    BOTH_VERSIONS,
    ENCAPSULATIONS,
    BalancedLab,
    first_ready,
    forbid_fragments,
    open_balanced_lab,
    path_mtu,
)

HOME, HOME_GATEWAY = {4: "198.18.3.2", 6: "2001:db8:3::2"}, {4: "198.18.3.1", 6: "2001:db8:3::1"}
NARROW = 1400
BALANCED = 1340
"""Bytes that `mtu` says."""
DOWNLOAD, UPLOAD = 10_000_000, 100_000
TCP_RETRANSMITS = 2
"""Offset in struct tcp_info: how often the timer has sent the oldest segment again, in vain."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BalancedLab]:
    with (
        open_balanced_lab("nfpm-", tmp_path_factory.mktemp("path-mtu")) as opened,
        namespaces(opened.lab.namespace("home")),
    ):
        _add_home(opened)
        yield opened


def _add_home(world: BalancedLab) -> None:
    """Put a host behind the lab's client, which becomes a router, and make the link between client and gw narrow."""
    lab = world.lab
    home, client, gw = (lab.namespace(role) for role in ("home", "client", "gw"))
    ip(client, "link", "add", "home", "type", "veth", "peer", "name", "eth0", "netns", home)
    lab.run("client", ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    for namespace, name in ((client, "home"), (home, "eth0"), (home, "lo")):
        ip(namespace, "link", "set", name, "up")
    for role, name in (("client", "home"), ("home", "eth0")):
        # Unfinished checksums must not reach the balancer.
        lab.run(role, ["ethtool", "-K", name, "tx", "off", "tso", "off", "gso", "off"])
    for version, length in ((4, 24), (6, 64)):
        nodad = ["nodad"] if version == 6 else []
        ip(client, "address", "add", f"{HOME_GATEWAY[version]}/{length}", "dev", "home", *nodad)
        ip(home, "address", "add", f"{HOME[version]}/{length}", "dev", "eth0", *nodad)
        ip(home, f"-{version}", "route", "add", "default", "via", HOME_GATEWAY[version])
    ip(gw, "route", "add", "198.18.3.0/24", "via", "198.18.1.2", "dev", "client")
    ip(gw, "route", "add", "2001:db8:3::/64", "via", "2001:db8:1::2", "dev", "client")
    ip(client, "link", "set", "eth0", "mtu", str(NARROW))
    ip(gw, "link", "set", "client", "mtu", str(NARROW))


class Download:
    """A download over a VIP, whose real sends with DF; both ends are looked at from here."""

    def __init__(self, world: BalancedLab, version: int) -> None:
        with world.listeners(version, socket.SOCK_STREAM) as listeners:
            self.client = world.connect("home", version)
            self.server, _ = first_ready(listeners).accept()
        self.mtu_before = path_mtu(self.server)
        self.server.settimeout(PATIENCE)
        self._sending = threading.Thread(target=self._send, daemon=True)
        self._sending.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()
        with suppress(OSError):  # it has ended
            self.server.shutdown(socket.SHUT_RDWR)
        self._sending.join()
        self.server.close()

    def _send(self) -> None:
        with suppress(OSError):  # the test has closed it: what came through is what counts
            self.server.sendall(bytes(DOWNLOAD))
            self.server.shutdown(socket.SHUT_WR)

    def read(self) -> int:
        """Read to the end; how many bytes came."""
        received = 0
        while data := self.client.recv(1 << 16):
            received += len(data)
        return received

    def retransmits(self) -> int:
        return self.server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[TCP_RETRANSMITS]


@BOTH_VERSIONS
@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
def test_a_download_over_a_narrow_link_finishes(world: BalancedLab, encapsulation: str, version: int) -> None:
    with world.daemons.running(world.config(ENCAPSULATIONS[encapsulation])):
        world.forget_path_mtus()
        with Download(world, version) as download:
            assert download.mtu_before > NARROW
            assert download.read() == DOWNLOAD
            assert path_mtu(download.server) == NARROW


@BOTH_VERSIONS
def test_without_icmp_the_real_never_learns_of_it(world: BalancedLab, version: int) -> None:
    with world.daemons.running(world.config("icmp = false")):
        world.forget_path_mtus()
        with Download(world, version) as download:
            assert eventually(lambda: download.retransmits() >= 3)
            assert path_mtu(download.server) == download.mtu_before
            download.client.setblocking(False)
            with pytest.raises(BlockingIOError):
                download.client.recv(1)
        # The errors ended in the balancer's own stack.
        assert world.daemons.metric("nfcore_verdicts_total", verdict="pass") > 0


@BOTH_VERSIONS
@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
def test_clients_learn_how_long_their_packets_may_be(world: BalancedLab, encapsulation: str, version: int) -> None:
    mtu = f'too_big = "answer"\nmtu = {BALANCED}\n{ENCAPSULATIONS[encapsulation]}'
    with world.daemons.running(world.config(mtu, protocol="udp")):
        world.forget_path_mtus()
        with (
            world.listeners(version, socket.SOCK_DGRAM) as listeners,
            world.connect("client", version, socket.SOCK_DGRAM) as client,
        ):
            forbid_fragments(client)
            assert path_mtu(client) == NARROW
            headers = {4: 28, 6: 48}[version]
            client.send(bytes(NARROW - headers))
            assert eventually(lambda: path_mtu(client) == BALANCED)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
            with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
                client.send(bytes(BALANCED - headers + 1))
            client.send(bytes(BALANCED - headers))
            assert len(first_ready(listeners).recv(NARROW)) == BALANCED - headers
        # The answer and the packet that is short enough.
        assert world.daemons.metric("nfcore_verdicts_total", verdict="tx") == 2


@BOTH_VERSIONS
def test_an_upload_in_segments_that_are_too_long_finishes(world: BalancedLab, version: int) -> None:
    with world.daemons.running(world.config(f'too_big = "answer"\nmtu = {BALANCED}')):
        world.forget_path_mtus()
        with world.listeners(version, socket.SOCK_STREAM) as listeners, world.connect("client", version) as client:
            server, _ = first_ready(listeners).accept()
            with server:
                server.settimeout(PATIENCE)
                client.sendall(bytes(UPLOAD))
                client.shutdown(socket.SHUT_WR)
                received = 0
                while data := server.recv(1 << 16):
                    received += len(data)
            assert received == UPLOAD
            assert path_mtu(client) == BALANCED
