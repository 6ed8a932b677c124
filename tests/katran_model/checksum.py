# SPDX-License-Identifier: Apache-2.0
"""The Internet checksum: sums of 16-bit words, carries added at the other end (RFC 1071)."""

from __future__ import annotations

import struct


def words(data: bytes) -> int:
    """The sum of the words, 0 to 0xffff; only nothing but zeros gives 0."""
    total = int.from_bytes(data + b"\0" * (len(data) % 2), "big")
    return total and (total % 0xFFFF or 0xFFFF)


def minus(sum_: int) -> int:
    """What takes a sum away when it is added."""
    return 0xFFFF - sum_


def checksum(*sums: int) -> int:
    """The checksum for sums, 0 to 0xffff."""
    total = sum(sums)
    return 0xFFFF - (total and (total % 0xFFFF or 0xFFFF))


def pseudo_header(src: bytes, dst: bytes, length: int, protocol: int) -> int:
    """The sum of the pseudo header of TCP, UDP or ICMPv6; addresses of 4 or 16 bytes."""
    return words(src + dst + struct.pack(">IHBB", length, 0, 0, protocol))


def ipv4_header(tos: int, length: int, ttl: int, protocol: int, src: bytes, dst: bytes) -> bytes:
    """An IPv4 header without options: id 0, not fragmented; addresses of 4 bytes."""
    head = struct.pack(">BBHIBBH", 0x45, tos, length & 0xFFFF, 0, ttl, protocol, 0) + src + dst
    return head[:10] + struct.pack(">H", checksum(words(head))) + head[12:]


def ipv6_header(traffic_class: int, payload: int, protocol: int, hop_limit: int, src: bytes, dst: bytes) -> bytes:
    """An IPv6 header, flow label 0; addresses of 16 bytes."""
    return struct.pack(">IHBB", 6 << 28 | traffic_class << 20, payload & 0xFFFF, protocol, hop_limit) + src + dst
