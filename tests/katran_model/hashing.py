# SPDX-License-Identifier: Apache-2.0
"""The published hashes on Python's whole numbers: of flows, and of reals for Maglev rings.

Lookup3, FNV-1, CityHash's fold of 128 bits, SpookyHash V2 for 16 bytes and MurmurHash3 x64-128 for 16 bytes.
"""

from __future__ import annotations

import struct

RING_SLOTS = 65_537
_ALL_RINGS = 512 * RING_SLOTS
_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1
_SPOOKY = 0xDEADBEEFDEADBEEF
_CITY = 0x9DDFEA08EB382D69
_MURMUR = (0x87C37B91114253D5, 0x4CF5AD432745937F)


def _rotate32(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _U32


def _rotate64(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & _U64


def _lookup3_end(a: int, b: int, c: int) -> int:
    c = (c ^ b) - _rotate32(b, 14) & _U32
    a = (a ^ c) - _rotate32(c, 11) & _U32
    b = (b ^ a) - _rotate32(a, 25) & _U32
    c = (c ^ b) - _rotate32(b, 16) & _U32
    a = (a ^ c) - _rotate32(c, 4) & _U32
    b = (b ^ a) - _rotate32(a, 14) & _U32
    return (c ^ b) - _rotate32(b, 24) & _U32


def _two_words(first: int, second: int, seed: int) -> int:
    start = 0xDEADBEEF + 8 + seed & _U32
    return _lookup3_end(first + start & _U32, second + start & _U32, start)


def _sixteen_bytes(data: bytes, seed: int) -> int:
    words = struct.unpack("<4I", data)
    start = 0xDEADBEEF + 16 + seed & _U32
    a, b, c = (start + word & _U32 for word in words[:3])
    for bits in (4, 6, 8, 16, 19, 4):
        a = (a - c ^ _rotate32(c, bits)) & _U32
        a, b, c = b, c + b & _U32, a
    return _lookup3_end(a + words[3] & _U32, b, c)


def flow_slot(family: int, src: bytes, sport: int, dport: int) -> int:
    """Slot of a flow in the ring of its VIP. `src`: 16 bytes, those of IPv4 first; ports as numbers."""
    ports = int.from_bytes(struct.pack(">HH", sport, dport), "little")
    word = int.from_bytes(src[:4], "little") if family == 4 else _sixteen_bytes(src, 512)
    return _two_words(word, ports, _ALL_RINGS) % RING_SLOTS


def _fold128(upper: int, lower: int) -> int:
    a = (lower ^ upper) * _CITY & _U64
    a ^= a >> 47
    b = (a ^ upper) * _CITY & _U64
    b ^= b >> 47
    return b * _CITY & _U64


def _fnv32(octets: bytes) -> int:
    word = 2_166_136_261
    for octet in octets:
        word = word * 16_777_619 & _U32 ^ (octet | 0xFFFFFF00 if octet & 0x80 else octet)
    return word


def _spooky(octets: bytes) -> tuple[int, int]:
    first, second = struct.unpack("<2Q", octets)
    h = [0, 0, _SPOOKY + first & _U64, _SPOOKY + second & _U64]
    for step, bits in enumerate((50, 52, 30, 41, 54, 48, 38, 37, 62, 34, 5, 36)):
        turned, added, mixed = (step + 2) % 4, (step + 3) % 4, step % 4
        h[turned] = _rotate64(h[turned], bits) + h[added] & _U64
        h[mixed] ^= h[turned]
    h[2] = h[2] + _SPOOKY & _U64
    h[3] = h[3] + _SPOOKY + (16 << 56) & _U64
    for step, bits in enumerate((15, 52, 26, 51, 28, 9, 47, 54, 32, 25, 63)):
        mixed, turned = (step + 3) % 4, (step + 2) % 4
        h[mixed] ^= h[turned]
        h[turned] = _rotate64(h[turned], bits)
        h[mixed] = h[mixed] + h[turned] & _U64
    return h[0], h[1]


def real_hash(address: bytes) -> int:
    """Hash of a real's address, 4 or 16 bytes."""
    if len(address) == 4:
        return _fold128(2, _fnv32(address))
    return _fold128(10, _fold128(*_spooky(address)))


def _avalanche(word: int) -> int:
    word = (word ^ word >> 33) * 0xFF51AFD7ED558CCD & _U64
    word = (word ^ word >> 33) * 0xC4CEB9FE1A85EC53 & _U64
    return word ^ word >> 33


def murmur(first: int, second: int, seed: int) -> int:
    """The low 64 bits of MurmurHash3 x64-128 of two words of 64 bits."""
    h1 = seed ^ _rotate64(first * _MURMUR[0] & _U64, 31) * _MURMUR[1] & _U64
    h1 = (_rotate64(h1, 27) + seed) * 5 + 0x52DCE729 & _U64
    h2 = seed ^ _rotate64(second * _MURMUR[1] & _U64, 33) * _MURMUR[0] & _U64
    h2 = (_rotate64(h2, 31) + h1) * 5 + 0x38495AB5 & _U64
    h1, h2 = h1 ^ 16, h2 ^ 16
    h1 = h1 + h2 & _U64
    h2 = h2 + h1 & _U64
    return _avalanche(h1) + _avalanche(h2) & _U64
