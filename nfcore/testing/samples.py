# SPDX-License-Identifier: Apache-2.0
"""Sample flows with addresses of RFC 2544 and RFC 3849, and rules and frames for them."""

from __future__ import annotations

import ipaddress
import socket
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..api.flows import EXACT, NO_TAGS, PROTOCOL_NUMBERS, SERVICE_TAG, VLAN_ID, FlowMatch
from ..api.rules import Drop, Rule, RuleBatch, SetMark, make_cookies

BROADCAST, SENDER = b"\xff" * 6, bytes.fromhex("02005e000002")
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_TPIDS = {0: 0x8100, SERVICE_TAG: 0x88A8}
_PRIORITY = 5 << 13
_MORE_FRAGMENTS = 0x2000


def sample_flow(number: int, family: int = 4, protocol: str | int = "tcp") -> FlowMatch:
    """One of 65,536 flows of a family and a protocol (name or number)."""
    high, low = number >> 8 & 0xFF, number & 0xFF
    ends = (f"198.18.{high}.{low}", "198.19.10.1") if family == 4 else (f"2001:db8::{number:x}", "2001:db8:ffff::1")
    src, dst = (ipaddress.ip_address(end) for end in ends)
    proto = PROTOCOL_NUMBERS[protocol] if isinstance(protocol, str) else protocol
    return FlowMatch(src, dst, proto, 40_000 + number % 20_000, 80)


def sample_rules(
    flows: Sequence[FlowMatch], marks: Sequence[int] | int, generation: int = 1, vlans: tuple[int, int] = NO_TAGS
) -> RuleBatch:
    """A rule for each flow that sets its mark (one for all, or one each); mark 0: a rule that drops.

    vlans: VLAN tags that all of them match. Cookies are nfcore's. A sample flow has the same cookie whenever the
    generation is the same.
    """
    marks = [marks] * len(flows) if isinstance(marks, int) else marks
    slots = np.array([_slot(flow) for flow in flows], dtype=np.int64)
    cookies = make_cookies(slots, np.full(len(flows), generation, dtype=np.uint16)).tolist()
    return RuleBatch.of(
        [
            Rule(flow, SetMark(mark) if mark else Drop(), cookie, vlans)
            for flow, mark, cookie in zip(flows, marks, cookies, strict=True)
        ]
    )


def _slot(flow: FlowMatch) -> int:
    if flow.wild != EXACT:
        return 1 << 31 | zlib.crc32(flow.to_key().tobytes() + bytes([flow.family])) >> 1
    return int(flow.src) & 0xFFFF | flow.proto << 16 | (flow.family == 6) << 24


@dataclass(frozen=True)
class MatchSample:
    """What a rule matches, with frames that it matches and others that it does not match."""

    match: FlowMatch
    hits: Sequence[bytes]
    misses: Sequence[bytes]
    vlans: tuple[int, int] = NO_TAGS

    def __str__(self) -> str:
        tags = " and ".join(str(tag & VLAN_ID) for tag in self.vlans if tag)
        return f"{self.match} in VLAN {tags}" if tags else str(self.match)


def tagged_samples(family: int, protocol: str) -> list[MatchSample]:
    """Matches with VLAN tags, of a family and a protocol (name): one with 802.1Q's, one with a tag of 802.1ad, too."""
    one, two = sample_flow(50, family, protocol), sample_flow(51, family, protocol)

    def frames(flow: FlowMatch, *tags: tuple[int, int]) -> list[bytes]:
        return [sample_frame(flow, vlans=vlans) for vlans in tags]

    outer = SERVICE_TAG | 200
    return [
        MatchSample(one, frames(one, (100, 0)), frames(one, NO_TAGS, (101, 0), (100, 7), (7, 100)), (100, 0)),
        MatchSample(
            two, frames(two, (outer, 7)), frames(two, NO_TAGS, (outer, 0), (outer, 8), (outer + 1, 7)), (outer, 7)
        ),
    ]


def masked_samples(family: int, protocol: str) -> list[MatchSample]:
    """Masked matches of a family, and of a protocol (name) or any; no packet matches two of them.

    Where ports are open, frames that have none are among the hits: fragments, and other IP protocols.
    """
    client, server = ("198.18.{}.{}", "198.19.{}.{}") if family == 4 else ("[2001:db8:{}::{}]", "[2001:db8:ff{}::{}]")
    prefix = "0/24" if family == 4 else "/64]"
    other = next(name for name in PROTOCOL_NUMBERS if name != protocol)
    icmp = 1 if family == 4 else 58
    anybody = "0.0.0.0/0" if family == 4 else "[::/0]"

    def net(template: str, number: int) -> str:
        return template.format(number, "").rstrip("]") + prefix

    def frames(*flows: str) -> list[bytes]:
        return [sample_frame(FlowMatch.parse(flow)) for flow in flows]

    def fragment(flow: str) -> bytes:
        return sample_frame(FlowMatch.parse(flow), fragment=True)

    one, near, far = client.format(40, 1), client.format(41, 1), client.format(42, 5)
    s1, s2, s3, s4 = (server.format(10, number) for number in (1, 2, 3, 4))
    inner, outer = server.format(11, 9), server.format(12, 9)
    return [
        MatchSample(
            FlowMatch.parse(f"{net(client, 40)}:40000 > {s1}:80/{protocol}"),
            frames(f"{one}:40000 > {s1}:80/{protocol}", f"{client.format(40, 99)}:40000 > {s1}:80/{protocol}"),
            frames(
                f"{far}:40000 > {s1}:80/{protocol}",
                f"{one}:40001 > {s1}:80/{protocol}",
                f"{one}:40000 > {s1}:81/{protocol}",
                f"{one}:40000 > {s4}:80/{protocol}",
                f"{one}:40000 > {s1}:80/{other}",
            ),
        ),
        MatchSample(
            FlowMatch.parse(f"{anybody}:* > {s2}:80/{protocol}"),
            frames(f"{one}:1 > {s2}:80/{protocol}", f"{far}:65535 > {s2}:80/{protocol}"),
            frames(f"{one}:1 > {s2}:81/{protocol}", f"{one}:1 > {s4}:80/{protocol}", f"{one}:1 > {s2}:80/{other}"),
        ),
        MatchSample(
            FlowMatch.parse(f"{net(client, 41)}:* > {net(server, 11)}:*/*"),
            [
                *frames(*(f"{near}:7 > {inner}:8/{proto}" for proto in (protocol, other, icmp))),
                fragment(f"{near}:7 > {inner}:8/{protocol}"),
            ],
            frames(f"{near}:7 > {outer}:8/{protocol}", f"{far}:7 > {inner}:8/{icmp}"),
        ),
        MatchSample(
            FlowMatch.parse(f"{far}:* > {s3}:*/{protocol}"),
            [
                *frames(f"{far}:1 > {s3}:2/{protocol}", f"{far}:2 > {s3}:1/{protocol}"),
                fragment(f"{far}:1 > {s3}:2/{protocol}"),
            ],
            frames(f"{far}:1 > {s3}:2/{other}", f"{far}:1 > {s4}:2/{protocol}", f"{far}:1 > {s3}:2/{icmp}"),
        ),
    ]


def sample_frame(
    flow: FlowMatch, payload: int = 32, *, fragment: bool = False, vlans: tuple[int, int] = NO_TAGS
) -> bytes:
    """One frame of a flow: no options, right checksums; TCP has the flag ACK only.

    fragment: the first fragment of a packet, with the ports. vlans: VLAN tags, outer and inner, as in a rule.
    """
    ends = flow.src.packed + flow.dst.packed
    segment = _segment(flow, payload)
    if flow.proto in PROTOCOL_NUMBERS.values():
        pseudo = ends + struct.pack("!IHBB", len(segment), 0, 0, flow.proto)
        offset = 16 if flow.proto == socket.IPPROTO_TCP else 6
        segment = segment[:offset] + struct.pack("!H", _checksum(pseudo + segment) or 0xFFFF) + segment[offset + 2 :]
    proto = flow.proto
    if flow.family == 6:
        if fragment:
            segment = struct.pack("!BBHI", proto, 0, 1, 7) + segment
            proto = socket.IPPROTO_FRAGMENT
        header = struct.pack("!IHBB", 6 << 28, len(segment), proto, 64) + ends
    else:
        flags = _MORE_FRAGMENTS if fragment else 0
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 7 * fragment, flags, 64, proto, 0) + ends
        header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    ethernet = BROADCAST + SENDER
    for tag in vlans:
        if tag:
            ethernet += struct.pack("!HH", _TPIDS[tag & SERVICE_TAG], _PRIORITY | tag & VLAN_ID)
    ethernet += struct.pack("!H", _ETHERTYPES[flow.family])
    return (ethernet + header + segment).ljust(60, b"\0")


def _segment(flow: FlowMatch, payload: int) -> bytes:
    if flow.proto == socket.IPPROTO_TCP:
        return struct.pack("!HHIIBBHHH", flow.sport, flow.dport, 1, 1, 0x50, 0x10, 8192, 0, 0) + bytes(payload)
    return struct.pack("!HHHH", flow.sport, flow.dport, 8 + payload, 0) + bytes(payload)


def _checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    return ~(sum(words) % 0xFFFF) & 0xFFFF
