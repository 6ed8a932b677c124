# SPDX-License-Identifier: Apache-2.0
"""The filter never says that there is no entry where there is one, and forgets what is removed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nfcore.api.flows import FLOW_KEY
from nfcore.plugins.flow_actions import layouts as lay
from nfcore.plugins.flow_actions.filters import Filter, TooManyShapesError, shape_number

LOG2 = 10
"""So few bits that keys share some."""


def new_filter(family: int) -> tuple[Filter, NDArray[np.void]]:
    memory = np.ones(1, dtype=lay.filter_layout(LOG2))
    random = np.random.default_rng(1).integers(0, 1 << 63, Filter.random_numbers(), dtype=np.uint64)
    return Filter(memory, family, LOG2, random), memory


def u64(number: int) -> int:
    return number & (1 << 64) - 1


def may_have(memory: NDArray[np.void], words: list[int]) -> bool:
    """As filter.h: both bits of a key's hash."""
    keys = memory["hash_keys"][0].tolist()
    hashed = u64(sum((word ^ word >> 32) * key for word, key in zip(words, keys, strict=False)))
    rest = hashed >> (64 - (LOG2 - 6) - 12)
    word = int(memory["bits"][0][rest >> 12])
    return bool(word >> (rest & 63) & 1) and bool(word >> (rest >> 6 & 63) & 1)


def shapes_of(end: np.void, family: int, words: list[int]) -> int:
    """As filter.h: the shapes at an address."""
    keys, levels = end["keys"].tolist(), end["levels"].tolist()
    first = words[0]
    if family == 4:
        hashes = [(first & 0xFFFFFF) * keys[0], (first & 0xFFFFFFFF) * keys[1]]
    else:
        last = words[1]
        hashes = [(first & 0xFFFFFFFFFFFF) * keys[0], first * keys[1]]
        hashes += [first * keys[2] + (last & (1 << 56) - 1) * keys[3], first * keys[3] + last * keys[4]]
    shapes = u64(-1)
    for level, hashed in enumerate(hashes):
        shapes &= levels[level][u64(hashed) >> 52]
    return shapes


def candidates(memory: NDArray[np.void], family: int, words: list[int]) -> int:
    """As filter.h: the shapes that may have an entry for a packet."""
    row = memory[0]
    if not row["shapes"]:
        return 0
    key = int(row["port_key"])
    shapes = int(row["sport"][u64((words[0] & 0xFFFF) * key) >> 54])
    shapes &= int(row["dport"][u64((words[0] >> 16 & 0xFFFF) * key) >> 54])
    shapes &= int(row["protocol"][words[0] >> 32 & 511])
    src, dst = ([words[1]], [words[1] >> 32]) if family == 4 else (words[1:3], words[3:5])
    return shapes & shapes_of(row["src"], family, src) & shapes_of(row["dst"], family, dst)


@st.composite
def keys(draw: st.DrawFn, family: int) -> tuple[bytes, bytes]:
    """A masked key, and one of a packet that it matches."""
    size = 4 if family == 4 else 16
    raw = draw(st.binary(min_size=2 * size + 5, max_size=2 * size + 5))
    opens = st.integers(0, 8 * size)
    wild = draw(opens | st.just(0)), draw(opens | st.just(0)), draw(st.integers(0, 7))
    packet, entry = np.zeros(1, dtype=FLOW_KEY), np.zeros(1, dtype=FLOW_KEY)
    for place, name in enumerate(("src", "dst")):
        address = raw[place * size : (place + 1) * size]
        masked = int.from_bytes(address, "big") >> wild[place] << wild[place]
        packet[name][0, :size] = np.frombuffer(address, np.uint8)
        entry[name][0, :size] = np.frombuffer(masked.to_bytes(size, "big"), np.uint8)
    numbers = int.from_bytes(raw[-5:-3], "big"), int.from_bytes(raw[-3:-1], "big"), raw[-1]
    for flag, name, number in zip((1, 2, 4), ("sport", "dport", "proto"), numbers, strict=True):
        packet[name] = number
        entry[name] = 0 if wild[2] & flag else number
    entry["wild"] = wild
    return entry.tobytes(), packet.tobytes()


def key_rows(raw: list[bytes]) -> NDArray[np.void]:
    return np.frombuffer(b"".join(raw), dtype=FLOW_KEY)


def is_found(filter_: Filter, memory: NDArray[np.void], packet: bytes, key: bytes) -> bool:
    """Whether the datapath would ask the hash map for this entry, given a packet that it matches."""
    batch = filter_.prepare(key_rows([key]), create=False)
    words = lay.key_words(key_rows([packet]), filter_.family)[0].tolist()
    bit = int(batch.bits[0])
    if bit >= 0 and not candidates(memory, filter_.family, words) >> bit & 1:
        return False
    return may_have(memory, batch.words[0].tolist())


@pytest.mark.parametrize("family", [4, 6])
@given(data=st.data())
def test_every_entry_is_found_until_it_is_removed(family: int, data: st.DataObject) -> None:
    filter_, memory = new_filter(family)
    empty = memory.copy()
    packet_of: dict[bytes, bytes] = {}
    for _ in range(data.draw(st.integers(1, 4))):
        added = dict(data.draw(st.lists(keys(family), max_size=12)))
        added = {key: packet for key, packet in added.items() if key not in packet_of}
        filter_.add(filter_.prepare(key_rows(list(added)), create=True))
        packet_of |= added
        if packet_of:
            gone = data.draw(st.lists(st.sampled_from(sorted(packet_of)), unique=True))
            filter_.remove(filter_.prepare(key_rows(gone), create=False))
            for key in gone:
                del packet_of[key]
        assert all(is_found(filter_, memory, packet, key) for key, packet in packet_of.items())
    filter_.remove(filter_.prepare(key_rows(list(packet_of)), create=False))
    for name in ("shapes", "sport", "dport", "protocol", "bits"):
        assert (memory[name] == empty[name]).all(), name
    assert not memory["src"]["levels"].any() and not memory["dst"]["levels"].any()


def test_each_bit_of_a_set_has_a_shape_number_of_its_own() -> None:
    assert sorted(map(shape_number, range(lay.MOST_SHAPES))) == list(range(lay.MOST_SHAPES))


def shaped(number: int) -> NDArray[np.void]:
    """A key of IPv4 whose shape is that of a number from 1."""
    rows = np.zeros(1, dtype=FLOW_KEY)
    rows["wild"] = 32 - number % 16, 32 - number // 16, 7
    return rows


def test_the_65th_shape_is_refused_until_another_is_free() -> None:
    filter_, memory = new_filter(4)
    for number in range(lay.MOST_SHAPES):
        filter_.add(filter_.prepare(shaped(number), create=True))
    before = memory.copy()
    with pytest.raises(TooManyShapesError, match=r"65 combinations .* IPv4; 64 are possible"):
        filter_.prepare(shaped(64), create=True)
    assert (memory == before).all()
    filter_.remove(filter_.prepare(shaped(5), create=False))
    filter_.add(filter_.prepare(shaped(64), create=True))


def test_a_key_that_is_not_masked_is_refused() -> None:
    filter_, _ = new_filter(4)
    rows = shaped(5)
    rows["src"][0, 3] = 1
    with pytest.raises(ValueError, match="has bits where it matches anything"):
        filter_.prepare(rows, create=True)
    assert filter_.prepare(shaped(5), create=False).bits.tolist() == [-2]


@given(rate=st.integers(16, 10**12), burst=st.integers(1, 10**9), size=st.integers(1, 65_535))
def test_a_rate_fits_into_the_datapaths_numbers(rate: int, burst: int, size: int) -> None:
    if burst > rate * lay.LONGEST_BURST:
        with pytest.raises(ValueError, match="a year's"):
            lay.police_rate(rate, burst, by_bytes=True)
        return
    cost, length = lay.police_rate(rate, burst, by_bytes=True)
    assert size * cost < 1 << 64
    assert length < 1 << 62
    ticks = 64 * 10**9 * burst / rate
    assert length == pytest.approx(ticks, rel=0.001, abs=1)


@pytest.mark.parametrize(("rate", "by_bytes"), [(0, False), (15, True), (10**12 + 1, True)])
def test_a_rate_that_cannot_be_counted_is_refused(rate: int, by_bytes: bool) -> None:
    with pytest.raises(ValueError, match=f"a rate of {rate} a second"):
        lay.police_rate(rate, 1500, by_bytes=by_bytes)


@pytest.mark.parametrize("family", [4, 6])
def test_addresses_that_differ_in_their_last_bytes_have_different_hashes(family: int) -> None:
    """The last bytes of addresses are the highest bits of words, or of their halves."""
    filter_, _ = new_filter(family)
    words = np.zeros((1 << 16, lay.KEY_WORDS[family]), dtype=np.uint64)
    last_bytes = np.arange(1 << 16, dtype=np.uint64)
    words[:, 1] |= (last_bytes >> np.uint64(8)) << np.uint64(24 if family == 4 else 56)
    words[:, 2 if family == 6 else 1] |= (last_bytes & np.uint64(0xFF)) << np.uint64(56)
    # Of 2**30 values, chance would let two of 65,536 hashes be equal; four are left for bad luck.
    assert len(np.unique(filter_.hashes(words) >> np.uint64(34))) > (1 << 16) - 20
