# SPDX-License-Identifier: Apache-2.0
"""The program that gives TCP inside of GUE the source address of the outer header."""

from __future__ import annotations

import struct

from .checksum import checksum, minus, words
from .counters import Counters
from .features import Features
from .packet import TCP, UDP, Verdict, number, read_header, read_ip

STATS = "tc_srcmatch_map"
_NEEDED = 14 + 40 + 8 + 40 + 20


def match_source(features: Features, frame: bytes) -> tuple[Verdict, bytes, Counters]:
    """A frame, all of it linear."""
    counters = Counters()
    counters.field(f"{STATS}.packets_seen")
    if len(frame) < _NEEDED:
        counters.field(f"{STATS}.packets_need_pull")
        return Verdict.PIPE, frame, counters
    outer = read_ip(frame, features)
    if isinstance(outer, Verdict) or outer.family != 6 or outer.protocol != UDP or not read_header(outer):
        return Verdict.PIPE, frame, counters
    inner = outer.l4 + 8
    is_tcp = frame[inner] >> 4 == 6 and frame[inner + 6] == TCP
    if outer.dport != features.source_match_port or not is_tcp:
        return Verdict.PIPE, frame, counters
    counters.field(f"{STATS}.packets_acted")
    src, at = outer.addresses[0], inner + 40 + 16
    old = 0xFFFF - number(frame[at : at + 2])
    check = checksum(old, minus(words(frame[inner + 8 : inner + 24])), words(src))
    frame = frame[: inner + 8] + src + frame[inner + 24 : at] + struct.pack(">H", check) + frame[at + 2 :]
    return Verdict.PIPE, frame, counters
