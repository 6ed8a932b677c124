# SPDX-License-Identifier: Apache-2.0
"""Decodes the filters of a dump into columns.

Messages of equal length whose attributes have equal headers have the same layout. pyroute2 decodes the first message of
each layout and so gives the offsets; numpy reads all others at these offsets, at once.
"""

from __future__ import annotations

import dataclasses
import logging
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import SERVICE_TAG, Anything, join_rows
from nfcore.api.rules import INSTALLED_ROW, Action

from .messages import HANDLE, INFO, attributes, payloads
from .netlink import RTM_DELTFILTER, RTM_NEWTFILTER, Run
from .shapes import COOKIE_MAGIC
from .tcmsg.cls_flower import ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, FilterMessage

log = logging.getLogger(__name__)
TICK = 10_000_000
"""Nanoseconds in a clock_t (1/USER_HZ), the unit of an action's times."""
_KEY = "TCA_FLOWER_KEY_"
_KEYS = {
    f"{_KEY}{key}{mask}"
    for key in (
        "ETH_TYPE",
        "IP_PROTO",
        *(f"{tag}_{part}" for tag in ("VLAN", "CVLAN") for part in ("ID", "ETH_TYPE")),
        *(f"{kind}_{end}" for kind in ("IPV4", "IPV6", "TCP", "UDP") for end in ("SRC", "DST")),
    )
    for mask in ("", "_MASK")
}
"""Attributes of what nfcore's rules match."""


@dataclass
class Filters:
    """Filters as the kernel dumps them: columns of one length."""

    installed: NDArray[np.void]
    """Rule and counters (hardware and software together), rows of INSTALLED_ROW."""
    handle: NDArray[np.uint32]
    info: NDArray[np.uint32]
    """`tcm_info`: prio in the upper 16 bits, ethertype in network byte order in the lower."""
    flags: NDArray[np.uint32]
    """TCA_FLOWER_FLAGS."""
    ours: NDArray[np.bool_]
    """The action has a cookie of nfcore."""
    complete: NDArray[np.bool_]
    """The message has match and action, and nfcore makes such rules; a terse dump has neither. Where it is false, the
    rule in `installed` means nothing."""
    driver_counted: NDArray[np.bool_]
    """The driver gave counters for this dump; always false in a terse dump."""

    def __len__(self) -> int:
        return len(self.handle)

    @classmethod
    def empty(cls, length: int = 0) -> Filters:
        """Return `length` filters of zeros."""
        numbers, booleans = np.zeros((3, length), dtype=np.uint32), np.zeros((3, length), dtype=bool)
        return cls(np.zeros(length, dtype=INSTALLED_ROW), *numbers, *booleans)

    @classmethod
    def joined(cls, parts: Sequence[Filters]) -> Filters:
        """Return the filters of several reads as one."""
        if len(parts) <= 1:
            return parts[0] if parts else cls.empty()
        rest = [
            np.concatenate([getattr(part, column.name) for part in parts]) for column in dataclasses.fields(cls)[1:]
        ]
        return cls(join_rows((part.installed for part in parts), INSTALLED_ROW), *rest)

    def where(self, which: NDArray[np.bool_]) -> Filters:
        """Return the filters for which `which` is true."""
        if which.all():
            return self
        numbers = np.flatnonzero(which)
        # take() copies whole rows; indexing copies field by field, thirty times slower.
        return Filters(*[getattr(self, column.name).take(numbers) for column in dataclasses.fields(self)])


@dataclass(frozen=True)
class Layout:
    """Offsets of the attributes in messages of one layout."""

    positions: NDArray[np.int64]
    """Indexes of the 32-bit words that identify this layout: attribute headers, and the names of kinds."""
    words: NDArray[np.uint32]
    """Values of these words."""
    at: dict[str, tuple[int, int]]
    """Attribute → offset and length of its payload."""
    is_flower: bool

    @classmethod
    def of(cls, raw: bytes) -> Layout:
        """Return the layout of one message, decoded by pyroute2."""
        message = FilterMessage(bytearray(raw))
        message.decode()
        positions = {1}  # type and flags of the message
        for name, offset, length in attributes(message):
            positions.add(offset // 4)
            if name.endswith("_KIND"):
                positions.update(range(offset // 4, (offset + length + 3) // 4))
        words = _words(np.frombuffer(raw, dtype=np.uint8).reshape(1, -1))
        indexes = np.array(sorted(at for at in positions if at < words.shape[1]), dtype=np.int64)
        is_flower = message.get_attr("TCA_KIND") == "flower"
        return cls(indexes, words[0, indexes].copy(), payloads(message), is_flower)

    def same(self, words: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which messages, shape (messages, 32-bit words), have this layout."""
        same: NDArray[np.bool_] = (words.take(self.positions, axis=1) == self.words).all(axis=1)
        return same


class FilterReader:
    """Decodes dumps; keeps the layouts that it has seen, by length."""

    def __init__(self) -> None:
        self._layouts: dict[int, list[Layout]] = {}

    def read(self, runs: Iterable[Run], now: int | None = None) -> Filters:
        """Return the filters of a dump. now: ns of CLOCK_MONOTONIC, for last_used."""
        now = time.monotonic_ns() if now is None else now
        return Filters.joined([filters for run in runs for filters in self._read_run(run, now)])

    def read_echoes(self, messages: list[bytes]) -> Filters:
        """Return the filters of single messages, as NLM_F_ECHO gives them."""
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
                try:
                    known.append(Layout.of(left[0].tobytes()))
                except Exception as error:  # noqa: BLE001 - another program's filter, with what pyroute2 cannot decode
                    log.debug("a filter of another program is left out: %s", error)
                    left = left[1:]
                    continue
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
    aligned = rows.shape[1] & ~3
    return np.ascontiguousarray(rows[:, :aligned]).view(np.uint32)


def _decode(layout: Layout, rows: NDArray[np.uint8], now: int) -> Filters:
    out = Filters.empty(len(rows))
    out.handle[:], out.info[:] = _column(rows, HANDLE, "<u4"), _column(rows, INFO, "<u4")
    if "TCA_FLOWER_FLAGS" in layout.at:
        out.flags[:] = _column(rows, layout.at["TCA_FLOWER_FLAGS"][0], "<u4")
    out.driver_counted[:] = "TCA_ACT_USED_HW_STATS" in layout.at
    _decode_cookie(layout, rows, out)
    _decode_counters(layout, rows, out.installed, now)
    _decode_rule(layout, rows, out)
    return out


def _decode_cookie(layout: Layout, rows: NDArray[np.uint8], out: Filters) -> None:
    at, length = layout.at.get("TCA_ACT_COOKIE", (0, 0))
    if length != 16:
        return
    (magic,) = struct.unpack("<Q", COOKIE_MAGIC)
    out.ours[:] = _column(rows, at, "<u8") == magic
    out.installed["rule"]["cookie"] = _column(rows, at + 8, "<u8")


def _decode_counters(layout: Layout, rows: NDArray[np.uint8], installed: NDArray[np.void], now: int) -> None:
    if "TCA_STATS_BASIC" in layout.at:
        at = layout.at["TCA_STATS_BASIC"][0]
        installed["bytes"], installed["packets"] = _column(rows, at, "<u8"), _column(rows, at + 8, "<u4")
    if "TCA_STATS_PKT64" in layout.at:
        installed["packets"] = _column(rows, layout.at["TCA_STATS_PKT64"][0], "<u8")
    for name in ("TCA_SKBEDIT_TM", "TCA_GACT_TM"):
        if name in layout.at:
            age = _column(rows, layout.at[name][0] + 8, "<u8") * np.uint64(TICK)
            age = np.minimum(age, np.uint64(now))
            installed["last_used"] = np.where(installed["packets"] > 0, np.uint64(now) - age, 0)


def _decode_rule(layout: Layout, rows: NDArray[np.uint8], out: Filters) -> None:
    """Decode match and action. A filter that matches anything else than a rule can say is not complete."""
    rule, at = out.installed["rule"], layout.at
    if f"{_KEY}ETH_TYPE" not in at or "TCA_FLOWER_INDEV" in at or any(_is_other_key(name) for name in at):
        return
    # The kernel gives what is behind the tags in both.
    of_ip = next(name for tag in ("CVLAN_", "VLAN_", "") if (name := f"{_KEY}{tag}ETH_TYPE") in at)
    ethertype = _column(rows, at[of_ip][0], ">u2")
    rule["family"] = np.select([ethertype == ETH_P_IP, ethertype == ETH_P_IPV6], [4, 6], 0)
    known = (rule["family"] != 0) & _decode_tags(layout, rows, out)
    for number, end in enumerate(("SRC", "DST")):
        known &= _decode_address(layout, rows, rule, number, end) & _decode_port(layout, rows, rule, end)
    if f"{_KEY}IP_PROTO" in at:
        rule["key"]["proto"] = rows[:, at[f"{_KEY}IP_PROTO"][0]]
    else:
        rule["key"]["wild"][:, 2] |= np.uint8(Anything.PROTO)
    if "TCA_SKBEDIT_MARK" in at:
        rule["action"], rule["mark"] = Action.SET_MARK, _column(rows, at["TCA_SKBEDIT_MARK"][0], "<u4")
    elif "TCA_GACT_PARMS" in at:
        rule["action"] = Action.DROP
    # No rule with tags is masked.
    known &= ~(rule["vlans"].any(axis=1) & rule["key"]["wild"].any(axis=1))
    out.complete[:] = known & (rule["action"] != 0)


def _decode_tags(layout: Layout, rows: NDArray[np.uint8], out: Filters) -> NDArray[np.bool_]:
    """Decode the VLAN tags; whether they are what a rule can say."""
    # The filter's own ethertype, which tcm_info has in network byte order, is the outer tag's TPID.
    tpid, good = (out.info & 0xFFFF).astype("<u2").byteswap(), np.ones(len(rows), dtype=bool)
    for number, tag in enumerate(("VLAN", "CVLAN")):
        there = np.isin(tpid, (ETH_P_8021Q, ETH_P_8021AD))
        if f"{_KEY}{tag}_ID" not in layout.at:
            return good & ~there
        ids = _column(rows, layout.at[f"{_KEY}{tag}_ID"][0], "<u2")
        good &= there & (ids != 0)
        out.installed["rule"]["vlans"][:, number] = np.where(tpid == ETH_P_8021AD, ids | SERVICE_TAG, ids)
        # The ethertype behind this tag is the TPID of the next one.
        behind = layout.at.get(f"{_KEY}{tag}_ETH_TYPE")
        tpid = np.zeros(len(rows), dtype=np.uint16) if behind is None else _column(rows, behind[0], ">u2")
    return good & ~np.isin(tpid, (ETH_P_8021Q, ETH_P_8021AD))


def _is_other_key(attribute: str) -> bool:
    return attribute.startswith(_KEY) and attribute not in _KEYS


def _decode_address(
    layout: Layout, rows: NDArray[np.uint8], rule: NDArray[np.void], number: int, end: str
) -> NDArray[np.bool_]:
    """Decode one address and how many of its bits are open; whether its mask is a prefix."""
    field = end.lower()
    for family, width in ((4, 4), (6, 16)):
        name = f"{_KEY}IPV{family}_{end}"
        if name in layout.at:
            offset, _ = layout.at[name]
            rule["key"][field][:, :width] = rows[:, offset : offset + width]
            same_family: NDArray[np.bool_] = rule["family"] == family
            if f"{name}_MASK" not in layout.at:
                return same_family
            offset, _ = layout.at[f"{name}_MASK"]
            is_prefix, rule["key"]["wild"][:, number] = _open_bits(rows[:, offset : offset + width])
            return same_family & is_prefix
    rule["key"]["wild"][:, number] = np.where(rule["family"] == 4, 32, 128)
    return np.ones(len(rows), dtype=bool)


def _open_bits(masks: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each mask is that of a prefix, and how many of its bits are 0."""
    if (masks == 0xFF).all():
        return np.ones(len(masks), dtype=bool), np.zeros(len(masks), dtype=np.int64)
    bits = np.unpackbits(masks, axis=1)
    is_prefix: NDArray[np.bool_] = np.logical_and.reduce(bits[:, :-1] >= bits[:, 1:], axis=1)
    return is_prefix, bits.shape[1] - bits.sum(axis=1, dtype=np.int64)


def _decode_port(layout: Layout, rows: NDArray[np.uint8], rule: NDArray[np.void], end: str) -> NDArray[np.bool_]:
    """Decode one port, or that it is open; whether it has no mask."""
    field, flag = ("sport", Anything.SPORT) if end == "SRC" else ("dport", Anything.DPORT)
    name = next((each for each in (f"{_KEY}TCP_{end}", f"{_KEY}UDP_{end}") if each in layout.at), "")
    if not name:
        rule["key"]["wild"][:, 2] |= np.uint8(flag)
        return np.ones(len(rows), dtype=bool)
    rule["key"][field] = _column(rows, layout.at[name][0], ">u2")
    if f"{name}_MASK" not in layout.at:
        return np.ones(len(rows), dtype=bool)
    whole: NDArray[np.bool_] = _column(rows, layout.at[f"{name}_MASK"][0], "<u2") == 0xFFFF
    return whole


def _column(rows: NDArray[np.uint8], at: int, dtype: str) -> NDArray[Any]:
    """Numbers of one type at offset `at` of every message."""
    column: NDArray[Any] = rows[:, at : at + np.dtype(dtype).itemsize].view(dtype)[:, 0]
    return column
