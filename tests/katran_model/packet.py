# SPDX-License-Identifier: Apache-2.0
"""From a frame to its headers: Ethernet, perhaps VLAN tags, IPv4 or IPv6, TCP or UDP."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .features import Features
from .maps import FlowKey

ICMP, IPIP, TCP, UDP, IPV6, FRAGMENT, ICMPV6 = 1, 4, 6, 17, 41, 44, 58
ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
FAMILIES = {ethertype: family for family, ethertype in ETHERTYPES.items()}
IP_HEADER = {4: 20, 6: 40}
L4_HEADER = {TCP: 20, UDP: 8}
_TAGS = (b"\x81\x00", b"\x88\xa8")
_MAX_TAGS = 2
SYN, RST = 2, 4


class Verdict(Enum):
    """What becomes of a frame."""

    DROP = "XDP_DROP"
    PASS = "XDP_PASS"
    TX = "XDP_TX"
    UNSPEC = "TC_ACT_UNSPEC"
    SHOT = "TC_ACT_SHOT"
    REDIRECT = "TC_ACT_REDIRECT"
    PIPE = "TC_ACT_PIPE"


class Outcome(NamedTuple):
    """The end of a run. The frame of a dropped packet means nothing."""

    verdict: Verdict
    frame: bytes


@dataclass(slots=True)
class Packet:
    """A frame and what was read of it. The flow is that of an ICMP error's quoted packet, turned round."""

    frame: bytes
    ip: int
    """Offset of the IP header."""
    family: int
    protocol: int
    """Of the IP header."""
    ip_bytes: int
    """v4: total length, v6: payload length, as the header says."""
    tos: int
    src: bytes
    """Of the flow, as in the maps."""
    dst: bytes
    sport: int = 0
    dport: int = 0
    flow_protocol: int = 0
    payload: int = 0
    """Offset of what follows the UDP header or the fixed TCP header."""
    flags: int = 0
    """Of TCP."""
    icmp: int | None = None
    """Code of an ICMP error."""
    spread_src: bytes = b""
    """What the outer header's source is made of: address, as in the maps."""
    spread_sport: int = 0
    is_fragment: bool = False
    options: int = 0
    """Bytes of IPv4 options; may be negative when the header lies about its length."""
    hash_sport: int = 0
    """What the ring's hash is made of: 0 where the VIP ignores a port."""
    hash_dport: int = 0

    @property
    def published_key(self) -> FlowKey:
        """The flow's key in Katran's connection tables."""
        return FlowKey(self.src, self.dst, self.hash_sport, self.hash_dport, self.flow_protocol)

    @property
    def l4(self) -> int:
        """Offset of what follows the IP header."""
        return self.ip + IP_HEADER[self.family] + self.options

    @property
    def syn(self) -> bool:
        """First packet of a connection."""
        return bool(self.flags & SYN)

    @property
    def addresses(self) -> tuple[bytes, bytes]:
        """Source and destination of the IP header, 4 or 16 bytes."""
        start, size = (self.ip + 12, 4) if self.family == 4 else (self.ip + 8, 16)
        return self.frame[start : start + size], self.frame[start + size : start + 2 * size]

    def outcome(self, verdict: Verdict) -> Outcome:
        """The frame as it came."""
        return Outcome(verdict, self.frame)


def number(data: bytes) -> int:
    """A number in network byte order."""
    return int.from_bytes(data, "big")


def read_link(frame: bytes, features: Features) -> tuple[int, int | None]:
    """Offset of what follows the Ethernet header, and its family; None: it is not IP."""
    ip = 14
    while features.vlan and frame[ip - 2 : ip] in _TAGS and ip < 14 + 4 * _MAX_TAGS:
        ip += 4
    return ip, FAMILIES.get(frame[ip - 2 : ip])


def read_ip(frame: bytes, features: Features) -> Packet | Verdict:
    """Read an Ethernet and an IP header; a verdict ends the run."""
    ip, family = read_link(frame, features)
    if family is None:
        return Verdict.DROP if len(frame) < ip else Verdict.PASS
    if len(frame) < ip + IP_HEADER[family]:
        return Verdict.DROP
    return _read_ipv4(frame, ip) if family == 4 else _read_ipv6(frame, ip)


def _read_ipv4(frame: bytes, ip: int) -> Packet:
    src, dst = (frame[start : start + 4].ljust(16, b"\0") for start in (ip + 12, ip + 16))
    packet = Packet(frame, ip, 4, frame[ip + 9], number(frame[ip + 2 : ip + 4]), frame[ip + 1], src, dst)
    packet.is_fragment = bool(number(frame[ip + 6 : ip + 8]) & 0x3FFF)
    packet.options = (frame[ip] & 15) * 4 - 20
    return packet


def _read_ipv6(frame: bytes, ip: int) -> Packet:
    """Read the header. Of a fragment the protocol is what its fragment header says."""
    traffic_class, length = number(frame[ip : ip + 2]) >> 4 & 0xFF, number(frame[ip + 4 : ip + 6])
    src, dst = frame[ip + 8 : ip + 24], frame[ip + 24 : ip + 40]
    packet = Packet(frame, ip, 6, frame[ip + 6], length, traffic_class, src, dst)
    if packet.protocol == FRAGMENT:
        packet.is_fragment = True
        packet.protocol = frame[packet.l4] if len(frame) > packet.l4 else FRAGMENT
    return packet


def has_ports(packet: Packet) -> bool:
    """Whether it is TCP or UDP."""
    return packet.protocol in L4_HEADER


def read_header(packet: Packet) -> bool:
    """Read the TCP or UDP header, or as much of it as the ports. Whether the packet is whole and can be balanced."""
    frame, l4 = packet.frame, packet.l4
    if not has_ports(packet) or packet.is_fragment or len(frame) < l4 + 4:
        return False
    packet.flow_protocol, packet.payload = packet.protocol, l4 + L4_HEADER[packet.protocol]
    packet.sport, packet.dport = number(frame[l4 : l4 + 2]), number(frame[l4 + 2 : l4 + 4])
    if packet.options or len(frame) < packet.payload:
        return False
    packet.flags = frame[l4 + 13] if packet.protocol == TCP else 0
    return True
