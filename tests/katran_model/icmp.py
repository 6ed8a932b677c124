# SPDX-License-Identifier: Apache-2.0
"""ICMP: echo requests are answered, errors go the way of the flow that they quote."""

from __future__ import annotations

import struct

from .checksum import checksum, words
from .counters import Stat
from .packet import ICMP, ICMPV6, IP_HEADER, TCP, UDP, Outcome, Packet, Verdict, number
from .run import Run
from .vip import vip_of_address

ECHO_REQUEST = {4: 8, 6: 128}
ERRORS = {4: (3,), 6: (1, 2)}
"""Destination unreachable; of ICMPv6 also packet too big."""
_FRAGMENTATION_NEEDED = {4: (3, 4), 6: (2, None)}
"""Type, and the code if that counts, of the errors that tell an MTU."""
_SMALLEST_MTU = 1280
_HEADER = 8
_QUOTED = 8
"""Bytes behind the quoted IP header that every error has (RFC 792)."""
_TTL = 64


def is_icmp(packet: Packet) -> bool:
    """Whether the packet is ICMP of its family."""
    return packet.protocol == (ICMP if packet.family == 4 else ICMPV6)


def read_icmp(run: Run, packet: Packet) -> Outcome | Verdict | None:
    """Answer an echo request, or read the flow of an error into the packet: then None."""
    for_vip = any(vip_of_address(run, packet, protocol) for protocol in (TCP, UDP))
    result = _read(run, packet, for_vip)
    is_nobodys = result is Verdict.DROP and not (for_vip or run.quirks.unfit_dropped_for_all)
    return Verdict.PASS if is_nobodys else result


def _read(run: Run, packet: Packet, for_vip: bool) -> Outcome | Verdict | None:
    if len(packet.frame) < packet.l4 + _HEADER:
        return Verdict.DROP
    kind, code = packet.frame[packet.l4], packet.frame[packet.l4 + 1]
    if kind == ECHO_REQUEST[packet.family] and (for_vip or run.quirks.echo_for_all):
        return Outcome(Verdict.TX, echo_reply(packet))
    if kind not in ERRORS[packet.family]:
        return Verdict.PASS
    packet.icmp = code
    _count_mtu(run, packet, kind)
    return _read_quoted(run, packet)


def echo_reply(packet: Packet) -> bytes:
    """The frame of the answer, back to where the request came from."""
    frame, ip, l4 = packet.frame, packet.ip, packet.l4
    src, dst = packet.addresses
    link = frame[6:12] + frame[0:6] + frame[12:ip]
    check = number(frame[l4 + 2 : l4 + 4])
    if packet.family == 4:
        head = frame[ip : ip + 8] + bytes([_TTL, frame[ip + 9], 0, 0]) + dst + src
        head = head[:10] + struct.pack(">H", checksum(words(head))) + head[12:]
        kind, check = 0, check + 0x0800
        check = (check & 0xFFFF) + (check >> 16)
    else:
        head = frame[ip : ip + 7] + bytes([_TTL]) + dst + src
        kind, check = 129, check - 0x0100
        check = (check if check >= 0 else check - 1) & 0xFFFF
    return link + head + struct.pack(">BBH", kind, frame[l4 + 1], check) + frame[l4 + 4 :]


def _count_mtu(run: Run, packet: Packet, kind: int) -> None:
    told_by, code = _FRAGMENTATION_NEEDED[packet.family]
    if kind != told_by or code not in (None, packet.icmp):
        return
    at = packet.l4 + (6 if packet.family == 4 else 4)
    mtu = number(packet.frame[at : packet.l4 + _HEADER])
    slot = Stat.ICMP_TOO_BIG_V4 if packet.family == 4 else Stat.ICMP_TOO_BIG_V6
    run.counters.stat(slot, 1, int(mtu < _SMALLEST_MTU))


def _read_quoted(run: Run, packet: Packet) -> Verdict | None:
    """Read the flow from the quoted packet, which went from the VIP to the client: the ends change places."""
    quoted = packet.frame[packet.l4 + _HEADER :]
    size = IP_HEADER[packet.family]
    if len(quoted) < size:
        return Verdict.DROP
    if packet.family == 4:
        size = (quoted[0] & 15) * 4
        if size != 20 and (run.quirks.quoted_options_drop or size < 20):
            return Verdict.DROP
        packet.flow_protocol = quoted[9]
        packet.dst, packet.src = quoted[12:16].ljust(16, b"\0"), quoted[16:20].ljust(16, b"\0")
    else:
        packet.flow_protocol = quoted[6]
        packet.dst, packet.src = quoted[8:24], quoted[24:40]
    return _read_quoted_ports(run, packet, quoted[size:])


def _read_quoted_ports(run: Run, packet: Packet, quoted: bytes) -> Verdict | None:
    if packet.flow_protocol not in (TCP, UDP):
        return Verdict.PASS
    all_tcp = packet.flow_protocol == TCP and run.quirks.tcp_errors_need_20_bytes
    if len(quoted) < (20 if all_tcp else _QUOTED):
        return Verdict.DROP
    packet.dport, packet.sport = number(quoted[0:2]), number(quoted[2:4])
    if packet.flow_protocol == TCP and len(quoted) > 13:
        packet.flags = quoted[13]
    return None
