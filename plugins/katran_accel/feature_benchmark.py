# SPDX-License-Identifier: Apache-2.0
"""What optional features of the data plane cost: programs with one of them each, beside one that has none.

All rows have the packets, VIPs and reals of :mod:`.benchmark`, on one CPU and in the same rounds: what others are
compared with is `plain` without a mark, and `plain-marked` with one.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from socket import IPPROTO_TCP, IPPROTO_UDP

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import pack_address
from nfcore.api.marks import MarkMeaning
from nfcore.bench.baselines import Floors
from nfcore.bench.datapath import PacketCounters, Subject
from nfcore.bench.packet_source import FlowSource
from nfcore.bench.traffic import ACK, ETHERNET_BYTES, Family, ethernet, packet, tcp_header
from nfcore.bench.workload import BenchRequest
from nfcore.kernel import Map

from . import layouts as lay
from .balancer import Balancer
from .benchmark import (
    PAIRS,
    ExpectedReals,
    fill_connection_table,
    first_real,
    lru_size,
    make_table,
    open_balancer,
    publish_pairs,
    read_counters,
)
from .map_entries import write_entries

SOURCES = {"source_v4": "198.18.2.2", "source_v6": "2001:db8:2::2"}
TUNNEL_END: dict[Family, str] = {4: "198.18.2.9", 6: "2001:db8:2::9"}
OTHER_BALANCER: dict[Family, str] = {4: "198.18.2.10", 6: "2001:db8:2::10"}
CLIENTS: dict[Family, str] = {4: "198.19.0.0/16", 6: "2001:db8:19::/64"}
GUE_PORT = 6080
SERVER_ID = 1
UNLIMITED = 0xFFFF_FFFF
"""New flows a second: where each packet is one, Katran's limit would switch the feature off."""
Reals = Callable[[NDArray[np.uint32]], NDArray[np.uint8]]


@dataclass(frozen=True)
class _Feature:
    """A program, and the rows that are measured of it."""

    rows: tuple[tuple[str, str], ...]
    """Name of each row, and the packets that it is measured with: of :func:`_frame`."""
    keys: Mapping[str, object] = field(default_factory=dict)
    """Of its table."""
    flags: tuple[str, ...] = ()
    protocol: str = "tcp"
    known: bool = True
    """Whether each packet's flow is in the connection table. If not, it has no marks either."""
    to: str = "ring"
    """Where packets go: to the ring's choice, or to `one` real that the feature chooses. Empty: the bench cannot read
    what leaves."""


def _features(family: Family) -> Iterator[_Feature]:
    """All that are measured. Errors of ICMP are in every table, unless it says that they are not."""
    one = first_real(family)
    ids = {"server_ids": [{"id": SERVER_ID, "real": one}], "server_id_map": "hash"}
    ring = {"new_flow_limit": UNLIMITED}
    decap = {"gue": True, "addresses": [{"address": TUNNEL_END[family]}]}
    yield _Feature((("plain", "plain"),))
    yield _Feature((("icmp", "plain"),), {"icmp": True})
    yield _Feature((("gue", "plain"),), {"encapsulation": "gue", **SOURCES}, to="")
    yield _Feature((("vlan", "plain"), ("vlan-tag", "tag")), {"vlan": True}, to="")
    yield _Feature((("decap", "tunnel"),), {"decap": decap})
    yield _Feature((("tcp-server-id", "server-id"),), {"tcp_server_ids": True, **ids}, known=False, to="one")
    yield _Feature((("quic-id", "quic"),), ids, ("quic",), "udp", known=False, to="one")
    yield _Feature((("ring", "plain"),), ring, ("lru_bypass",), known=False)
    routes = [{"prefix": CLIENTS[family], "real": one}]
    yield _Feature(
        (("source-route", "plain"),),
        ring | {"source_routes": routes},
        ("lru_bypass", "src_routing"),
        known=False,
        to="one",
    )
    yield _Feature((("global-lru", "plain"),), {}, ("global_lru",), known=False)


MARKED = ("plain", "icmp", "gue", "vlan", "vlan-tag")
"""Rows that are measured with marks of dest-id, too."""


def _frame(family: Family, kind: str) -> tuple[bytes, int]:
    """The frame of a kind of packets, and where the flow's IP header is in it. `plain`: that of the bench's own."""
    tcp = packet(family, IPPROTO_TCP, tcp_header(ACK))
    if kind == "tag":
        link = ethernet(family)
        return link[:12] + struct.pack("!HH", 0x8100, 7) + link[12:] + tcp, ETHERNET_BYTES + 4
    if kind == "tunnel":
        udp = struct.pack("!HHHH", 9000, GUE_PORT, 8 + len(tcp), 0)
        ends = (ipaddress.ip_address(each[family]).packed for each in (OTHER_BALANCER, TUNNEL_END))
        frame = ethernet(family) + packet(family, IPPROTO_UDP, udp + tcp, *ends)
        return frame, len(frame) - len(tcp)
    if kind == "server-id":
        options = struct.pack("<BBBBI", 1, 1, 0xB7, 6, SERVER_ID)
        return ethernet(family) + packet(family, IPPROTO_TCP, tcp_header(ACK, options)), ETHERNET_BYTES
    if kind == "quic":
        # A short header, and an id of version 1: 16 bits behind the first two.
        payload = bytes([0x40]) + (1 << 22 | SERVER_ID << 6).to_bytes(3, "big") + bytes(14)
        udp = struct.pack("!HHHH", 0, 0, 8 + len(payload), 0)
        return ethernet(family) + packet(family, IPPROTO_UDP, udp + payload), ETHERNET_BYTES
    return b"", ETHERNET_BYTES


class _Packets:
    """The sources of packets, each opened once, with its floors."""

    def __init__(self, stack: ExitStack, expected: ExpectedReals, floors: Floors, flows: tuple[int, ...]) -> None:
        self._stack, self._expected, self._floors, self._flows = stack, expected, floors, flows
        self._sources: dict[tuple[str, int], FlowSource] = {}
        self.floors: list[Subject] = []

    def of(self, kind: str, marks: int) -> tuple[FlowSource, str]:
        """Give the source of a kind of packets and the name of its floor."""
        name = ("metadata" if marks else "head") + ("" if kind == "plain" else f"-{kind}")
        if (kind, marks) not in self._sources:
            frame, flow_at = _frame(self._expected.family, kind)
            source = FlowSource(
                self._expected.services, self._expected.family, marks=marks, frame=frame, flow_at=flow_at
            )
            self._sources[kind, marks] = self._stack.enter_context(source)
            program = self._floors.metadata if marks else self._floors.head
            self.floors.append(Subject(name, source, program, None, self._flows))
        return self._sources[kind, marks], name


@contextmanager
def feature_subjects(request: BenchRequest) -> Iterator[Sequence[Subject]]:
    """Open one program for each feature of one family, and the packets for it. The caller is pinned to the only CPU."""
    family, flows, (cpu,) = request.family, request.flows, request.cpus
    rows: list[Subject] = []
    with ExitStack() as stack:
        floors = stack.enter_context(Floors.open(family))
        expected: ExpectedReals | None = None
        for feature in _features(family):
            keys = {"icmp": False, **feature.keys}
            size = lru_size(max(flows))
            table = make_table(family, size, request.cpus, protocol=feature.protocol, flags=feature.flags, keys=keys)
            balancer = stack.enter_context(open_balancer(table, MarkMeaning.TARGET, PAIRS))
            if expected is None:
                # VIPs and reals have the same numbers in all of them.
                expected = ExpectedReals(family, table, balancer, max(flows))
                packets = _Packets(stack, expected, floors, flows)
            if feature.known:
                fill_connection_table(balancer, expected, cpu)
                publish_pairs(balancer)
            if "global_lru" in feature.flags:
                _fill_global_table(stack, balancer, expected, cpu)
            rows += _subjects(feature, balancer, expected, packets, flows)
        yield [*packets.floors, *rows]


def _subjects(
    feature: _Feature, balancer: Balancer, expected: ExpectedReals, packets: _Packets, flows: tuple[int, ...]
) -> Iterator[Subject]:
    count = partial(_read_counters, balancer)
    for row, kind in feature.rows:
        source, floor = packets.of(kind, 0)
        reals = _reals(feature, expected) if feature.to else None
        yield Subject(row, source, balancer.program, floor, flows, reals, count, known=feature.known)
        if row in MARKED:
            source, floor = packets.of(kind, PAIRS)
            marked = expected.marked_addresses if feature.to else None
            yield Subject(f"{row}-marked", source, balancer.program, floor, flows, marked, count, fast=True)


def _reals(feature: _Feature, expected: ExpectedReals) -> Reals:
    if feature.to == "ring":
        return expected.addresses
    one = np.frombuffer(pack_address(ipaddress.ip_address(first_real(expected.family))), np.uint8)
    return lambda flows: np.tile(one, (len(flows), 1))


def _fill_global_table(stack: ExitStack, balancer: Balancer, expected: ExpectedReals, cpu: int) -> None:
    """Give a CPU the table of flows of other hosts."""
    outer = balancer.maps["global_lru_maps"]
    assert outer.spec.inner is not None  # features.py gave it
    inner = stack.enter_context(Map.create(outer.spec.inner))
    write_entries(inner, expected.keys, expected.real_numbers.astype(np.uint32))
    outer.update(cpu, inner)


def _read_counters(balancer: Balancer) -> PacketCounters:
    """As :func:`.benchmark.read_counters`; what came in a tunnel, which the program counts twice, is counted once."""
    counters = read_counters(balancer)
    inside = balancer.maps["stats"].read_slice(lay.StatsSlot.CROSS_POP, 1)
    return replace(counters, packets=counters.packets - int(inside["v1"].sum() + inside["v2"].sum()))
