# SPDX-License-Identifier: Apache-2.0
"""What is inside of IPIP and GUE, and where it begins."""

from __future__ import annotations

from typing import NamedTuple

from .features import Quirks
from .packet import ETHERTYPES, IP_HEADER, IPIP, IPV6, UDP, Packet

UDP_HEADER = 8
_VERSIONS = {IPIP: 4, IPV6: 6}
"""Protocol → version of the IP packet inside."""


class Inside(NamedTuple):
    """A packet in a packet."""

    at: int
    """Offset of its IP header."""
    family: int
    is_whole: bool
    """Whether an IP header of this family is there."""


def is_ipip(packet: Packet) -> bool:
    """Whether it is IPIP, of whatever families."""
    return packet.protocol in _VERSIONS


def inside(packet: Packet, quirks: Quirks) -> Inside | None:
    """What is inside of IPIP, or else of UDP to GUE's port; None: no IP packet, but a GUE header of another variant."""
    gue = packet.protocol == UDP
    at = packet.l4 + (UDP_HEADER if gue else 0)
    first = (packet.frame[at : at + 1] or b"\0")[0]
    family = first >> 4 if gue else _VERSIONS[packet.protocol]
    if quirks.inner_version_unchecked and gue:
        family = 6 if packet.family == 6 and first & 0x30 else 4
    if family not in IP_HEADER:
        return None
    if quirks.six_in_four_takes_40 and packet.family == 4 and packet.protocol == IPV6:
        at = packet.ip + 40
    fits = quirks.inner_version_unchecked or first >> 4 == family
    return Inside(at, family, fits and len(packet.frame) >= at + IP_HEADER[family])


def without_outer(packet: Packet, inner: Inside) -> bytes:
    """The frame without what lies between the Ethernet header and the inner packet."""
    return packet.frame[: packet.ip - 2] + ETHERTYPES[inner.family] + packet.frame[inner.at :]
