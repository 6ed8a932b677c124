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
    NOT_ADDRESSED = 5
    OTHER_PROTOCOL = 6
    NOT_A_VIP = 7
    MALFORMED = 8
    TOO_BIG = 9
    NO_REAL = 10
    NO_NEXT_HOP = 11
    NO_HEADROOM = 12

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
    PacketReason.NOT_ADDRESSED: "to a MAC address that the balancer does not take",
    PacketReason.OTHER_PROTOCOL: "neither TCP nor UDP",
    PacketReason.NOT_A_VIP: "to no VIP",
    PacketReason.MALFORMED: "to a VIP, but truncated, a fragment or with IP options",
    PacketReason.TOO_BIG: "the frame is longer than 1514 bytes",
    PacketReason.NO_REAL: "the VIP has no real for it",
    PacketReason.NO_NEXT_HOP: "the MAC address to send to is not known",
    PacketReason.NO_HEADROOM: "the driver has no room for an outer header",
}
REASONS = {reason.word: reason for reason in PacketReason}
VERDICTS = {"drop": 1, "pass": 2, "tx": 3}
"""Verdicts that a packet may get, by name: ``enum xdp_action``."""
