# SPDX-License-Identifier: Apache-2.0
"""Packets of a VIP that are too big: the client is told the MTU."""

from __future__ import annotations

import struct

from .checksum import checksum, ipv4_header, ipv6_header, pseudo_header, words
from .counters import Stat
from .packet import ICMP, ICMPV6, Outcome, Packet, Verdict
from .run import TOO_BIG, Run

_KEPT = {4: 84, 6: 248}
"""Family → bytes of the IP packet that are quoted."""
_TTL = 64


def is_too_big(run: Run, packet: Packet) -> bool:
    """Whether a packet cannot be balanced because of its length."""
    return len(packet.frame) > run.features.max_frame + packet.ip - 14


def tell_client(run: Run, packet: Packet) -> Outcome:
    """The ICMP message, if it is to be sent."""
    if run.features.too_big or run.quirks.too_big_counts:
        run.counters.family(Stat.TOO_BIG, packet.family)
    if not run.features.too_big:
        return packet.outcome(Verdict.DROP)
    run.sample(TOO_BIG, packet.frame)
    frame, ip = packet.frame, packet.ip
    link = frame[6:12] + frame[0:6] + frame[12:ip]
    quoted = frame[ip : ip + _KEPT[packet.family]]
    message = _message_v4(run, packet, quoted) if packet.family == 4 else _message_v6(run, packet, quoted)
    return Outcome(Verdict.TX, link + message)


def _message_v4(run: Run, packet: Packet, quoted: bytes) -> bytes:
    client, vip = packet.addresses
    check = checksum(words(struct.pack(">BBHI", 3, 4, 0, run.features.too_big_mtu)), words(quoted))
    icmp = struct.pack(">BBHI", 3, 4, check, run.features.too_big_mtu) + quoted
    return ipv4_header(0, 20 + len(icmp), _TTL, ICMP, vip, client) + icmp


def _message_v6(run: Run, packet: Packet, quoted: bytes) -> bytes:
    client, vip = packet.addresses
    pseudo = pseudo_header(vip, client, 8 + len(quoted), ICMPV6)
    check = checksum(pseudo, words(struct.pack(">BBHI", 2, 0, 0, run.features.too_big_mtu)), words(quoted))
    icmp = struct.pack(">BBHI", 2, 0, check, run.features.too_big_mtu) + quoted
    return ipv6_header(0, len(icmp), ICMPV6, _TTL, vip, client) + icmp
