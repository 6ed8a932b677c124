# SPDX-License-Identifier: Apache-2.0
"""Next hops as the kernel would forward, neighbours, ports, and what the monitor notices; on a network of two links."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator

import pytest

from nfcore.kernel.links import ports_of, read_link
from nfcore.kernel.network_monitor import NetworkMonitor
from nfcore.kernel.routes import Address, NextHop, NoRouteError, RouteReader
from tests.kernel.network import enter, ip, namespaces
from tests.waiting import eventually

NAMESPACE = f"nftest-routes-{os.getpid()}"
REAL, SIX = "198.18.20.11", "2001:db8:20::11"


@pytest.fixture(scope="module")
def links() -> Iterator[tuple[int, int]]:
    """ifindexes of eth1 and eth2 in a namespace of their own; each has addresses of both families."""
    with namespaces(NAMESPACE):
        for number in (1, 2):
            name = f"eth{number}"
            ip(NAMESPACE, "link", "add", name, "type", "veth", "peer", f"net{number}")
            for end in (name, f"net{number}"):
                ip(NAMESPACE, "link", "set", end, "addrgenmode", "none", "up")
            ip(NAMESPACE, "address", "add", f"198.18.{number}.2/24", "dev", name)
            ip(NAMESPACE, "address", "add", f"2001:db8:{number}::2/64", "dev", name, "nodad")
        with enter(NAMESPACE):
            yield socket.if_nametoindex("eth1"), socket.if_nametoindex("eth2")


@pytest.fixture
def changes() -> Iterator[list[str]]:
    """Commands of `ip` that a test makes by :func:`do`, to be undone."""
    done: list[str] = []
    yield done
    for command in reversed(done):
        words = command.replace(" add ", " del ").split()
        ip(NAMESPACE, *(words[:4] if words[0] == "nexthop" else words))


def do(changes: list[str], *commands: str) -> None:
    for command in commands:
        ip(NAMESPACE, *command.split())
        changes.append(command)


def address(text: str) -> Address:
    return ipaddress.ip_address(text)


def next_hop(destination: str, ifindex: int) -> str:
    """The next hop as text: its address, and whether it is a gateway; or why there is none."""
    with enter(NAMESPACE), RouteReader() as reader:
        try:
            found = reader.next_hop(address(destination), ifindex)
        except NoRouteError as error:
            return str(error)
    assert found.ifindex == ifindex
    return f"{'via' if found.gateway else 'link'} {found.address}"


@pytest.mark.parametrize(
    ("commands", "destination", "expected"),
    [
        ((), "198.18.1.77", "link 198.18.1.77"),
        ((), "2001:db8:1::77", "link 2001:db8:1::77"),
        ((), REAL, "No route to host"),
        ((), SIX, "Network is unreachable"),
        ((), "198.18.1.2", "it is an address of this machine"),
        ((), "198.18.1.255", "it is a broadcast address"),
        ((), "198.18.2.77", "it leaves by another interface"),
        (("route add default via 198.18.1.1",), REAL, "via 198.18.1.1"),
        (("route add default via 2001:db8:1::1",), SIX, "via 2001:db8:1::1"),
        (("route add default via fe80::1 dev eth1",), SIX, "via fe80::1"),
        (("route add 198.18.20.0/24 via inet6 2001:db8:1::1 dev eth1",), REAL, "via 2001:db8:1::1"),
        (("nexthop add id 7 via 198.18.1.7 dev eth1", "route add 198.18.20.0/24 nhid 7"), REAL, "via 198.18.1.7"),
        (("rule add to 198.18.20.0/24 table 99", "route add default via 198.18.1.9 table 99"), REAL, "via 198.18.1.9"),
        (("route add default via 198.18.2.1", "route add default via 198.18.1.1 metric 9"), REAL, "via 198.18.1.1"),
        (("route add blackhole 198.18.20.0/24",), REAL, "No route to host"),
    ],
)
def test_the_next_hop_is_the_kernels(
    links: tuple[int, int], changes: list[str], commands: tuple[str, ...], destination: str, expected: str
) -> None:
    do(changes, *commands)
    assert next_hop(destination, links[0]) == expected


def test_of_several_next_hops_the_kernels_own_choice_counts(links: tuple[int, int], changes: list[str]) -> None:
    do(changes, "route add 198.18.20.0/24 nexthop via 198.18.1.1 dev eth1 nexthop via 198.18.1.3 dev eth1")
    chosen = set()
    for last in range(1, 33):
        destination = f"198.18.20.{last}"
        found = next_hop(destination, links[0])
        assert found.split()[1] in ip(NAMESPACE, "route", "get", destination)
        chosen.add(found)
    assert chosen == {"via 198.18.1.1", "via 198.18.1.3"}


def test_a_neighbour_is_asked_and_an_administrators_entry_left_alone(links: tuple[int, int]) -> None:
    with enter(NAMESPACE), RouteReader() as reader:
        gateway = address("198.18.1.99")
        assert reader.neighbour(gateway, links[0]).mac is None
        assert reader.resolve(gateway, links[0])
        assert eventually(lambda: reader.neighbour(gateway, links[0]).failed, 20)
        ip(NAMESPACE, *["neighbour", "replace", "198.18.1.99", "lladdr", "02:00:5e:00:00:09", "dev", "eth1"])
        found = reader.neighbour(gateway, links[0])
        assert (found.mac, found.fixed, found.failed) == (bytes.fromhex("02005e000009"), True, False)


@pytest.mark.parametrize("kind", ["extern_learn", "managed"])
def test_the_entry_of_another_program_is_left_alone(links: tuple[int, int], kind: str) -> None:
    given = f"neighbour replace 198.18.1.98 lladdr 02:00:5e:00:00:09 dev eth1 {kind}"
    ip(NAMESPACE, *given.split(), *(("nud", "stale") if kind == "extern_learn" else ()))
    with enter(NAMESPACE), RouteReader() as reader:
        assert reader.neighbour(address("198.18.1.98"), links[0]).fixed
    ip(NAMESPACE, *["neighbour", "del", "198.18.1.98", "dev", "eth1"])


def test_ports_are_found_by_their_master(links: tuple[int, int]) -> None:
    ip(NAMESPACE, "link", "add", "br0", "type", "bridge")
    ip(NAMESPACE, "link", "set", "net1", "master", "br0")
    try:
        with enter(NAMESPACE):
            bridge = read_link(socket.if_nametoindex("br0"))
            assert bridge is not None and (bridge.kind, bridge.is_aggregate) == ("bridge", False)
            assert [port.name for port in ports_of(bridge.ifindex)] == ["net1"]
            assert read_link(9999) is None
    finally:
        ip(NAMESPACE, "link", "del", "br0")


@pytest.mark.parametrize(
    "command",
    [
        "route add 198.18.30.0/24 via 198.18.1.1",
        "route add 2001:db8:30::/64 via 2001:db8:1::1",
        "rule add to 198.18.30.0/24 table 98",
        "-6 rule add to 2001:db8:30::/64 table 98",
        "address add 198.18.1.3/24 dev eth1",
        "address add 2001:db8:1::3/64 dev eth1 nodad",
        "nexthop add id 8 via 198.18.1.8 dev eth1",
        "neighbour add 198.18.1.8 lladdr 02:00:5e:00:00:08 dev eth1",
        "link add eth3 type veth peer net3",
    ],
)
def test_each_kind_of_change_is_noticed(links: tuple[int, int], changes: list[str], command: str) -> None:
    with enter(NAMESPACE), NetworkMonitor([links[0]]) as monitor:
        monitor.poll()
        do(changes, command)
        assert eventually(monitor.poll, 5)


def test_neighbours_elsewhere_are_no_change_and_a_full_buffer_is_one(
    links: tuple[int, int], changes: list[str]
) -> None:
    with enter(NAMESPACE), NetworkMonitor([links[0]], buffer=1) as monitor:
        monitor.poll()
        do(changes, "neighbour add 198.18.2.8 lladdr 02:00:5e:00:00:08 dev eth2")
        assert not monitor.poll()
        for number in range(64):
            do(changes, f"neighbour add 198.18.2.{number + 10} lladdr 02:00:5e:00:00:08 dev eth2")
        assert monitor.poll(), "the kernel could not tell of all: something may have changed"
        assert not monitor.poll()


def test_the_answer_is_for_the_interface_that_was_asked_for(links: tuple[int, int], changes: list[str]) -> None:
    do(changes, "route add default via 198.18.1.1", "route add default via 198.18.2.1 metric 9")
    with enter(NAMESPACE), RouteReader() as reader:
        found = [reader.next_hop(address(REAL), ifindex) for ifindex in links]
    assert found == [
        NextHop(ifindex, address(f"198.18.{number}.1"), gateway=True) for number, ifindex in enumerate(links, 1)
    ]
