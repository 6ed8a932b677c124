# SPDX-License-Identifier: Apache-2.0
"""Decapsulation in the balancer: IPIP and GUE, also of other balancers."""

from __future__ import annotations

import struct
from typing import NamedTuple

from . import icmp
from .counters import Stat
from .maps import VipKey
from .packet import ETHERTYPES, IP_HEADER, IPIP, IPV6, UDP, Outcome, Packet, Verdict, number, read_header, read_ip
from .run import Run
from .unfit import is_unfit

_EGRESS = 2
"""Flag of an address: what is inside goes out again as it is."""


class Again(NamedTuple):
    """What is inside begins from the start."""

    frame: bytes


def inline_decap(run: Run, packet: Packet) -> Outcome | Again | None:
    """Decapsulate a packet of IPIP or UDP, if it is one to be decapsulated; None: it is not."""
    features = run.features
    ipip = features.inline_decap_ipip and packet.protocol in (IPIP, IPV6)
    gue = features.inline_decap_gue and packet.protocol == UDP and packet.dport == features.gue_port
    if not ipip and not gue:
        return None
    flags = run.maps.decap_flags(packet.dst, packet.family, run.quirks.families_share_keys)
    if flags is not None:
        run.counters.stat(Stat.DECAP_ADDRESS, v1=1)
    elif features.strict_decap and packet.dst != run.maps.sources.get(packet.family):
        return packet.outcome(Verdict.PASS)
    inner = take_off(packet, run, gue)
    if inner is None:
        return packet.outcome(Verdict.DROP)
    run.counters.family(Stat.DECAP, 6 if ipip and run.quirks.ipip_decap_counts_as_v6 else packet.family)
    return _go_on(run, inner, flags, gue)


def _go_on(run: Run, inner: tuple[bytes, int, bool], flags: int | None, gue: bool) -> Outcome | Again:
    """What becomes of the inner frame, by the flags of the outer destination."""
    frame, family, lives = inner
    if not lives:
        return Outcome(Verdict.DROP, frame)
    if flags is None:
        return _pass_on(run, frame, gue)
    if gue and flags & _EGRESS:
        run.counters.family(Stat.EGRESS_DECAP, family)
        return Outcome(Verdict.TX, frame[6:12] + frame[0:6] + frame[12:])
    run.counters.family(Stat.CROSS_POP, family)
    return Again(frame)


def inner_packet(packet: Packet, run: Run, gue: bool) -> tuple[int, int]:
    """Offset and family of what is inside of IPIP or GUE."""
    if not gue:
        four = packet.protocol == IPIP
        wrong = packet.family == 4 and not four and run.quirks.six_in_four_takes_40
        return packet.ip + 40 if wrong else packet.l4, 4 if four else 6
    at = packet.l4 + 8
    first = packet.frame[at : at + 1] or b"\0"
    only_v4 = packet.family == 4 and run.quirks.gue_v4_holds_v4
    return at, 6 if first[0] & 0x30 and not only_v4 else 4


def without_outer(packet: Packet, at: int, family: int) -> bytes:
    """The frame without what lies between the Ethernet header and an offset."""
    return packet.frame[: packet.ip - 2] + ETHERTYPES[family] + packet.frame[at:]


def take_off(packet: Packet, run: Run, gue: bool) -> tuple[bytes, int, bool] | None:
    """The inner frame with its TTL one less, its family, and whether its TTL allows that. None: no whole IP header."""
    at, family = inner_packet(packet, run, gue)
    inner = packet.frame[at : at + IP_HEADER[family]]
    if len(inner) < IP_HEADER[family]:
        return None
    field = 8 if family == 4 else 7
    ttl = inner[field]
    lives = ttl > 1 or (ttl == 0 and run.quirks.ttl_0_wraps)
    inner = inner[:field] + bytes([ttl - 1 & 0xFF]) + inner[field + 1 :]
    if family == 4:
        check = number(inner[10:12]) + 0x0100
        check = (check & 0xFFFF) + (check >> 16)
        inner = inner[:10] + struct.pack(">H", check) + inner[12:]
    return without_outer(packet, at, family)[: packet.ip] + inner + packet.frame[at + len(inner) :], family, lives


def _pass_on(run: Run, frame: bytes, gue: bool) -> Outcome:
    """Pass what is inside to the stack; that of GUE is counted for its VIP."""
    inner = read_ip(frame, run.features)
    if not gue or isinstance(inner, Verdict) or is_unfit(inner):
        return Outcome(Verdict.PASS, frame)
    if icmp.is_icmp(inner):
        kind = inner.frame[inner.l4 : inner.l4 + 1]
        is_echo = kind == bytes([icmp.ECHO_REQUEST[inner.family]]) and len(frame) >= inner.l4 + 8
        answered = run.quirks.echo_in_decap and is_echo
        return Outcome(Verdict.PASS, icmp.echo_reply(inner) if answered else frame)
    if read_header(inner):
        vip = run.maps.vips.get(VipKey(inner.dst, inner.dport, inner.protocol))
        if vip:
            run.counters.add("decap_vip_stats", vip.number, v1=1)
    return Outcome(Verdict.PASS, frame)
