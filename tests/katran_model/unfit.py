# SPDX-License-Identifier: Apache-2.0
"""What cannot be balanced: fragments, packets with IPv4 options, and those that end within their TCP or UDP header."""

from __future__ import annotations

from .packet import ICMPV6, L4_HEADER, TCP, UDP, Packet, Verdict, has_ports
from .run import Run
from .vip import find_vip, vip_of_address


def verdict_of_unfit(run: Run, packet: Packet) -> Verdict:
    """Dropped if it is for a VIP, else the stack's, as all that is neither TCP nor UDP."""
    if run.quirks.unfit_dropped_for_all:
        return Verdict.DROP
    if packet.payload:  # its ports were read
        return Verdict.DROP if find_vip(run, packet) else Verdict.PASS
    found = any(vip_of_address(run, packet, protocol) for protocol in _protocols(packet))
    return Verdict.DROP if found else Verdict.PASS


def _protocols(packet: Packet) -> tuple[int, ...]:
    """What it may be. Behind the fragment header of IPv6 there may be another header before that of TCP or UDP."""
    if has_ports(packet):
        return (packet.protocol,)
    unknown = packet.family == 6 and packet.is_fragment and packet.protocol != ICMPV6
    return tuple(L4_HEADER) if unknown else ()


def is_unfit(packet: Packet) -> bool:
    """Whether the IP header alone tells that."""
    return packet.is_fragment or packet.options != 0


def can_hash_addresses(packet: Packet) -> bool:
    """Whether it is a fragment of TCP or UDP, with its whole header."""
    whole = packet.family == 4 or len(packet.frame) >= packet.l4 + 8
    return packet.is_fragment and not packet.options and whole and packet.protocol in (TCP, UDP)
