# SPDX-License-Identifier: Apache-2.0
"""What a client's kernel sends beside whole packets of a flow: echo requests, and the fragments of a long datagram."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from tests.kernel.site import eventually

from .balanced_lab import BOTH_VERSIONS, CLIENT, ENCAPSULATIONS, BalancedLab, first_ready, open_balanced_lab
from .ping import ping

LONG = 4000
DATAGRAMS = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BalancedLab]:
    with open_balanced_lab("nfsl-", tmp_path_factory.mktemp("stateless")) as opened:
        yield opened


@BOTH_VERSIONS
@pytest.mark.parametrize("data", [b"", b"odd", os.urandom(1400)], ids=["empty", "odd", "long"])
def test_echo_requests_to_a_vip_are_answered(world: BalancedLab, version: int, data: bytes) -> None:
    with world.daemons.running(world.config("")):
        for number in range(3):
            assert ping(world, version, data, number) == (number, data)
        # By the program: no host of the lab that has the VIP's address got anything.
        assert world.daemons.metric("nfcore_verdicts_total", verdict="tx") == 3


@BOTH_VERSIONS
@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
def test_all_fragments_of_a_datagram_reach_one_real(world: BalancedLab, version: int, encapsulation: str) -> None:
    keys = f'fragments = "hash-addresses"\n{ENCAPSULATIONS[encapsulation]}'
    with (
        world.daemons.running(world.config(keys, protocol="udp")),
        world.listeners(version, socket.SOCK_DGRAM) as listeners,
    ):
        reals = set()
        for _ in range(DATAGRAMS):
            # From another port each time: for whole packets the ring would choose different reals.
            with world.connect("client", version, socket.SOCK_DGRAM) as client:
                sent = os.urandom(LONG)
                client.send(sent)
                real = first_ready(listeners)
                received, sender = real.recvfrom(2 * LONG)
            assert (received, sender[0]) == (sent, CLIENT[version])
            reals.add(real)
        assert len(reals) == 1
        assert world.daemons.metric("nfcore_drops_total", reason="malformed") == 0


@BOTH_VERSIONS
def test_fragments_are_dropped_and_counted_by_default(world: BalancedLab, version: int) -> None:
    with (
        world.daemons.running(world.config("", protocol="udp")),
        world.listeners(version, socket.SOCK_DGRAM) as listeners,
        world.connect("client", version, socket.SOCK_DGRAM) as client,
    ):
        client.send(bytes(LONG))
        assert eventually(lambda: world.daemons.metric("nfcore_drops_total", reason="malformed") == 3)
        client.send(b"whole")
        assert first_ready(listeners).recv(2 * LONG) == b"whole"
