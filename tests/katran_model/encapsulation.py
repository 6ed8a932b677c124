# SPDX-License-Identifier: Apache-2.0
"""The outer headers: IPIP and GUE."""

from __future__ import annotations

import struct

from .checksum import checksum, ipv4_header, ipv6_header, minus, pseudo_header, words
from .maps import Maps, Real
from .packet import ETHERTYPES, ICMP, ICMPV6, IP_HEADER, IPIP, IPV6, L4_HEADER, TCP, UDP, Packet, number
from .run import Run

TTL = 64
_UDP_HEADER = 8


def encapsulate(run: Run, packet: Packet, real: Real) -> bytes | None:
    """The frame to the gateway; None: this real cannot have this packet."""
    mismatch = packet.family == 6 and not real.v6
    if run.features.encapsulation == "gue":
        family = 6 if real.v6 or (mismatch and run.quirks.v6_to_v4_real) else 4
        outer = _gue(run, packet, real, family)
    elif mismatch and not run.quirks.v6_to_v4_real:
        return None
    else:
        family = 6 if real.v6 or mismatch else 4
        outer = _ipip_v4(packet, real) if family == 4 else _ipip_v6(packet, real)
    return link_header(run.maps, packet, family) + outer + packet.frame[packet.ip :]


def link_header(maps: Maps, packet: Packet, family: int) -> bytes:
    """To the gateway, from the address that the packet came to; VLAN tags stay."""
    return maps.gateway_mac + packet.frame[0:6] + packet.frame[12 : packet.ip - 2] + ETHERTYPES[family]


def inner_bytes(packet: Packet) -> int:
    """Length of the whole IP packet, as its header says."""
    return packet.ip_bytes + (40 if packet.family == 6 else 0)


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def _ipip_v4(packet: Packet, real: Real) -> bytes:
    port = packet.spread_sport.to_bytes(2, "little")
    source = bytes([172, 16]) + _xor(port, packet.spread_src[2:4])
    return ipv4_header(packet.tos, inner_bytes(packet) + 20, TTL, IPIP, source, real.address[:4])


def _ipip_v6(packet: Packet, real: Real) -> bytes:
    port = packet.spread_sport.to_bytes(2, "big") + bytes(2)
    last = packet.spread_src[:4] if packet.family == 4 else packet.spread_src[12:]
    source = bytes([1]) + bytes(11) + _xor(port, last)
    protocol = IPIP if packet.family == 4 else IPV6
    return ipv6_header(packet.tos, inner_bytes(packet), protocol, TTL, source, real.address)


def _gue(run: Run, packet: Packet, real: Real, family: int) -> bytes:
    size = 4 if family == 4 else 16
    src, dst = run.maps.sources.get(family, bytes(16))[:size], real.address[:size]
    length = inner_bytes(packet) + _UDP_HEADER & 0xFFFF
    udp = struct.pack(">HHHH", _gue_sport(packet, family), run.features.gue_port, length, 0)
    inside = _inside_sum(run, packet)
    if inside is not None:
        check = checksum(inside, words(udp), pseudo_header(src, dst, length, UDP))
        # 0 in the field means that there is none, and 0xffff is the same sum (RFC 768).
        udp = udp[:6] + struct.pack(">H", check or (0 if run.quirks.gue_checksum else 0xFFFF))
    if family == 4:
        return ipv4_header(packet.tos, length + 20, TTL, UDP, src, dst) + udp
    return ipv6_header(packet.tos, length, UDP, TTL, src, dst) + udp


def _gue_sport(packet: Packet, family: int) -> int:
    swapped = packet.family == 4 and family == 4
    port = packet.spread_sport.to_bytes(2, "little" if swapped else "big")
    part = packet.spread_src[2:4] if packet.family == 4 else packet.spread_src[12:14]
    return number(_xor(port, part))


def _inside_sum(run: Run, packet: Packet) -> int | None:
    """The sum of all words inside, derived from the inner checksums; None if these do not tell it."""
    if packet.is_fragment:
        return None
    frame, l4 = packet.frame, packet.l4
    header = words(frame[packet.ip : l4])
    if len(frame) < l4 + L4_HEADER[packet.flow_protocol]:
        return None
    src, dst = packet.addresses
    pseudo = pseudo_header(src, dst, inner_bytes(packet) - IP_HEADER[packet.family] & 0xFFFF, packet.protocol)
    if run.quirks.gue_checksum or packet.protocol in (TCP, ICMPV6):
        return 0xFFFF + header + minus(pseudo)
    if packet.protocol == ICMP:  # no pseudo header
        return 0xFFFF + header
    has_checksum = frame[l4 + 6 : l4 + 8] != b"\0\0"
    return 0xFFFF + header + minus(pseudo) if has_checksum else None
