# SPDX-License-Identifier: Apache-2.0
"""The maps: what a control plane writes, and what the programs remember. Addresses are 16 bytes, IPv4's first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import NamedTuple

MAX_REALS = 4096
SERVER_IDS = 16_777_214


class VipFlag(IntFlag):
    """Flags of a VIP."""

    HASH_NO_SRC_PORT = 1
    LRU_BYPASS = 2
    QUIC = 4
    HASH_DPORT_ONLY = 8
    SOURCE_ROUTING = 16
    LOCAL = 32
    GLOBAL_LRU = 64
    HASH_SRC_DST_PORT = 128
    UDP_STABLE_ROUTING = 256
    UDP_MIGRATION = 512


class VipKey(NamedTuple):
    """A destination: `vip_definition`."""

    address: bytes
    port: int
    protocol: int


class Vip(NamedTuple):
    """`vip_meta`."""

    flags: int
    number: int
    family: int
    """What Katran's maps do not say: 4 or 6."""


class Real(NamedTuple):
    """`real_definition`."""

    address: bytes
    v6: bool
    local: bool = False


class FlowKey(NamedTuple):
    """`flow_key`."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    protocol: int
    family: int = 0
    """4 or 6, where keys of both families are told apart."""


def padded(address: str) -> bytes:
    """An address as in the maps."""
    return ip_address(address).packed.ljust(16, b"\0")


class Prefix(NamedTuple):
    """Key of a prefix map: the first `bits` bits of an address count."""

    family: int
    value: int
    bits: int

    @classmethod
    def of(cls, network: IPv4Network | IPv6Network) -> Prefix:
        """A prefix as in the maps."""
        address = network.network_address.packed.ljust(16, b"\0")
        value = int.from_bytes(address, "big") >> (128 - network.prefixlen)
        return cls(network.version, value, network.prefixlen)

    def has(self, address: bytes) -> bool:
        """Whether an address of 16 bytes lies in it."""
        return int.from_bytes(address, "big") >> (128 - self.bits) == self.value


@dataclass
class Maps:
    """What the control plane writes."""

    gateway_mac: bytes = bytes(6)
    sources: dict[int, bytes] = field(default_factory=dict)
    """`pckt_srcs`: family → own address in GUE's outer headers."""
    vips: dict[VipKey, Vip] = field(default_factory=dict)
    prefix_vips: dict[tuple[Prefix, int, int], Vip] = field(default_factory=dict)
    """Prefix, port and protocol → VIP."""
    reals: dict[int, Real] = field(default_factory=dict)
    rings: dict[int, Sequence[int]] = field(default_factory=dict)
    """Number of a VIP → its ring; none: all slots 0."""
    server_ids: dict[int, int] = field(default_factory=dict)
    source_routes: dict[int, dict[Prefix, int]] = field(default_factory=lambda: {4: {}, 6: {}})
    """Family → prefix → number of a real."""
    decap_addresses: dict[tuple[bytes, int], int] = field(default_factory=dict)
    """Address and family → flags."""
    down_reals: dict[VipKey, set[int]] = field(default_factory=dict)
    vip_of_misses: VipKey | None = None
    """`vip_miss_stats`: the VIP whose misses are counted by real."""
    global_lrus: dict[int, Mapping[FlowKey, int]] = field(default_factory=dict)
    """CPU → flow → number of a real."""
    fallback_global_lru: dict[FlowKey, int] = field(default_factory=dict)
    lru_cpus: frozenset[int] = frozenset()
    """CPUs with a connection table of their own."""
    introspection: bool = False

    def real(self, number: int) -> Real | None:
        """The real of a number."""
        return self.reals.get(number) if number < MAX_REALS else None

    def decap_flags(self, address: bytes, family: int, shared: bool) -> int | None:
        """Flags of an address that tunnels end at; None: it is none. `shared`: by its bytes, whatever the family."""
        other = self.decap_addresses.get((address, 10 - family)) if shared else None
        return self.decap_addresses.get((address, family), other)

    def server_id(self, server: int, hashed: bool) -> int | None:
        """Number of the real of a server id, 0 for none; None: the map has no such index."""
        if hashed:
            return self.server_ids.get(server)
        return self.server_ids.get(server, 0) if server < SERVER_IDS else None


@dataclass
class Connection:
    """An entry of a connection table."""

    real: int
    atime: int
    """Nanoseconds."""


@dataclass
class Memory:
    """What the programs remember from frame to frame."""

    tables: dict[int, dict[FlowKey, Connection]] = field(default_factory=dict)
    """CPU → its connections, -1: those of CPUs without a table of their own."""
    windows: dict[int, tuple[int, int]] = field(default_factory=dict)
    """CPU → new flows in the running second, and its start in nanoseconds: `stats[514]`."""
    last_invalid_id: int = 0
    """A sample in `quic_stats_map`."""
