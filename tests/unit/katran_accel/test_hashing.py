# SPDX-License-Identifier: Apache-2.0
"""The hashes against published values, values of upstream, and plain scalar versions of themselves."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.errors import NfcoreError
from nfcore.plugins.katran_accel.hashing import (
    RING_SIZE,
    Address,
    endpoint_hashes,
    flow_hash,
    jhash,
    jhash_2words,
    murmur3_pair,
    ring_slot,
)
from nfcore.plugins.katran_accel.maglev import Endpoint, build_ring

U32 = 0xFFFFFFFF
U64 = 0xFFFFFFFFFFFFFFFF
u32s = st.integers(0, U32)
u64s = st.integers(0, U64)
ports = st.integers(0, 65_535)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))

FLOW_KEY = np.dtype([("src", "V16"), ("dst", "V16"), ("sport", ">u2"), ("dport", ">u2"), ("proto", "u1")])


def rotated(x: int, bits: int) -> int:
    return (x << bits | x >> (32 - bits)) & U32


def plain_final(a: int, b: int, c: int) -> int:
    c = ((c ^ b) - rotated(b, 14)) & U32
    a = ((a ^ c) - rotated(c, 11)) & U32
    b = ((b ^ a) - rotated(a, 25)) & U32
    c = ((c ^ b) - rotated(b, 16)) & U32
    a = ((a ^ c) - rotated(c, 4)) & U32
    b = ((b ^ a) - rotated(a, 14)) & U32
    return ((c ^ b) - rotated(b, 24)) & U32


def plain_jhash(data: bytes, initval: int) -> int:
    a = b = c = (0xDEADBEEF + len(data) + initval) & U32
    while len(data) > 12:
        a, b, c = ((x + int.from_bytes(data[i : i + 4], "little")) & U32 for x, i in ((a, 0), (b, 4), (c, 8)))
        a, c = (a - c) & U32 ^ rotated(c, 4), (c + b) & U32
        b, a = (b - a) & U32 ^ rotated(a, 6), (a + c) & U32
        c, b = (c - b) & U32 ^ rotated(b, 8), (b + a) & U32
        a, c = (a - c) & U32 ^ rotated(c, 16), (c + b) & U32
        b, a = (b - a) & U32 ^ rotated(a, 19), (a + c) & U32
        c, b = (c - b) & U32 ^ rotated(b, 4), (b + a) & U32
        data = data[12:]
    if not data:
        return c
    a, b, c = ((x + int.from_bytes(data[i : i + 4], "little")) & U32 for x, i in ((a, 0), (b, 4), (c, 8)))
    return plain_final(a, b, c)


def jhash_of(data: bytes, initval: int) -> int:
    return int(jhash(np.frombuffer(data, np.uint8).reshape(1, -1), initval)[0])


def test_jhash_is_lookup3_as_published() -> None:
    # From the driver of lookup3.c, whose seed is added just like Linux's initval.
    assert jhash_of(b"", 0) == 0xDEADBEEF
    assert jhash_of(b"", 0xDEADBEEF) == 0xBD5B7DDE
    assert jhash_of(b"Four score and seven years ago", 0) == 0x17770551
    assert jhash_of(b"Four score and seven years ago", 1) == 0xCD628161


@given(st.binary(max_size=64), u32s)
def test_jhash_of_any_length(data: bytes, initval: int) -> None:
    assert jhash_of(data, initval) == plain_jhash(data, initval)


@given(st.integers(0, 40), st.integers(0, 5), u32s, st.randoms(use_true_random=False))
def test_jhash_of_rows_is_jhash_of_each(length: int, rows: int, initval: int, random) -> None:  # noqa: ANN001
    keys = [random.randbytes(length) for _ in range(rows)]
    hashed = jhash(np.frombuffer(b"".join(keys), np.uint8).reshape(rows, length), initval)
    assert hashed.dtype == np.uint32
    assert hashed.tolist() == [jhash_of(key, initval) for key in keys]


@given(u32s, u32s, u32s)
def test_jhash_2words(a: int, b: int, initval: int) -> None:
    start = (0xDEADBEEF + 8 + initval) & U32
    wanted = plain_final((a + start) & U32, (b + start) & U32, start)
    assert jhash_2words(a, b, initval).tolist() == [wanted]
    pair = np.array([a, b], np.uint32)
    assert jhash_2words(pair, b, initval)[0] == wanted


def flow_keys(flows: list[tuple[Address, int, int]]) -> np.ndarray:
    return np.array([(src.packed.ljust(16, b"\0"), b"", sport, dport, 6) for src, sport, dport in flows], FLOW_KEY)


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.data())
def test_flow_hash_of_a_batch_is_that_of_each_flow(version: int, data: st.DataObject) -> None:
    source = st.ip_addresses(v=version)  # type: ignore[call-overload]
    flows = data.draw(st.lists(st.tuples(source, ports, ports), max_size=20))
    hashed = flow_hash(flow_keys(flows), version)  # type: ignore[arg-type]
    assert hashed.dtype == np.uint32
    assert hashed.shape == (len(flows),)
    assert (hashed % RING_SIZE).tolist() == [ring_slot(*flow) for flow in flows]


@given(st.ip_addresses(v=4), ports, ports)
def test_flow_hash_of_v4_word_by_word(src: IPv4Address, sport: int, dport: int) -> None:
    word = int.from_bytes(src.packed, "little")
    both = int.from_bytes(sport.to_bytes(2, "big") + dport.to_bytes(2, "big"), "little")
    start = (0xDEADBEEF + 8 + 512 * 65_537) & U32
    wanted = plain_final((word + start) & U32, (both + start) & U32, start)
    assert flow_hash(flow_keys([(src, sport, dport)]), 4).tolist() == [wanted]


def test_flow_hash_takes_either_form_of_address() -> None:
    keys = flow_keys([(ip_address("2001:db8::7"), 1234, 443), (ip_address("2001:db8::8"), 1, 2)])
    octets = np.zeros(2, [("src", "u1", 16), ("sport", ">u2"), ("dport", ">u2")])
    octets["src"] = np.frombuffer(keys["src"].tobytes(), np.uint8).reshape(2, 16)
    octets["sport"], octets["dport"] = keys["sport"], keys["dport"]
    assert (flow_hash(keys, 6) == flow_hash(octets, 6)).all()


def test_flow_hash_refuses_other_families() -> None:
    with pytest.raises(NfcoreError, match=r"family 10 .* 4 or 6"):
        flow_hash(flow_keys([]), 10)  # type: ignore[arg-type]


V4_REALS = [Endpoint(n, IPv4Address(f"10.0.0.{n}"), 1) for n in (1, 2, 3)]
V6_REALS = [Endpoint(n + 3, IPv6Address(f"fc00::{n}"), 1) for n in (1, 2, 3)]


@pytest.mark.parametrize("maglev_version", [1, 2])
@pytest.mark.parametrize(
    ("src", "reals", "chosen"),
    [
        ("172.16.0.1", V4_REALS, "10.0.0.2"),
        ("172.16.0.1", V6_REALS, "fc00::2"),
        ("fc00:2::1", V6_REALS, "fc00::3"),
    ],
)
def test_flow_reaches_the_real_that_upstream_chooses(
    src: str, reals: list[Endpoint], chosen: str, maglev_version: int
) -> None:
    # Equal weights of 1 give the same ring in both versions.
    number = build_ring(reals, version=maglev_version)[ring_slot(ip_address(src), 31_337, 80)]
    assert {real.num: str(real.address) for real in reals}[int(number)] == chosen


def plain_murmur3_low64(data: bytes, seed: int) -> int:
    def turned(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & U64

    def mixed(k: int) -> int:
        k = (k ^ k >> 33) * 0xFF51AFD7ED558CCD & U64
        k = (k ^ k >> 33) * 0xC4CEB9FE1A85EC53 & U64
        return k ^ k >> 33

    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
    k1, k2 = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
    h1 = seed ^ turned(k1 * c1 & U64, 31) * c2 & U64
    h1 = ((turned(h1, 27) + seed) * 5 + 0x52DCE729) & U64
    h2 = seed ^ turned(k2 * c2 & U64, 33) * c1 & U64
    h2 = ((turned(h2, 31) + h1) * 5 + 0x38495AB5) & U64
    h1, h2 = h1 ^ 16, h2 ^ 16
    h1 = (h1 + h2) & U64
    h2 = (h2 + h1) & U64
    return (mixed(h1) + mixed(h2)) & U64


@given(st.lists(u64s, min_size=1, max_size=9), u64s, u32s)
def test_murmur3_of_arrays(firsts: list[int], second: int, seed: int) -> None:
    wanted = [plain_murmur3_low64(first.to_bytes(8, "little") + second.to_bytes(8, "little"), seed) for first in firsts]
    assert murmur3_pair(np.array(firsts, np.uint64), second, seed).tolist() == wanted


@given(st.lists(addresses, max_size=12))
def test_endpoint_hash_does_not_depend_on_the_others(reals: list[Address]) -> None:
    assert endpoint_hashes(reals).tolist() == [int(endpoint_hashes([real])[0]) for real in reals]


def test_endpoint_hash_extends_the_sign_of_octets() -> None:
    # Octets from 128 on flip the upper 24 bits as well, and so change which real comes first.
    def plain(address: IPv4Address, signed: bool) -> int:
        f = 2_166_136_261
        for octet in address.packed:
            f = f * 16_777_619 & U32 ^ (octet | 0xFFFFFF00 if signed and octet > 127 else octet)
        a = (f ^ 2) * 0x9DDFEA08EB382D69 & U64
        a ^= a >> 47
        b = (2 ^ a) * 0x9DDFEA08EB382D69 & U64
        return (b ^ b >> 47) * 0x9DDFEA08EB382D69 & U64

    low, high = IPv4Address("10.0.0.1"), IPv4Address("198.18.20.200")
    assert endpoint_hashes([low, high]).tolist() == [plain(low, True), plain(high, True)]
    assert plain(low, True) == plain(low, False)
    assert plain(high, True) != plain(high, False)
