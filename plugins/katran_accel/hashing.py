# SPDX-License-Identifier: Apache-2.0
"""The hashes on which Katran's data plane and control plane agree.

:func:`flow_hash` runs per packet in XDP and is repeated here to predict a flow's ring slot; the others run
when a Maglev ring is built (:func:`endpoint_hashes`, :func:`murmur3_pair`). Each was written from its
published algorithm: lookup3 (Bob Jenkins, public domain) seeded as Linux does it, FNV-1 (Fowler, Noll, Vo),
CityHash's 128-to-64 fold, SpookyHash V2 (Bob Jenkins, public domain) and MurmurHash3 x64-128 (Austin
Appleby, public domain).

All of them work on arrays: numpy's fixed-width integers wrap exactly as C's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nfcore.errors import NfcoreError

Address: TypeAlias = IPv4Address | IPv6Address
U8: TypeAlias = NDArray[np.uint8]
U32: TypeAlias = NDArray[np.uint32]
U64: TypeAlias = NDArray[np.uint64]

RING_SIZE = 65_537
"""Slots of one VIP's ring: prime, part of the ABI."""

FLOW_SEED = 33_554_944
"""Seed of a flow's hash: slots of all rings together, 512 VIPs × :data:`RING_SIZE`."""
V6_SOURCE_SEED = 512
"""Seed of the fold of a v6 source address into one word."""

_JHASH_INITVAL = 0xDEADBEEF
_FNV32_OFFSET_BASIS = 2_166_136_261
_FNV32_PRIME = np.uint32(16_777_619)
_CITY_MULTIPLIER = np.uint64(0x9DDFEA08EB382D69)
_SPOOKY_CONSTANT = np.uint64(0xDEADBEEFDEADBEEF)
_SPOOKY_LENGTH = np.uint64(16 << 56)
_SPOOKY_MIX_ROTATIONS = (50, 52, 30, 41, 54, 48, 38, 37, 62, 34, 5, 36)
_SPOOKY_END_ROTATIONS = (15, 52, 26, 51, 28, 9, 47, 54, 32, 25, 63)
_MURMUR_C1 = np.uint64(0x87C37B91114253D5)
_MURMUR_C2 = np.uint64(0x4CF5AD432745937F)
_MURMUR_LENGTH = np.uint64(16)
# Linux's numbers, on whatever machine the ring is computed.
_AF_INET = np.uint64(2)
_AF_INET6 = np.uint64(10)


def _rotated32(x: U32, bits: int) -> U32:
    return x << np.uint32(bits) | x >> np.uint32(32 - bits)


def _rotated64(x: U64, bits: int) -> U64:
    return x << np.uint64(bits) | x >> np.uint64(64 - bits)


def _lookup3_mix(a: U32, b: U32, c: U32) -> tuple[U32, U32, U32]:
    """Lookup3's reversible mix between two groups of three words."""
    for bits in (4, 6, 8, 16, 19, 4):
        a = a - c ^ _rotated32(c, bits)
        c = c + b
        a, b, c = b, c, a
    return a, b, c


def _lookup3_final(a: U32, b: U32, c: U32) -> U32:
    """Lookup3's last mix; returns its third word, the hash."""
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotated32(b, bits)
        a, b, c = b, c, a
    return b


def jhash_2words(a: U32 | int, b: U32 | int, initval: int) -> U32:
    """Linux's ``jhash_2words`` element by element.

    ``a`` and ``b`` are u32 arrays (native byte order, shapes that broadcast) or ints below 2³²; ``initval``
    is a u32. Returns u32, of at least one dimension.
    """
    words = np.atleast_1d(np.asarray(a, np.uint32)), np.atleast_1d(np.asarray(b, np.uint32))
    start = np.full(1, (_JHASH_INITVAL + 8 + initval) & 0xFFFFFFFF, np.uint32)
    return _lookup3_final(words[0] + start, words[1] + start, start)


def jhash(data: U8, initval: int) -> U32:
    """Linux's ``jhash`` over bytes, words read as little-endian.

    ``data`` is a u8 array of shape (rows, length), a key per row; ``initval`` is a u32. Returns u32 of shape (rows,).
    """
    rows, length = data.shape
    # Padding with zeros to whole groups of 12 bytes adds nothing to the sums.
    groups = max(1, -(-length // 12))
    padded = np.zeros((rows, groups * 12), np.uint8)
    padded[:, :length] = data
    words = padded.view("<u4").astype(np.uint32, copy=False)
    a = b = c = np.full(rows, (_JHASH_INITVAL + length + initval) & 0xFFFFFFFF, np.uint32)
    if length == 0:
        return c
    for first in range(0, 3 * groups, 3):
        a, b, c = a + words[:, first], b + words[:, first + 1], c + words[:, first + 2]
        if first < 3 * (groups - 1):
            a, b, c = _lookup3_mix(a, b, c)
    return _lookup3_final(a, b, c)


def flow_hash(keys: NDArray[Any], family: Literal[4, 6]) -> U32:
    """Hash of each flow; its slot in the VIP's ring is this modulo :data:`RING_SIZE`.

    ``keys`` is a one-dimensional structured array with at least ``src`` (16 bytes, ``V16`` or ``u1[16]``; a
    v4 address fills the first four), ``sport`` and ``dport`` (``>u2``, network order as in Katran's
    flow_key), all of one ``family``. Fields that the VIP's flags ignore are zero already. Returns native u32 of the
    shape of ``keys``.

    Raises NfcoreError when ``family`` is neither 4 nor 6.
    """
    if family not in (4, 6):
        raise NfcoreError(f"flow_hash: family {family!r} is not an IP version; it has to be 4 or 6")
    source = np.frombuffer(keys["src"].tobytes(), np.uint8).reshape(len(keys), 16)
    # XDP loads both ports as one word, and sport comes first in memory.
    sport, dport = (keys[name].astype(">u2").view("<u2").astype(np.uint32) for name in ("sport", "dport"))
    if family == 4:
        word: U32 = source[:, :4].copy().view("<u4").reshape(-1).astype(np.uint32, copy=False)
    else:
        word = jhash(source, V6_SOURCE_SEED)
    return jhash_2words(word, sport | dport << np.uint32(16), FLOW_SEED)


def ring_slots(keys: NDArray[Any], families: NDArray[Any]) -> NDArray[np.int64]:
    """Slot in 0..65,536 of each flow.

    ``keys`` as for :func:`flow_hash`, but of either family: ``families`` has 4 or 6 for each. Returns i64 of the
    shape of ``keys``.
    """
    slots = np.zeros(len(keys), np.int64)
    for family in (4, 6):
        rows = families == family
        if rows.any():
            slots[rows] = flow_hash(keys[rows], 4 if family == 4 else 6) % np.uint32(RING_SIZE)
    return slots


def ring_slot(src: Address, sport: int, dport: int) -> int:
    """Slot in 0..65,536 of one flow; ports as numbers (80, not its network-order image)."""
    key = np.zeros(1, [("src", "u1", 16), ("sport", ">u2"), ("dport", ">u2")])
    key["src"][0, : len(src.packed)] = np.frombuffer(src.packed, np.uint8)
    key["sport"], key["dport"] = sport, dport
    return int(ring_slots(key, np.array([src.version]))[0])


def _fold128(upper: U64 | np.uint64, lower: U64) -> U64:
    """CityHash's Hash128to64 of (upper, lower)."""
    a = (lower ^ upper) * _CITY_MULTIPLIER
    a = a ^ a >> np.uint64(47)
    b = (a ^ upper) * _CITY_MULTIPLIER
    b = b ^ b >> np.uint64(47)
    return b * _CITY_MULTIPLIER


def _fnv32(octets: U8) -> U64:
    """32-bit FNV-1 of each row of ``octets`` (rows, n), each octet sign-extended; widened to u64."""
    extended = octets.astype(np.int8).astype(np.int32).astype(np.uint32)
    hashed = np.full(len(octets), _FNV32_OFFSET_BASIS, np.uint32)
    for column in extended.T:
        hashed = hashed * _FNV32_PRIME ^ column
    return hashed.astype(np.uint64)


def _spooky128(octets: U8) -> tuple[U64, U64]:
    """SpookyHash V2 ("short", seeds 0) of each row of ``octets`` (rows, 16)."""
    words = octets.view("<u8").astype(np.uint64, copy=False)
    blank = np.zeros(len(octets), np.uint64)
    h = [blank, blank, words[:, 0] + _SPOOKY_CONSTANT, words[:, 1] + _SPOOKY_CONSTANT]
    for step, bits in enumerate(_SPOOKY_MIX_ROTATIONS):
        i, j, k = (step + 2) % 4, (step + 3) % 4, step % 4
        h[i] = _rotated64(h[i], bits) + h[j]
        h[k] = h[k] ^ h[i]
    # No bytes follow the first 16: the length and the constants of an empty rest are added.
    h[2] = h[2] + _SPOOKY_CONSTANT
    h[3] = h[3] + _SPOOKY_LENGTH + _SPOOKY_CONSTANT
    for step, bits in enumerate(_SPOOKY_END_ROTATIONS):
        i, j = (step + 3) % 4, (step + 2) % 4
        h[i] = h[i] ^ h[j]
        h[j] = _rotated64(h[j], bits)
        h[i] = h[i] + h[j]
    return h[0], h[1]


def endpoint_hashes(addresses: Sequence[Address]) -> U64:
    """Hash of each real's address: it orders the reals and seeds their permutations of a Maglev ring's slots.

    Any mix of v4 and v6. Returns u64 of shape (len(addresses),), in the order given.
    """
    hashes = np.empty(len(addresses), np.uint64)
    v4 = [i for i, address in enumerate(addresses) if address.version == 4]
    v6 = [i for i, address in enumerate(addresses) if address.version == 6]
    if v4:
        octets = np.frombuffer(b"".join([addresses[i].packed for i in v4]), np.uint8).reshape(-1, 4)
        hashes[v4] = _fold128(_AF_INET, _fnv32(octets))
    if v6:
        octets = np.frombuffer(b"".join([addresses[i].packed for i in v6]), np.uint8).reshape(-1, 16)
        hashes[v6] = _fold128(_AF_INET6, _fold128(*_spooky128(octets)))
    return hashes


def _murmur_scrambled(k: U64, first: np.uint64, bits: int, second: np.uint64) -> U64:
    return _rotated64(k * first, bits) * second


def _murmur_avalanched(k: U64) -> U64:
    """MurmurHash3's 64-bit finalizer."""
    k = (k ^ k >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    k = (k ^ k >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    return k ^ k >> np.uint64(33)


def murmur3_pair(a: U64, b: int, seed: int) -> U64:
    """Low 64 bits of MurmurHash3 x64-128 of the 16 bytes that u64 ``a``, u64 ``b`` fill (little-endian).

    ``a`` is a u64 array of one dimension, and so is the result; ``seed`` is a u32.
    """
    start, five = np.uint64(seed), np.uint64(5)
    h1 = _murmur_scrambled(a, _MURMUR_C1, 31, _MURMUR_C2) ^ start
    h1 = (_rotated64(h1, 27) + start) * five + np.uint64(0x52DCE729)
    h2 = _murmur_scrambled(np.array([b], np.uint64), _MURMUR_C2, 33, _MURMUR_C1) ^ start
    h2 = (_rotated64(h2, 31) + h1) * five + np.uint64(0x38495AB5)
    h1, h2 = h1 ^ _MURMUR_LENGTH, h2 ^ _MURMUR_LENGTH
    h1 = h1 + h2
    h2 = h2 + h1
    return _murmur_avalanched(h1) + _murmur_avalanched(h2)
