# SPDX-License-Identifier: Apache-2.0
"""What the decapsulation program should do with a frame, said once more in Python."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address

from nfcore.plugins.katran_accel.decap.program import DecapOptions

IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"
ETHERTYPES = {4: IPV4, 6: IPV6}
HEADER_BYTES = {4: 20, 6: 40}
IPIP, TCP, UDP, IPV6_IN, FRAGMENT = 4, 6, 17, 41, 44


@dataclass
class Expected:
    verdict: str
    output: bytes
    counted: Counter[str] = field(default_factory=Counter)


@dataclass
class Outer:
    """An outer header that was read."""

    version: int
    protocol: int
    dst: bytes
    payload: bytes
    """Behind the IP header and its options or fragment header."""
    has_options: bool
    is_fragment: bool
    is_later_fragment: bool


def decapsulate(frame: bytes, options: DecapOptions) -> Expected:
    """Verdict, frame afterwards, and what is counted, by the names of `decap_counters` and `decap_drops`."""
    outer = read_outer(frame)
    untouched = Expected("XDP_PASS", frame)
    if outer is None:
        return untouched
    if options.drop_all_fragments and (outer.has_options or outer.is_fragment):
        return dropped(frame, "options" if outer.has_options else "fragments")
    protocol, is_gue = outer.protocol, is_for_gue(outer, options)
    is_other = options.destinations and ip_address(outer.dst) not in options.destinations
    if is_other or (protocol not in (IPIP, IPV6_IN) and not is_gue):
        return untouched
    if outer.has_options or outer.is_fragment:
        return dropped(frame, "options" if outer.has_options else "fragments")
    inner = outer.payload[8:] if is_gue else outer.payload
    promised = {IPIP: 4, IPV6_IN: 6}.get(protocol, inner[0] >> 4 if inner else 0)
    return without_outer(frame, outer, inner, promised, options) if promised in HEADER_BYTES else untouched


def without_outer(frame: bytes, outer: Outer, inner: bytes, promised: int, options: DecapOptions) -> Expected:
    """`promised`: the version of the IP header with which `inner` should begin."""
    if len(inner) < HEADER_BYTES[promised] or inner[0] >> 4 != promised:
        return dropped(frame, "malformed")
    counted = Counter({"total": 1, f"v{outer.version}": 1})
    if options.server_id is not None and (found := server_id(inner)):
        counted["tpr_total"] = 1
        counted["tpr_misrouted"] = int(found != options.server_id)
    return Expected("XDP_PASS", frame[:12] + ETHERTYPES[promised] + inner, +counted)


def is_for_gue(outer: Outer, options: DecapOptions) -> bool:
    """Only the first fragment has ports."""
    if options.gue_port is None or outer.protocol != UDP or outer.is_later_fragment:
        return False
    return len(outer.payload) >= 8 and struct.unpack_from("!H", outer.payload, 2)[0] == options.gue_port


def dropped(frame: bytes, why: str) -> Expected:
    return Expected("XDP_DROP", frame, Counter({why: 1}))


def read_outer(frame: bytes) -> Outer | None:
    """The IP header behind Ethernet; None when there is none."""
    ethertype, packet = frame[12:14], frame[14:]
    if ethertype == IPV4 and len(packet) >= 20:
        fragment = struct.unpack_from("!H", packet, 6)[0]
        words, later = packet[0] & 15, fragment & 0x1FFF != 0
        # A length that lies about the header makes no difference: such a packet is one with options.
        payload = packet[words * 4 :]
        return Outer(4, packet[9], packet[16:20], payload, words != 5, fragment & 0x3FFF != 0, later)
    if ethertype == IPV6 and len(packet) >= 40:
        protocol, dst, payload = packet[6], packet[24:40], packet[40:]
        if protocol != FRAGMENT:
            return Outer(6, protocol, dst, payload, False, False, False)
        if len(payload) < 8:
            return Outer(6, -1, dst, b"", False, True, True)
        later = struct.unpack_from("!H", payload, 2)[0] & 0xFFF8 != 0
        return Outer(6, payload[0], dst, payload[8:], False, True, later)
    return None


def server_id(inner: bytes) -> int:
    """The server id of a TCP packet that is no SYN; 0 when it has none."""
    if inner[0] >> 4 == 4:
        is_tcp = inner[9] == TCP and inner[0] & 15 == 5 and not struct.unpack_from("!H", inner, 6)[0] & 0x1FFF
        tcp = inner[20:]
    else:
        is_tcp, tcp = inner[6] == TCP, inner[40:]
    if not is_tcp or len(tcp) < 20 or tcp[13] & 2:
        return 0
    left = tcp[20 : (tcp[12] >> 4) * 4]
    promised = max((tcp[12] >> 4) * 4 - 20, 0)
    at = 0
    for _ in range(15):
        if promised - at < 2 or len(left) - at < 2 or left[at] == 0:
            return 0
        if left[at] == 1:
            at += 1
            continue
        length = left[at + 1]
        if length < 2 or at + length > promised:
            return 0
        if left[at] == 0xB7:
            value = left[at + 2 : at + 6]
            return int.from_bytes(value, "little") if length == 6 and len(value) == 4 else 0
        at += length
    return 0
