# SPDX-License-Identifier: Apache-2.0
"""Valid frames made wrong: cut, with lying lengths, with other bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from .generator import FrameSource

SHORTEST = 14
"""Bytes of the shortest frame that a program is run on."""
_NUMBERS = (0, 1, 4, 7, 8, 19, 20, 40, 0x7F, 0x80, 0xFF, 0x100, 0x5DC, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)


def truncations(frame: bytes) -> Iterator[bytes]:
    """The frame cut at each byte."""
    for size in range(SHORTEST, len(frame)):
        yield frame[:size]


def _cut(source: random.Random, frame: bytes) -> bytes:
    return frame[: source.randrange(SHORTEST, len(frame) + 1)]


def _byte(source: random.Random, frame: bytes) -> bytes:
    """One other byte, in the headers most of all."""
    at = source.randrange(12, min(len(frame), source.choice([40, 64, 128, 2000])))
    return frame[:at] + bytes([source.randrange(256)]) + frame[at + 1 :]


def _bit(source: random.Random, frame: bytes) -> bytes:
    at = source.randrange(12, min(len(frame), 128))
    return frame[:at] + bytes([frame[at] ^ 1 << source.randrange(8)]) + frame[at + 1 :]


def _lie(source: random.Random, frame: bytes) -> bytes:
    """Another length: of the IP packet, in UDP, or of a TCP or IPv4 header."""
    at = source.choice([14, 16, 18, 38, 46, 58, 66, 46 + 28, 58 + 48])
    word = source.choice(_NUMBERS).to_bytes(2, "big")
    if len(frame) < at + 2:
        return frame
    return frame[:at] + (word if at != 14 else bytes([0x40 | word[1] & 15, frame[15]])) + frame[at + 2 :]


def _grow(source: random.Random, frame: bytes) -> bytes:
    return frame + bytes(source.choice([1, 2, 6, 46]))


def _double(source: random.Random, frame: bytes) -> bytes:
    """A part twice, what follows moves."""
    start = source.randrange(SHORTEST, len(frame) + 1)
    size = source.choice([1, 4, 8, 20, 40])
    return frame[: start + size] + frame[start:]


def _ethertype(source: random.Random, frame: bytes) -> bytes:
    return frame[:12] + source.choice([b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x88\xa8"]) + frame[14:]


MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [
    *[_cut] * 4,
    *[_byte] * 3,
    *[_bit] * 3,
    *[_lie] * 3,
    _grow,
    _double,
    _ethertype,
]


def fuzzed(source: FrameSource, valid: float = 0.3) -> bytes:
    """A frame, unchanged in a share of the cases, else with one to three mutations."""
    frame = source.frame()
    if source.random.random() < valid:
        return frame
    for _ in range(source.random.choice([1, 1, 1, 2, 3])):
        frame = source.random.choice(MUTATIONS)(source.random, frame)
    return frame
