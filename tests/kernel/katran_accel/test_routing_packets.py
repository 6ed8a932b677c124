# SPDX-License-Identifier: Apache-2.0
"""Packets follow changes of server ids and source routes at run time from the moment that these are made."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from nfcore.api.steps import run_steps
from nfcore.plugins.katran_accel.entry_checks import SERVER_IDS, SOURCE_ROUTES, Kind
from nfcore.plugins.katran_accel.routing_changes import RoutingChange

from .world import CLIENT, NIC, World, open_world, sent_to, tcp

RING, B, C, NEW = "198.18.20.11", "198.18.20.12", "198.18.20.13", "198.18.20.99"
VIPS = f"""
[[katran_accel.vips]]
address = "198.18.10.1"
port = 443
protocol = "udp"
flags = ["quic"]
reals = [{{ address = "{RING}" }}]
[[katran_accel.vips]]
address = "198.18.10.2"
port = 80
protocol = "tcp"
flags = ["src_routing"]
reals = [{{ address = "{RING}" }}]
[[katran_accel.server_ids]]
id = 1001
real = "{B}"
"""


class Routed:
    """A balancer, and flows that it has not seen."""

    def __init__(self, world: World) -> None:
        self._world, self._ports = world, count(2000)

    def change(self, kind: Kind, **parameters: Any) -> None:
        change = RoutingChange(kind, parameters, self._world.balancer.table, "test")
        run_steps(self._world.balancer.change_routing(change.apply))

    def by_ids(self, *ids: int) -> list[str]:
        """The reals to which packets with these ids are sent: QUIC's short header, connection ids of version 2."""
        udp = [UDP(sport=next(self._ports), dport=443) / Raw(b"\x40\x80" + each.to_bytes(3, "big") * 8) for each in ids]
        frames = [bytes(Ether(src=CLIENT, dst=NIC) / IP(src="198.18.1.2", dst="198.18.10.1") / each) for each in udp]
        return [sent_to(self._world.send(frame)) for frame in frames]

    def from_clients(self, *clients: str) -> list[str]:
        """The reals to which new flows of clients are sent."""
        frames = [tcp(client, "198.18.10.2", sport=next(self._ports)) for client in clients]
        return [sent_to(self._world.send(frame)) for frame in frames]


@pytest.fixture
def routed(tmp_path: Path) -> Iterator[Routed]:
    with open_world(tmp_path, vips=VIPS, offload="min_packets = 32767") as world:
        yield Routed(world)


def test_server_ids(routed: Routed) -> None:
    assert routed.by_ids(1001, 1002) == [B, RING]
    routed.change(SERVER_IDS, add=[{"id": 1002, "real": C}, {"id": 1003, "real": NEW}])
    assert routed.by_ids(1001, 1002, 1003) == [B, C, NEW]
    routed.change(SERVER_IDS, invalidate=[1001, 1003])
    assert routed.by_ids(1001, 1002, 1003) == [RING, C, RING]
    routed.change(SERVER_IDS, restore=[1001, 1003])
    assert routed.by_ids(1001, 1002, 1003) == [B, C, NEW]
    routed.change(SERVER_IDS, remove=[1003])
    assert routed.by_ids(1001, 1002, 1003) == [B, C, RING]


def test_source_routes(routed: Routed) -> None:
    clients = ("198.18.7.1", "198.18.7.9", "198.18.8.1")
    assert routed.from_clients(*clients) == [RING, RING, RING]
    routed.change(SOURCE_ROUTES, add=[{"prefix": "198.18.7.0/24", "real": C}, {"prefix": "198.18.7.9", "real": NEW}])
    assert routed.from_clients(*clients) == [C, NEW, RING]
    routed.change(SOURCE_ROUTES, replace=True, add=[{"prefix": "198.18.8.0/24", "real": B}])
    assert routed.from_clients(*clients) == [RING, RING, B]
