# SPDX-License-Identifier: Apache-2.0
"""Sample flows with addresses of RFC 2544 and RFC 3849, and rules and frames for them."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Sequence

import numpy as np

from ..api.flows import PROTOCOL_NUMBERS, FlowMatch
from ..api.rules import Drop, Rule, RuleBatch, SetMark, make_cookies

BROADCAST, SENDER = b"\xff" * 6, bytes.fromhex("02005e000002")
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}


def sample_flow(number: int, family: int = 4, protocol: str | int = "tcp") -> FlowMatch:
    """One of 65,536 flows of a family and a protocol (name or number)."""
    high, low = number >> 8 & 0xFF, number & 0xFF
    ends = (f"198.18.{high}.{low}", "198.19.10.1") if family == 4 else (f"2001:db8::{number:x}", "2001:db8:ffff::1")
    src, dst = (ipaddress.ip_address(end) for end in ends)
    proto = PROTOCOL_NUMBERS[protocol] if isinstance(protocol, str) else protocol
    return FlowMatch(src, dst, proto, 40_000 + number % 20_000, 80)


def sample_rules(flows: Sequence[FlowMatch], marks: Sequence[int] | int, generation: int = 1) -> RuleBatch:
    """A rule for each flow that sets its mark (one for all, or one each); mark 0: a rule that drops.

    Cookies are nfcore's. A sample flow has the same cookie whenever the generation is the same.
    """
    marks = [marks] * len(flows) if isinstance(marks, int) else marks
    slots = np.array([_slot(flow) for flow in flows], dtype=np.int64)
    cookies = make_cookies(slots, np.full(len(flows), generation, dtype=np.uint16)).tolist()
    return RuleBatch.of(
        [
            Rule(flow, SetMark(mark) if mark else Drop(), cookie)
            for flow, mark, cookie in zip(flows, marks, cookies, strict=True)
        ]
    )


def _slot(flow: FlowMatch) -> int:
    return int(flow.src) & 0xFFFF | flow.proto << 16 | (flow.family == 6) << 24


def sample_frame(flow: FlowMatch, payload: int = 32) -> bytes:
    """One frame of a flow: no options, no fragment, right checksums; TCP has the flag ACK only."""
    ends = flow.src.packed + flow.dst.packed
    segment = _segment(flow, payload)
    if flow.proto in PROTOCOL_NUMBERS.values():
        pseudo = ends + struct.pack("!IHBB", len(segment), 0, 0, flow.proto)
        offset = 16 if flow.proto == socket.IPPROTO_TCP else 6
        segment = segment[:offset] + struct.pack("!H", _checksum(pseudo + segment) or 0xFFFF) + segment[offset + 2 :]
    if flow.family == 6:
        header = struct.pack("!IHBB", 6 << 28, len(segment), flow.proto, 64) + ends
    else:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, flow.proto, 0) + ends
        header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    ethernet = BROADCAST + SENDER + struct.pack("!H", _ETHERTYPES[flow.family])
    return (ethernet + header + segment).ljust(60, b"\0")


def _segment(flow: FlowMatch, payload: int) -> bytes:
    if flow.proto == socket.IPPROTO_TCP:
        return struct.pack("!HHIIBBHHH", flow.sport, flow.dport, 1, 1, 0x50, 0x10, 8192, 0, 0) + bytes(payload)
    return struct.pack("!HHHH", flow.sport, flow.dport, 8 + payload, 0) + bytes(payload)


def _checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    return ~(sum(words) % 0xFFFF) & 0xFFFF
