# SPDX-License-Identifier: Apache-2.0
"""Frames with right lengths and checksums, layer by layer. Addresses are 4 or 16 bytes; their length is the family."""

from __future__ import annotations

import struct

from .checksum import checksum, ipv4_header, ipv6_header, pseudo_header, words
from .packet import ETHERTYPES, FRAGMENT, ICMP, ICMPV6, IPIP, IPV6, TCP, UDP

LINK = bytes.fromhex("020000000000020000000001")
"""Destination and source MAC address."""


def ethernet(ip_packet: bytes, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    """A frame; `tags`: EtherType and VLAN id of each tag, the outermost first."""
    family = 6 if ip_packet[:1] and ip_packet[0] >> 4 == 6 else 4
    vlan = b"".join(struct.pack(">HH", ethertype, vlan_id) for ethertype, vlan_id in tags)
    return LINK + vlan + ETHERTYPES[family] + ip_packet


def ip(src: bytes, dst: bytes, protocol: int, payload: bytes, tos: int = 0, ttl: int = 64) -> bytes:
    """An IP packet."""
    if len(dst) == 4:
        return ipv4_header(tos, 20 + len(payload), ttl, protocol, src, dst) + payload
    return ipv6_header(tos, len(payload), protocol, ttl, src, dst) + payload


def with_check(header: bytes) -> bytes:
    """An IPv4 header with its checksum."""
    return header[:10] + struct.pack(">H", checksum(words(header[:10]), words(header[12:]))) + header[12:]


def with_options(packet: bytes, options: bytes) -> bytes:
    """An IPv4 packet with options, a multiple of 4 bytes."""
    size = 20 + len(options)
    head = bytes([0x40 | size // 4 & 15]) + packet[1:2] + struct.pack(">H", len(packet) + len(options)) + packet[4:20]
    return with_check(head + options) + packet[20:]


def fragment(packet: bytes, bits: int) -> bytes:
    """A packet as fragment. `bits`: of IPv4, flags and offset; of IPv6, offset and the flag, as its header has them."""
    if packet[0] >> 4 == 4:
        return with_check(packet[:6] + struct.pack(">H", bits) + packet[8:20]) + packet[20:]
    header = struct.pack(">BBHI", packet[6], 0, bits, 7)
    return packet[:4] + struct.pack(">HB", len(packet) - 32, FRAGMENT) + packet[7:40] + header + packet[40:]


def extended(packet: bytes, kind: int) -> bytes:
    """An IPv6 packet with an extension header of 8 bytes."""
    header = struct.pack(">BBHI", packet[6], 0, 0x0104, 0)
    return packet[:4] + struct.pack(">HB", len(packet) - 32, kind) + packet[7:40] + header + packet[40:]


def tcp(
    src: bytes, dst: bytes, sport: int, dport: int, flags: int, options: bytes = b"", payload: bytes = b""
) -> bytes:
    """A TCP segment; its options are a multiple of 4 bytes, at most 40."""
    offset = (5 + len(options) // 4) << 4
    head = struct.pack(">HHIIBBHHH", sport, dport, 1, 2, offset, flags, 0x2000, 0, 0) + options
    check = checksum(pseudo_header(src, dst, len(head + payload), TCP), words(head + payload))
    return head[:16] + struct.pack(">H", check) + head[18:] + payload


def udp(src: bytes, dst: bytes, sport: int, dport: int, payload: bytes = b"", summed: bool = True) -> bytes:
    """A UDP datagram, with or without checksum."""
    head = struct.pack(">HHHH", sport, dport, 8 + len(payload), 0)
    check = checksum(pseudo_header(src, dst, len(head + payload), UDP), words(head + payload)) or 0xFFFF
    return head[:6] + struct.pack(">H", check if summed else 0) + payload


def icmp(src: bytes, dst: bytes, kind: int, code: int, rest: int = 0, payload: bytes = b"") -> bytes:
    """An ICMP or ICMPv6 packet with IP header. `rest`: the second word."""
    message = struct.pack(">BBHI", kind, code, 0, rest) + payload
    protocol = ICMP if len(dst) == 4 else ICMPV6
    pseudo = 0 if len(dst) == 4 else pseudo_header(src, dst, len(message), protocol)
    check = checksum(pseudo, words(message))
    return ip(src, dst, protocol, message[:2] + struct.pack(">H", check) + message[4:])


def ipip(src: bytes, dst: bytes, inner: bytes, ttl: int = 64) -> bytes:
    """A packet in IPIP."""
    return ip(src, dst, IPV6 if inner[:1] and inner[0] >> 4 == 6 else IPIP, inner, ttl=ttl)


def gue(src: bytes, dst: bytes, port: int, inner: bytes, ttl: int = 64) -> bytes:
    """A packet in GUE, variant 1."""
    return ip(src, dst, UDP, udp(src, dst, 31337, port, inner), ttl=ttl)
