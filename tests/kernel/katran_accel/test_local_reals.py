# SPDX-License-Identifier: Apache-2.0
"""A balancer that is a real itself: its own stack serves the flows that the ring gives to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from demo.lab import BALANCER4, BALANCER6
from tests.kernel.network import ip
from tests.kernel.site import PATIENCE

from .balanced_lab import BOTH_VERSIONS, VIP, BalancedLab, open_balanced_lab

LOCAL = {4: f'{{ address = "{BALANCER4}", local = true }}', 6: f'{{ address = "{BALANCER6}", local = true }}'}
ROLES = ("lb", "real1", "real2")
CONNECTIONS = 30


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BalancedLab]:
    with open_balanced_lab("nflr-", tmp_path_factory.mktemp("local-reals")) as opened:
        for vip in VIP.values():
            ip(opened.lab.namespace("lb"), "address", "add", vip, "dev", "lo")
        yield opened


@contextmanager
def telling_names(listeners: Sequence[socket.socket]) -> Iterator[None]:
    """Tell each client, at the listener of each role, this role's name."""

    def tell(listener: socket.socket, role: str) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # shut down: the test is over
            with client:
                client.settimeout(PATIENCE)
                client.sendall(role.encode())

    threads = [threading.Thread(target=tell, args=each) for each in zip(listeners, ROLES, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


@BOTH_VERSIONS
def test_the_hosts_own_stack_is_one_of_the_reals(world: BalancedLab, version: int) -> None:
    served = dict.fromkeys(ROLES, 0)
    with (
        world.daemons.running(world.config("", flags='"local"', others=LOCAL)),
        world.listeners(version, socket.SOCK_STREAM, *ROLES) as listeners,
        telling_names(listeners),
    ):
        for _ in range(CONNECTIONS):
            with world.connect("client", version) as client:
                served[client.recv(100).decode()] += 1
        assert sum(served.values()) == CONNECTIONS and all(served.values())
        counted = {
            role: world.daemons.metric("nfcore_real_packets_total", real=address)
            for role, address in zip(ROLES, _addresses(world, version), strict=True)
        }
        # Each connection has three packets of the client at least; all of them are counted for its real.
        assert all(counted[role] >= 3 * served[role] for role in ROLES)


def _addresses(world: BalancedLab, version: int) -> list[str]:
    own = BALANCER4 if version == 4 else BALANCER6
    return [own, *(world.address(real, version) for real in world.lab.reals)]
