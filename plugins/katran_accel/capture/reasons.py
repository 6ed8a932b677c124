# SPDX-License-Identifier: Apache-2.0
"""Why a packet got its verdict: bpf/balancer/reason.h in words."""

from __future__ import annotations

from enum import IntEnum


class PacketReason(IntEnum):
    """As the C enum has them."""

    UNKNOWN = 0
    BY_MARK = 1
    KNOWN = 2
    BY_RULE = 3
    NEW = 4
    SERVER_ID = 5
    SOURCE_ROUTE = 6
    GLOBAL_LRU = 7
    FRAGMENT = 8
    ECHO = 9
    DECAPSULATED = 10
    NOT_ADDRESSED = 11
    OTHER_PROTOCOL = 12
    NOT_A_VIP = 13
    OTHER_TUNNEL = 14
    MALFORMED = 15
    TOO_BIG = 16
    NO_REAL = 17
    UNKNOWN_ID = 18
    FAMILY = 19
    TTL = 20
    NO_NEXT_HOP = 21
    NO_HEADROOM = 22

    @property
    def word(self) -> str:
        """The name in commands and JSON, such as ``no_real``."""
        return self.name.lower()

    @property
    def sentence(self) -> str:
        """What it says of a packet."""
        return _SENTENCES[self]


_SENTENCES = {
    PacketReason.UNKNOWN: "the program does not tell",
    PacketReason.BY_MARK: "its mark leads to the real",
    PacketReason.KNOWN: "the connection table leads to the real",
    PacketReason.BY_RULE: "its flow has a rule, and it came without the mark",
    PacketReason.NEW: "the ring leads to the real",
    PacketReason.SERVER_ID: "an id in it names the real",
    PacketReason.SOURCE_ROUTE: "its source address has a route to the real",
    PacketReason.GLOBAL_LRU: "the table of other hosts' flows leads to the real",
    PacketReason.FRAGMENT: "a fragment: its source address alone leads to the real",
    PacketReason.ECHO: "an echo request to a VIP: answered",
    PacketReason.DECAPSULATED: "taken out of a tunnel",
    PacketReason.NOT_ADDRESSED: "to a MAC address that the balancer does not take",
    PacketReason.OTHER_PROTOCOL: "of a protocol that is not balanced",
    PacketReason.NOT_A_VIP: "to no VIP",
    PacketReason.OTHER_TUNNEL: "a tunnel that ends elsewhere",
    PacketReason.MALFORMED: "to a VIP, but truncated, a fragment or with IP options",
    PacketReason.TOO_BIG: "longer than the MTU",
    PacketReason.NO_REAL: "the VIP has no real for it",
    PacketReason.UNKNOWN_ID: "its id is that of a real which is not there",
    PacketReason.FAMILY: "IPIP cannot take IPv6 to an IPv4 real",
    PacketReason.TTL: "what was in the tunnel has no TTL left",
    PacketReason.NO_NEXT_HOP: "the MAC address to send to is not known",
    PacketReason.NO_HEADROOM: "the driver has no room for an outer header",
}
REASONS = {reason.word: reason for reason in PacketReason}
VERDICTS = {"drop": 1, "pass": 2, "tx": 3}
"""Verdicts that a packet may get, by name: ``enum xdp_action``."""
