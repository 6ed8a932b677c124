# SPDX-License-Identifier: Apache-2.0
"""The structs of bpf/flow_actions as numpy dtypes, its counters, and the rows that the data plane takes.

Addresses and ports are in network byte order, the rest in the host's. A test compares sizes and offsets with those
that the compiler gives the structs.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import FLOW_KEY, Anything, masks_of

ENTRY = np.dtype(
    [("key", FLOW_KEY), ("family", "<u4"), ("slot", "<u4"), ("target", "<u4"), ("precedence", "<u4")],
)
"""One entry. key: masked, `wild` says what it leaves open. family: 4 or 6. slot: of its counters. target: from 1.
precedence: number of fixed bits << 16 | priority; of no use for exact entries, which always win."""

MOST_SHAPES = 64
"""Combinations of prefix lengths and open fields, per family."""
ADDRESS_LEVELS = {4: (24, 32), 6: (48, 64, 120, 128)}
"""Leading bits of an address that choose its bucket, one level after the other."""
ADDRESS_BUCKETS, PORT_BUCKETS, PROTOCOL_VALUES = 1 << 12, 1 << 10, 512
KEY_WORDS = {4: 2, 6: 5}
PROTOCOL_SHIFT, SHAPE_SHIFT = 32, 48
BIT_TO_SHAPE = 0x03F79D71B4CB0A89

MATCH_KEY = {family: np.dtype([("words", "<u8", (words,))]) for family, words in KEY_WORDS.items()}
"""Key of an entry. `struct match_key`, cut to the words of its family."""
ADDRESS_SHAPES = np.dtype([("keys", "<u8", (5,)), ("levels", "<u8", (4, ADDRESS_BUCKETS))])
FLOW_ENTRY = np.dtype([("slot", "<u4"), ("target", "<u4"), ("precedence", "<u4"), ("pad", "<u4")])
BUCKET_PLACES = 4
PLACE = {
    family: np.dtype(
        {
            "names": ["words", "entry"],
            "formats": [("<u8", (words,)), FLOW_ENTRY],
            "offsets": [0, 8 * words],
            "itemsize": 32 if family == 4 else 64,
        }
    )
    for family, words in KEY_WORDS.items()
}
"""One place of a bucket, see bpf/flow_actions/entries.h; its target is 0 when it is free."""
BUCKET = {family: np.dtype([("places", place, (BUCKET_PLACES,))]) for family, place in PLACE.items()}
FLOW_COUNT = np.dtype([("packets", "<u8"), ("bytes", "<u8"), ("last_seen", "<u8")])
"""last_seen: in the map, timer ticks; in what the data plane gives, nanoseconds of the monotonic clock."""
MASKED_WORD = np.dtype([("value", "<u8"), ("mask", "<u8")])
RULE_COUNT = np.dtype([("packets", "<u8"), ("bytes", "<u8"), ("last_seen", "<u8")])
"""last_seen: ns, CLOCK_MONOTONIC; 0: never."""
FLOW_PATTERN = np.dtype([("words", MASKED_WORD, (KEY_WORDS[6],))])
"""What packets must match, word by word as in a key: see :func:`match_patterns`."""
TARGET = np.dtype(
    [
        ("action", "<u4"),
        ("argument", "<u4"),
        ("cost", "<u8"),
        ("burst", "<u8"),
        ("family", "<u4"),
        ("checked", "<u4"),
        ("require", FLOW_PATTERN),
    ]
)
"""One target: `struct flow_target`. argument: slot of the interface, DSCP, CPU; police: 1 for bytes, 0 for packets.
cost, burst: of :func:`police_rate`. checked: 1 if packets with a shared mark must be of `family` (4, 6; 0: any) and
match `require`."""
FLOW_MARK = np.dtype(
    [("target", "<u4"), ("slot", "<u4"), ("family", "<u4"), ("pad", "<u4"), ("match", FLOW_PATTERN)],
)
"""What a mark of flow-id stands for. That of dest-id is a target's number alone."""

POLICE_TICKS = 64
"""Of a nanosecond: the unit of the clock of a rate limit."""
POLICE_COST_SHIFT = 16
LONGEST_BURST = 31_536_000
"""Seconds."""
SLOWEST_BYTES, FASTEST = 16, 10**12
"""A frame of 65,535 bytes at the slowest rate still fits into 64 bits."""


class Action(IntEnum):
    """`enum flow_action`."""

    NOTHING = 0
    """Of a target that is not set: packets go on."""
    DROP = 1
    PASS = 2
    COUNT = 3
    REDIRECT = 4
    SET_DSCP = 5
    POLICE = 6
    CPU = 7


class Path(IntEnum):
    """`enum flow_path`: how a packet's entry was found."""

    LOOK_UP = 0
    MARK = 1


class Other(IntEnum):
    """`enum flow_other`: counters of the program as a whole, besides packets by path and action."""

    NO_MATCH = 0
    NOT_IP = 1
    MARK_UNKNOWN = 2
    MARK_MISMATCH = 3
    POLICED = 4
    INTERFACE_MISSING = 5
    CPU_MISSING = 6
    NOT_CHANGED = 7


FLOW_TOTALS = np.dtype(
    [("actions", "<u8", (len(Path), len(Action))), ("others", "<u8", (len(Other),)), ("zero", "<u8")]
)


@cache
def filter_layout(log2: int) -> np.dtype[Any]:
    """Give `struct filter` with 2 ** `log2` bits."""
    return np.dtype(
        [
            ("hash_keys", "<u8", (KEY_WORDS[6],)),
            ("port_key", "<u8"),
            ("shapes", "<u8"),
            ("masks", "<u8", (MOST_SHAPES, KEY_WORDS[6])),
            ("src", ADDRESS_SHAPES),
            ("dst", ADDRESS_SHAPES),
            ("sport", "<u8", (PORT_BUCKETS,)),
            ("dport", "<u8", (PORT_BUCKETS,)),
            ("protocol", "<u8", (PROTOCOL_VALUES,)),
            ("bits", "<u8", (1 << (log2 - 6),)),
        ]
    )


def police_rate(units_per_second: int, burst: int, *, by_bytes: bool) -> tuple[int, int]:
    """Give `cost` and `burst` of a target that lets so many packets, or bytes, pass a second.

    burst: units that may pass at once after a pause. ValueError for what the datapath cannot count: less than 1 packet
    or 16 bytes a second, more than 10^12, or a burst that takes over a year.
    """
    slowest = SLOWEST_BYTES if by_bytes else 1
    if not slowest <= units_per_second <= FASTEST:
        raise ValueError(f"a rate of {units_per_second} a second; should be from {slowest} to {FASTEST}")
    most = LONGEST_BURST * units_per_second
    if not 1 <= burst <= most:
        raise ValueError(f"a burst of {burst} at {units_per_second} a second; should be from 1 to {most}, a year's")
    cost = (POLICE_TICKS * 10**9 << POLICE_COST_SHIFT) // units_per_second
    return cost, burst * cost >> POLICE_COST_SHIFT


def key_words(keys: NDArray[np.void], family: int) -> NDArray[np.uint64]:
    """Give the words of :data:`~nfcore.api.flows.FLOW_KEY` rows as the datapath has them, shape (n, words)."""
    raw = np.ascontiguousarray(keys).view("<u4").reshape(len(keys), FLOW_KEY.itemsize // 4)
    order = [8, 9, 0, 4] if family == 4 else [8, 9, 0, 1, 2, 3, 4, 5, 6, 7]
    words: NDArray[np.uint64] = raw.take(order, axis=1).view("<u8")
    words[:, 0] &= (1 << PROTOCOL_SHIFT + 8) - 1
    return words


def mask_words(wild: tuple[int, int, int], family: int) -> NDArray[np.uint64]:
    """Give the bits that count where `wild` is open. They include that of an unknown protocol, which equals none."""
    words: NDArray[np.uint64] = key_words(masks_of(np.array([family]), np.array([wild], dtype=np.uint8)), family)[0]
    if not wild[2] & Anything.PROTO:
        words[0] |= np.uint64(1 << PROTOCOL_SHIFT + 8)
    return words


def match_patterns(keys: NDArray[np.void], families: NDArray[np.uint32]) -> NDArray[np.void]:
    """Give the pattern of each masked :data:`~nfcore.api.flows.FLOW_KEY`.

    families: 4, 6, or 0 for both; then nothing but ports and protocol counts.
    """
    rows = np.zeros(len(keys), dtype=FLOW_PATTERN)
    shapes = np.column_stack([families, keys["wild"]])
    for shape in np.unique(shapes, axis=0).tolist():
        family, *wild = shape
        chosen = np.flatnonzero((shapes == shape).all(axis=1))
        used = KEY_WORDS[family] if family else 1
        masks = mask_words((wild[0], wild[1], wild[2]), family or 6)[:used]
        words = rows["words"][:, :used]
        words["value"][chosen] = key_words(keys[chosen], family or 6)[:, :used] & masks
        words["mask"][chosen] = masks
    return rows
