# SPDX-License-Identifier: Apache-2.0
"""The program for health checks: a probe whose mark stands for a real goes to that real through the tunnel."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from .checksum import ipv4_header, ipv6_header
from .counters import Counters
from .features import Features
from .maps import Real, VipKey
from .packet import ETHERTYPES, IPIP, IPV6, UDP, Packet, Verdict, read_header, read_ip, read_link

STATS = "hc_stats_map"
TTL = 64
SPORT_BIT = 0x0400
"""Set in the outer source port of GUE; the other bits are random."""


@dataclass
class Healthcheck:
    """The program with its maps."""

    features: Features
    reals: dict[int, Real] = field(default_factory=dict)
    """Mark → real."""
    sources: dict[int, bytes] = field(default_factory=dict)
    """Family → source address of the outer header, 16 bytes."""
    source_mac: bytes = bytes(6)
    gateway_mac: bytes = bytes(6)
    keys: dict[VipKey, int] = field(default_factory=dict)
    """Destination → slot of `per_hckey_stats`."""
    by_source: dict[tuple[bytes, int], Real] = field(default_factory=dict)
    """Address and port of a probe → real, for HC_SRC_MATCH."""
    by_destination: dict[tuple[bytes, int], Real] = field(default_factory=dict)

    def step(self, frame: bytes, mark: int, sport: int = SPORT_BIT) -> tuple[Verdict, bytes, Counters]:
        """Send a probe on its way. `sport`: what was drawn for the outer source port of GUE."""
        counters = Counters()
        packet = read_ip(frame, self.features)
        real = (self.reals.get(mark) if mark else None) or self._matched(packet, counters)
        if real is None:
            counters.field(f"{STATS}.pckts_skipped")
            return Verdict.UNSPEC, frame, counters
        ip, family = read_link(frame, self.features)
        if family is None:
            counters.field(f"{STATS}.pckts_dropped")
            return Verdict.SHOT, frame, counters
        counters.field(f"{STATS}.pckts_processed")
        self._count_key(packet, counters)
        return Verdict.REDIRECT, self._encapsulate(frame, ip, family, real, sport), counters

    def _matched(self, packet: Packet | Verdict, counters: Counters) -> Real | None:
        """The real of a probe without a mark, by its addresses."""
        if isinstance(packet, Verdict) or not read_header(packet):
            return None
        for wanted, reals, address, port, name in (
            (self.features.healthcheck_dst_match, self.by_destination, packet.dst, packet.dport, "dst"),
            (self.features.healthcheck_src_match, self.by_source, packet.src, packet.sport, "src"),
        ):
            real = (reals.get((address, port)) or reals.get((address, 0))) if wanted else None
            if real:
                counters.field(f"{STATS}.pckts_{name}_matched")
                return real
        return None

    def _count_key(self, packet: Packet | Verdict, counters: Counters) -> None:
        if not isinstance(packet, Verdict) and read_header(packet):
            slot = self.keys.get(VipKey(packet.dst, packet.dport, packet.protocol))
            if slot is not None:
                counters.field(f"per_hckey_stats[{slot}]")

    def _encapsulate(self, frame: bytes, ip: int, inside: int, real: Real, sport: int) -> bytes:
        """`ip`, `inside`: offset and family of the probe's IP header."""
        family, length = 6 if real.v6 else 4, len(frame) - ip
        protocol, udp = IPIP if inside == 4 else IPV6, b""
        if self.features.encapsulation == "gue":
            protocol, udp = UDP, struct.pack(">HHHH", sport, self.features.gue_port, length + 8, 0)
        size = 4 if family == 4 else 16
        src, dst = self.sources.get(family, bytes(16))[:size], real.address[:size]
        if family == 4:
            outer = ipv4_header(0, 20 + len(udp) + length, TTL, protocol, src, dst)
        else:
            outer = ipv6_header(0, len(udp) + length, protocol, TTL, src, dst)
        kept = self.features.quirks.healthcheck_keeps_ethertype and inside == 6
        link = self.gateway_mac + self.source_mac + frame[12 : ip - 2] + ETHERTYPES[6 if kept else family]
        return link + outer + udp + frame[ip:]


def without_outer_sport(frame: bytes) -> bytes:
    """The frame of a probe in GUE with 0 as outer source port; frames without VLAN tags."""
    at = 34 if frame[12:14] == ETHERTYPES[4] else 54
    return frame[:at] + b"\0\0" + frame[at + 2 :]
