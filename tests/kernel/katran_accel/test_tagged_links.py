# SPDX-License-Identifier: Apache-2.0
"""A balancer whose link has VLAN tags: packets to it and from it carry them, one tag or two.

::

    client ── gw: net0 ══ 802.1Q, or 802.1ad and 802.1Q ══ eth1 [nfcore run]
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from nfcore.kernel import (
    TcProgram,
    XdpMode,
    attach_egress,
    attach_xdp,
    attached_xdp,
    compile_as,
    compile_program,
    interface_index,
)
from tests.kernel.network import enter
from tests.kernel.site import PATIENCE, eventually
from tests.paths import PROGRAMS

from .balanced_lab import (
    BOTH_VERSIONS,
    ENCAPSULATIONS,
    BalancedLab,
    first_ready,
    forbid_fragments,
    open_balanced_lab,
    path_mtu,
)
from .ping import ping

TAGS: dict[str, dict[str, int | str]] = {"dot1q": {"INNER": 7}, "qinq": {"INNER": 7, "OUTER": 100}}
UPLOAD = os.urandom(200_000)
MTU = 1400
HEADERS = {4: 28, 6: 48}
"""Of IP and UDP, in bytes."""


@pytest.fixture(scope="module", params=TAGS.values(), ids=TAGS.keys())
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BalancedLab]:
    with open_balanced_lab("nftl-", tmp_path_factory.mktemp("tagged")) as opened:
        _tag_link(opened, request.param)
        yield opened


def _tag_link(world: BalancedLab, tags: dict[str, int | str]) -> None:
    """Let frames from gw to the balancer have these tags, and those back, too: gw drops all others."""
    # The tag is in the frame, and not beside it: XDP sees it.
    world.lab.run("gw", ["ethtool", "-K", "net0", "txvlan", "off", "tx-vlan-stag-hw-insert", "off"])
    source = PROGRAMS / "tagged_link.c"
    with (
        enter(world.lab.namespace("gw")),
        compile_as(TcProgram, source, "tag", defines=tags, maps={}) as tag,
        compile_program(source, "untag", defines=tags, maps={}) as untag,
    ):
        index = interface_index("net0")
        attach_egress(index, tag, 1)
        before = attached_xdp(index)
        attach_xdp(index, untag, mode=XdpMode.NATIVE, replace=before.id if before else None)


@BOTH_VERSIONS
@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
def test_connections_and_echo_requests_are_answered(world: BalancedLab, encapsulation: str, version: int) -> None:
    with world.daemons.running(world.config(f"vlan = true\n{ENCAPSULATIONS[encapsulation]}")):
        with world.listeners(version, socket.SOCK_STREAM) as listeners, world.connect("client", version) as client:
            server, _ = first_ready(listeners).accept()
            with server:
                server.settimeout(PATIENCE)
                client.sendall(UPLOAD)
                client.shutdown(socket.SHUT_WR)
                assert b"".join(iter(lambda: server.recv(1 << 16), b"")) == UPLOAD
        assert ping(world, version, b"tagged") == (1, b"tagged")


@BOTH_VERSIONS
def test_the_client_is_told_the_mtu(world: BalancedLab, version: int) -> None:
    keys = f'vlan = true\ntoo_big = "answer"\nmtu = {MTU}'
    with (
        world.daemons.running(world.config(keys, protocol="udp")),
        world.listeners(version, socket.SOCK_DGRAM) as listeners,
        world.connect("client", version, socket.SOCK_DGRAM) as client,
    ):
        world.forget_path_mtus()
        forbid_fragments(client)
        client.send(bytes(MTU + 1 - HEADERS[version]))
        assert eventually(lambda: path_mtu(client) == MTU)
        client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        # The tags do not count.
        client.send(bytes(MTU - HEADERS[version]))
        assert len(first_ready(listeners).recv(2 * MTU)) == MTU - HEADERS[version]


def test_without_the_key_tagged_frames_are_the_stacks(world: BalancedLab) -> None:
    with (
        world.daemons.running(world.config("", protocol="udp")),
        world.connect("client", 4, socket.SOCK_DGRAM) as client,
    ):
        client.send(b"lost")
        assert eventually(lambda: world.daemons.metric("nfcore_verdicts_total", verdict="pass") >= 1)
        assert world.daemons.metric("nfcore_verdicts_total", verdict="tx") == 0
