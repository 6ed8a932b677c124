# SPDX-License-Identifier: Apache-2.0
"""Decapsulation in the balancer: IPIP and GUE, also of other balancers."""

from __future__ import annotations

import struct
from typing import NamedTuple

from . import icmp
from .counters import Stat
from .maps import VipKey
from .packet import IP_HEADER, UDP, Outcome, Packet, Verdict, number, read_header, read_ip
from .run import Run
from .tunnel import Inside, inside, is_ipip, without_outer
from .unfit import is_unfit
from .vip import exact_vip

_EGRESS = 2
"""Flag of an address: what is inside goes out again as it is."""


class Again(NamedTuple):
    """What is inside begins from the start."""

    frame: bytes


def inline_decap(run: Run, packet: Packet) -> Outcome | Again | None:
    """Decapsulate a packet of IPIP or UDP, if it is one to be decapsulated; None: it is not."""
    features = run.features
    ipip = features.inline_decap_ipip and is_ipip(packet)
    gue = features.inline_decap_gue and packet.protocol == UDP and packet.dport == features.gue_port
    inner = inside(packet, run.quirks) if ipip or gue else None
    if inner is None:
        return None
    flags = run.maps.decap_flags(packet.dst, packet.family, run.quirks.families_share_keys)
    if flags is not None:
        run.counters.stat(Stat.DECAP_ADDRESS, v1=1)
    elif features.strict_decap and packet.dst != run.maps.sources.get(packet.family):
        return packet.outcome(Verdict.PASS)
    if not inner.is_whole:
        return packet.outcome(Verdict.DROP)
    run.counters.family(Stat.DECAP, 6 if ipip and run.quirks.ipip_decap_counts_as_v6 else packet.family)
    frame, lives = take_off(packet, inner, run)
    return _go_on(run, frame, inner.family, flags, gue) if lives else Outcome(Verdict.DROP, frame)


def _go_on(run: Run, frame: bytes, family: int, flags: int | None, gue: bool) -> Outcome | Again:
    """What becomes of the inner frame, by the flags of the outer destination."""
    if flags is None:
        return _pass_on(run, frame, gue)
    if gue and flags & _EGRESS:
        run.counters.family(Stat.EGRESS_DECAP, family)
        return Outcome(Verdict.TX, frame[6:12] + frame[0:6] + frame[12:])
    run.counters.family(Stat.CROSS_POP, family)
    return Again(frame)


def take_off(packet: Packet, inner: Inside, run: Run) -> tuple[bytes, bool]:
    """The inner frame with its TTL one less, and whether its TTL allows that."""
    frame = without_outer(packet, inner)
    header = frame[packet.ip : packet.ip + IP_HEADER[inner.family]]
    field = 8 if inner.family == 4 else 7
    ttl = header[field]
    lives = ttl > 1 or (ttl == 0 and run.quirks.ttl_0_wraps)
    header = header[:field] + bytes([ttl - 1 & 0xFF]) + header[field + 1 :]
    if inner.family == 4:
        check = number(header[10:12]) + 0x0100
        check = (check & 0xFFFF) + (check >> 16)
        header = header[:10] + struct.pack(">H", check) + header[12:]
    return frame[: packet.ip] + header + frame[packet.ip + len(header) :], lives


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
        vip = exact_vip(run, inner, VipKey(inner.dst, inner.dport, inner.protocol))
        if vip:
            run.counters.add("decap_vip_stats", vip.number, v1=1)
    return Outcome(Verdict.PASS, frame)
