# SPDX-License-Identifier: Apache-2.0
"""Frames of all kinds, valid or not, as bytes."""

from __future__ import annotations

import ipaddress
import itertools
import random
import struct

from .model import EXTENSIONS, FRAGMENT, TCP, UDP

ETHERNET = bytes.fromhex("02005e00000102005e000002")
ICMP, SCTP = 1, 132
PROTOCOLS = [TCP, UDP, ICMP, SCTP, 0, FRAGMENT]
SRC = {4: "198.18.1.2", 6: "2001:db8:1::2"}
DST = {4: "198.18.10.1", 6: "2001:db8:10::1"}


def number(address: str) -> int:
    """An address as a number."""
    return int(ipaddress.ip_address(address))


def layer4(proto: int, sport: int = 40000, dport: int = 80, size: int = 20) -> bytes:
    """A TCP or UDP header with payload; for other protocols some bytes."""
    if proto == TCP:
        return struct.pack("!HHIIBBHHH", sport, dport, 1, 1, 0x50, 0x10, 0xFFFF, 0, 0) + b"x" * size
    if proto == UDP:
        return struct.pack("!HHHH", sport, dport, 8 + size, 0) + b"x" * size
    return struct.pack("!BBHHH", 8, 0, 0, sport, dport) + b"x" * size


def checksum(header: bytes) -> int:
    """The Internet checksum of an IPv4 header; 0 for one that carries the right checksum."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(
    src: str = SRC[4],
    dst: str = DST[4],
    proto: int = TCP,
    payload: bytes | None = None,
    *,
    tos: int = 0,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 frame. `fragment`: flags and offset. `options`: a multiple of 4 bytes."""
    payload = layer4(proto) if payload is None else payload
    length = 20 + len(options)
    ends = ipaddress.IPv4Address(src).packed + ipaddress.IPv4Address(dst).packed
    head = struct.pack("!BBHHHBB", 0x40 | length // 4, tos, length + len(payload), 7, fragment, 64, proto)
    right = checksum(head + b"\0\0" + ends + options)
    return ETHERNET + b"\x08\x00" + head + struct.pack("!H", right) + ends + options + payload


def ipv6(
    src: str = SRC[6],
    dst: str = DST[6],
    proto: int = TCP,
    payload: bytes | None = None,
    *,
    tos: int = 0,
    extensions: tuple[int, ...] = (),
    fragment: int = 0,
    units: int = 0,
) -> bytes:
    """An IPv6 frame with extension headers of these kinds; `fragment`: what fragment headers say; `units`: lengths."""
    payload = layer4(proto) if payload is None else payload
    kinds = [*extensions, proto]
    rest = b""
    for kind, following in itertools.pairwise(kinds):
        if kind == FRAGMENT:
            rest += struct.pack("!BBHI", following, 0, fragment, 9)
        else:
            rest += struct.pack("!BB6x", following, units) + bytes(8 * units)
    head = struct.pack("!IHBB", 6 << 28 | tos << 20 | 0x12345, len(rest + payload), kinds[0], 64)
    ends = ipaddress.IPv6Address(src).packed + ipaddress.IPv6Address(dst).packed
    return ETHERNET + b"\x86\xdd" + head + ends + rest + payload


def frame(family: int, proto: int = TCP, sport: int = 40000, dport: int = 80, tos: int = 0) -> bytes:
    """A plain frame from SRC to DST."""
    payload = layer4(proto, sport, dport)
    return (ipv4 if family == 4 else ipv6)(proto=proto, payload=payload, tos=tos)


def fuzzed(generator: random.Random) -> bytes:
    """A frame with some bytes changed, and perhaps cut."""
    family = generator.choice([4, 6])
    kinds = tuple(generator.choices(EXTENSIONS, k=generator.choice([0, 0, 0, 1, 2, 4, 5])))
    proto = generator.choice(PROTOCOLS)
    raw = bytearray(ipv4(proto=proto) if family == 4 else ipv6(proto=proto, extensions=kinds))
    for _ in range(generator.choice([0, 1, 1, 2, 8])):
        raw[generator.randrange(12, len(raw))] = generator.randrange(256)
    if generator.random() < 0.3:
        del raw[generator.randrange(14, len(raw) + 1) :]
    return bytes(raw)
