# SPDX-License-Identifier: Apache-2.0
"""Filters of a dump, decoded in columns.

Messages of equal length whose attributes have equal headers are laid out alike. The first of each kind is decoded
through pyroute2, which says where everything is; the others are read at the same offsets, all at once.
"""

from __future__ import annotations

import dataclasses
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.rules import INSTALLED_ROW, Action

from .messages import HANDLE, INFO, attributes, payloads
from .netlink import RTM_DELTFILTER, RTM_NEWTFILTER, Run
from .shapes import COOKIE_MAGIC
from .tcmsg.cls_flower import ETH_P_IP, ETH_P_IPV6, FilterMessage

TICK = 10_000_000
"""Nanoseconds of the kernel's clock_t (USER_HZ), in which an action's times are told."""


@dataclass
class Filters:
    """Filters as the kernel tells them: columns of one length."""

    installed: NDArray[np.void]
    """Rule and counters (of hardware and software together), rows of INSTALLED_ROW."""
    handle: NDArray[np.uint32]
    info: NDArray[np.uint32]
    """`tcm_info`: priority above, ethertype in network byte order below."""
    flags: NDArray[np.uint32]
    """TCA_FLOWER_FLAGS."""
    in_hw_count: NDArray[np.uint32]
    """Devices that hold it in hardware."""
    hw_packets: NDArray[np.uint64]
    hw_bytes: NDArray[np.uint64]
    """What hardware alone has counted."""
    ours: NDArray[np.bool_]
    """The action has a cookie of ours."""
    keyed: NDArray[np.bool_]
    """Match and action are there and are those of a rule of ours; a terse dump leaves them out."""
    answered: NDArray[np.bool_]
    """The driver gave counters for this very dump; a terse dump does not tell."""

    def __len__(self) -> int:
        return len(self.handle)

    @classmethod
    def empty(cls, length: int = 0) -> Filters:
        """Give `length` filters of zeros."""
        word, counter = (np.zeros((4, length), dtype=np.uint32), np.zeros((2, length), dtype=np.uint64))
        flags = np.zeros((3, length), dtype=bool)
        return cls(np.zeros(length, dtype=INSTALLED_ROW), *word, *counter, *flags)

    @classmethod
    def joined(cls, parts: Sequence[Filters]) -> Filters:
        """Give the filters of several reads as one."""
        if len(parts) <= 1:
            return parts[0] if parts else cls.empty()
        # Joined as bytes: numpy's concatenate would turn the ports to the host's byte order.
        raw = [part.installed.view(np.uint8) for part in parts]
        rest = [
            np.concatenate([getattr(part, column.name) for part in parts]) for column in dataclasses.fields(cls)[1:]
        ]
        return cls(np.concatenate(raw).view(INSTALLED_ROW), *rest)

    def where(self, which: NDArray[np.bool_]) -> Filters:
        """Give the filters that `which` marks."""
        if which.all():
            return self
        numbers = np.flatnonzero(which)
        # take() copies rows whole; indexing goes field by field, thirty times slower.
        return Filters(*[getattr(self, column.name).take(numbers) for column in dataclasses.fields(self)])


@dataclass(frozen=True)
class Layout:
    """Where everything is in messages of one kind."""

    length: int
    positions: NDArray[np.int64]
    """32-bit words that tell this layout from others: headers of attributes, and the names of kinds."""
    words: NDArray[np.uint32]
    at: dict[str, tuple[int, int]]
    """Attribute → offset and length of its payload."""
    is_flower: bool

    @classmethod
    def of(cls, raw: bytes) -> Layout:
        """Learn the layout of one message from pyroute2."""
        message = FilterMessage(bytearray(raw))
        message.decode()
        positions = {1}  # type and flags of the message
        for name, offset, length in attributes(message):
            positions.add(offset // 4)
            if name.endswith("_KIND"):
                positions.update(range(offset // 4, (offset + length + 3) // 4))
        words = _words(np.frombuffer(raw, dtype=np.uint8).reshape(1, -1))
        where = np.array(sorted(at for at in positions if at < words.shape[1]), dtype=np.int64)
        return cls(len(raw), where, words[0, where].copy(), payloads(message), message.get_attr("TCA_KIND") == "flower")

    def same(self, words: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which messages, given as 32-bit words, have this layout."""
        found: NDArray[np.bool_] = (words.take(self.positions, axis=1) == self.words).all(axis=1)
        return found


class FilterReader:
    """Decodes dumps; remembers the layouts that it has met."""

    def __init__(self) -> None:
        self._layouts: dict[int, list[Layout]] = {}

    def read(self, runs: Iterable[Run], now: int | None = None) -> Filters:
        """Give the filters of a dump. now: ns of CLOCK_MONOTONIC, for last_used."""
        now = time.monotonic_ns() if now is None else now
        return Filters.joined([filters for run in runs for filters in self._read_run(run, now)])

    def read_echoes(self, messages: list[bytes]) -> Filters:
        """Give the filters of single messages, as NLM_F_ECHO brings them."""
        by_length: dict[int, list[bytes]] = {}
        for message in messages:
            by_length.setdefault(len(message), []).append(message)
        return self.read(
            Run(np.frombuffer(b"".join(same), dtype=np.uint8).reshape(len(same), length), RTM_DELTFILTER)
            for length, same in by_length.items()
        )

    def _read_run(self, run: Run, now: int) -> Iterator[Filters]:
        if run.type not in (RTM_NEWTFILTER, RTM_DELTFILTER):
            return
        left = np.ascontiguousarray(run.rows)
        known = self._layouts.setdefault(left.shape[1], [])
        number = 0
        while len(left):
            if number == len(known):
                known.append(Layout.of(left[0].tobytes()))
            same = known[number].same(_words(left))
            all_same = bool(same.all())
            if known[number].is_flower and (all_same or same.any()):
                yield _decode(known[number], left if all_same else left[same], now)
            if all_same:
                return
            left = left[~same]
            number += 1


def _words(rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Messages as 32-bit words, to which all headers are aligned."""
    whole = rows.shape[1] & ~3
    return np.ascontiguousarray(rows[:, :whole]).view(np.uint32)


def _decode(layout: Layout, rows: NDArray[np.uint8], now: int) -> Filters:
    out = Filters.empty(len(rows))
    out.handle[:], out.info[:] = _column(rows, HANDLE, "<u4"), _column(rows, INFO, "<u4")
    for column, name in ((out.flags, "TCA_FLOWER_FLAGS"), (out.in_hw_count, "TCA_FLOWER_IN_HW_COUNT")):
        if name in layout.at:
            column[:] = _column(rows, layout.at[name][0], "<u4")
    out.answered[:] = "TCA_ACT_USED_HW_STATS" in layout.at
    _decode_cookie(layout, rows, out)
    _decode_counters(layout, rows, out, now)
    _decode_rule(layout, rows, out)
    return out


def _decode_cookie(layout: Layout, rows: NDArray[np.uint8], out: Filters) -> None:
    at, length = layout.at.get("TCA_ACT_COOKIE", (0, 0))
    if length != 16:
        return
    (magic,) = struct.unpack("<Q", COOKIE_MAGIC)
    out.ours[:] = _column(rows, at, "<u8") == magic
    out.installed["rule"]["cookie"] = _column(rows, at + 8, "<u8")


def _decode_counters(layout: Layout, rows: NDArray[np.uint8], out: Filters, now: int) -> None:
    installed = out.installed
    for name, packets, size in (
        ("TCA_STATS_BASIC", installed["packets"], installed["bytes"]),
        ("TCA_STATS_BASIC_HW", out.hw_packets, out.hw_bytes),
    ):
        if name in layout.at:
            size[:] = _column(rows, layout.at[name][0], "<u8")
            packets[:] = _column(rows, layout.at[name][0] + 8, "<u4")
    if "TCA_STATS_PKT64" in layout.at:
        installed["packets"] = _column(rows, layout.at["TCA_STATS_PKT64"][0], "<u8")
    for name in ("TCA_SKBEDIT_TM", "TCA_GACT_TM"):
        if name in layout.at:
            age = _column(rows, layout.at[name][0] + 8, "<u8") * np.uint64(TICK)
            age = np.minimum(age, np.uint64(now))
            installed["last_used"] = np.where(installed["packets"] > 0, np.uint64(now) - age, 0)


def _decode_rule(layout: Layout, rows: NDArray[np.uint8], out: Filters) -> None:
    rule, at = out.installed["rule"], layout.at
    ports = next((p for p in ("TCP", "UDP") if f"TCA_FLOWER_KEY_{p}_SRC" in at and f"TCA_FLOWER_KEY_{p}_DST" in at), "")
    if not ports or "TCA_FLOWER_KEY_ETH_TYPE" not in at or "TCA_FLOWER_KEY_IP_PROTO" not in at:
        return
    ethertype = _column(rows, at["TCA_FLOWER_KEY_ETH_TYPE"][0], ">u2")
    rule["family"] = np.select([ethertype == ETH_P_IP, ethertype == ETH_P_IPV6], [4, 6], 0)
    family = 4 if "TCA_FLOWER_KEY_IPV4_SRC" in at else 6
    for field, end in (("src", "SRC"), ("dst", "DST")):
        offset, width = at.get(f"TCA_FLOWER_KEY_IPV{family}_{end}", (0, 0))
        rule["key"][field][:, :width] = rows[:, offset : offset + width]
    rule["key"]["proto"] = rows[:, at["TCA_FLOWER_KEY_IP_PROTO"][0]]
    rule["key"]["sport"] = _column(rows, at[f"TCA_FLOWER_KEY_{ports}_SRC"][0], ">u2")
    rule["key"]["dport"] = _column(rows, at[f"TCA_FLOWER_KEY_{ports}_DST"][0], ">u2")
    if "TCA_SKBEDIT_MARK" in at:
        rule["action"], rule["mark"] = Action.SET_MARK, _column(rows, at["TCA_SKBEDIT_MARK"][0], "<u4")
    elif "TCA_GACT_PARMS" in at:
        rule["action"] = Action.DROP
    out.keyed[:] = (rule["family"] != 0) & (rule["action"] != 0)


def _column(rows: NDArray[np.uint8], at: int, dtype: str) -> NDArray[Any]:
    """Read a column of numbers."""
    column: NDArray[Any] = rows[:, at : at + np.dtype(dtype).itemsize].view(dtype)[:, 0]
    return column
