# SPDX-License-Identifier: Apache-2.0
"""What flow_actions should do with a frame, written without its code: reads the frame's bytes, walks all entries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nfcore.api.flows import FLOW_KEY
from nfcore.plugins.flow_actions.layouts import ENTRY

TCP, UDP = 6, 17
HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS = 0, 43, 44, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS)
UNKNOWN = None


@dataclass(frozen=True)
class Facts:
    """What can be read of a frame."""

    family: int
    src: int
    dst: int
    proto: int | None
    sport: int = 0
    dport: int = 0


@dataclass(frozen=True)
class Match:
    """An entry, with what it is for. None: anything."""

    family: int = 4
    src: int = 0
    src_bits: int = 0
    """Length of the prefix."""
    dst: int = 0
    dst_bits: int = 0
    sport: int | None = None
    dport: int | None = None
    proto: int | None = None
    priority: int = 0
    slot: int = 0
    target: int = 1

    @property
    def width(self) -> int:
        return 32 if self.family == 4 else 128

    @property
    def exact(self) -> bool:
        ends = self.src_bits == self.dst_bits == self.width
        return ends and None not in (self.sport, self.dport, self.proto)

    @property
    def fixed_bits(self) -> int:
        ports = sum(16 for port in (self.sport, self.dport) if port is not None)
        return self.src_bits + self.dst_bits + ports + (0 if self.proto is None else 8)

    @property
    def precedence(self) -> int:
        return self.fixed_bits << 16 | self.priority

    def matches(self, facts: Facts) -> bool:
        def inside(address: int, prefix: int, bits: int) -> bool:
            return address >> (self.width - bits) == prefix >> (self.width - bits)

        return (
            facts.family == self.family
            and inside(facts.src, self.src, self.src_bits)
            and inside(facts.dst, self.dst, self.dst_bits)
            and self.sport in (None, facts.sport)
            and self.dport in (None, facts.dport)
            and (self.proto is None or self.proto == facts.proto)
        )

    def row(self) -> np.void:
        """The entry as a row for the data plane."""
        rows = np.zeros(1, dtype=ENTRY)
        key = np.zeros(1, dtype=FLOW_KEY)
        size = self.width // 8
        for name, address, bits in (("src", self.src, self.src_bits), ("dst", self.dst, self.dst_bits)):
            masked = address >> (self.width - bits) << (self.width - bits)
            key[name][0, :size] = np.frombuffer(masked.to_bytes(size, "big"), np.uint8)
        key["sport"], key["dport"], key["proto"] = self.sport or 0, self.dport or 0, self.proto or 0
        anything = (self.sport is None) + 2 * (self.dport is None) + 4 * (self.proto is None)
        key["wild"] = self.width - self.src_bits, self.width - self.dst_bits, anything
        rows["key"], rows["family"], rows["slot"], rows["target"] = key, self.family, self.slot, self.target
        rows["precedence"] = self.precedence
        row: np.void = rows[0]
        return row


def rows(matches: Iterable[Match]) -> np.ndarray:
    """Entries as rows for the data plane."""
    every = [match.row() for match in matches]
    return np.array(every, dtype=ENTRY) if every else np.zeros(0, dtype=ENTRY)


def find(matches: Iterable[Match], facts: Facts | None) -> list[Match]:
    """The entries that may win, several if nothing decides between them; empty if none matches."""
    fitting = [match for match in matches if facts is not None and match.matches(facts)]
    exact = [match for match in fitting if match.exact]
    if exact or not fitting:
        return exact
    best = max(match.precedence for match in fitting)
    return [match for match in fitting if match.precedence == best]


def read(frame: bytes) -> Facts | None:
    """Read a frame; None where there is no whole IP header behind an untagged Ethernet header."""
    kind, ip = frame[12:14], frame[14:]
    if kind == b"\x08\x00" and len(ip) >= 20:
        return _read_ipv4(ip)
    if kind == b"\x86\xdd" and len(ip) >= 40:
        return _read_ipv6(ip)
    return None


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _ports(proto: int | None, rest: bytes) -> tuple[int, int]:
    if proto not in (TCP, UDP) or len(rest) < 4:
        return 0, 0
    return _number(rest[:2]), _number(rest[2:4])


def _read_ipv4(ip: bytes) -> Facts:
    version, length, proto = ip[0] >> 4, (ip[0] & 15) * 4, ip[9]
    whole = _number(ip[6:8]) & 0x3FFF == 0
    ports = _ports(proto, ip[length:]) if whole and version == 4 and length >= 20 else (0, 0)
    return Facts(4, _number(ip[12:16]), _number(ip[16:20]), proto, *ports)


def _read_ipv6(ip: bytes) -> Facts:
    src, dst = _number(ip[8:24]), _number(ip[24:40])
    proto, rest = ip[6], ip[40:]
    for _ in range(4):
        if proto not in EXTENSIONS:
            break
        if len(rest) < 8:
            return Facts(6, src, dst, UNKNOWN)
        if proto == FRAGMENT:
            proto, bits, rest = rest[0], _number(rest[2:4]), rest[8:]
            if bits & 0xFFF9:
                return Facts(6, src, dst, UNKNOWN if proto in EXTENSIONS else proto)
        else:
            proto, rest = rest[0], rest[(rest[1] + 1) * 8 :]
    if proto in EXTENSIONS:
        return Facts(6, src, dst, UNKNOWN)
    return Facts(6, src, dst, proto, *_ports(proto, rest))
