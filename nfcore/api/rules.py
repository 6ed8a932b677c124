# SPDX-License-Identifier: Apache-2.0
"""Rules for a NIC, and the results of a backend.

A rule matches one flow, or all flows of a masked match, and either sets a mark on their packets or drops them. Its
cookie identifies it on the NIC and contains the slot of its flow in the flow table, so that a dump needs no second
table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from .flows import FLOW_KEY, NO_TAGS, PROTOCOL_NAMES, FlowMatch, tags_of

COOKIE_TAG = 0x6E66
"""Upper 16 bits of nfcore's cookies ("nf"); then come 16 bits of generation, one that is set for rules of ordered
flows, and 31 bits of the flow's slot."""
_ORDERED, _SLOT = 0x8000_0000, 0x7FFF_FFFF


class Action(IntEnum):
    """What the NIC does with a matching packet."""

    SET_MARK = 1
    DROP = 2


@dataclass(frozen=True)
class SetMark:
    """Set `mark` (u32 > 0) on the packet, in the way of the configured carrier."""

    mark: int


@dataclass(frozen=True)
class Drop:
    """Drop the packet in the NIC."""


@dataclass(frozen=True)
class Rule:
    """One rule, as an object."""

    match: FlowMatch
    action: SetMark | Drop
    cookie: int
    vlans: tuple[int, int] = NO_TAGS
    """VLAN tags of the packets, outer and inner, in the form of :data:`~nfcore.api.flows.VLAN_ID`."""


RULE_ROW = np.dtype(
    [
        ("key", FLOW_KEY),
        ("family", "<u4"),
        ("vlans", "<u2", (2,)),
        ("action", "<u4"),
        ("mark", "<u4"),
        ("cookie", "<u8"),
    ]
)
"""One rule of a batch: the 5-tuple in network byte order, family 4 or 6, the VLAN tags as in a flow's row,
:class:`Action`, mark (0 for a drop). Key, family and tags, the leading bytes, are its match."""

INSTALLED_ROW = np.dtype([("rule", RULE_ROW), ("packets", "<u8"), ("bytes", "<u8"), ("last_used", "<u8")])
"""One rule as it is on a NIC. packets, bytes: hits since it was installed. last_used: ns, CLOCK_MONOTONIC, or 0."""


def make_cookies(
    slots: NDArray[np.int64], generations: NDArray[np.uint16], ordered: NDArray[np.bool_] | None = None
) -> NDArray[np.uint64]:
    """Make the cookies of the flows in `slots`, below 2**31; `generations`: how often each slot has been used.

    ordered: whether an application has ordered each flow; None: no.
    """
    cookies = np.uint64(COOKIE_TAG << 48) | (generations.astype(np.uint64) << np.uint64(32)) | slots.astype(np.uint64)
    return cookies if ordered is None else cookies | np.where(ordered, np.uint64(_ORDERED), np.uint64(0))


def are_ordered(cookies: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether the rules with these cookies, nfcore's, are those of ordered flows."""
    ordered: NDArray[np.bool_] = (cookies & np.uint64(_ORDERED)) != 0
    return ordered


def split_cookies(cookies: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.uint16]]:
    """Give for each cookie whether it is nfcore's, and its slot and generation."""
    is_own = (cookies >> np.uint64(48)) == np.uint64(COOKIE_TAG)
    slots = (cookies & np.uint64(_SLOT)).astype(np.int64)
    generations = ((cookies >> np.uint64(32)) & np.uint64(0xFFFF)).astype(np.uint16)
    return is_own, slots, generations


class RuleBatch:
    """Rules for one device. ``rows`` is the array; iteration gives :class:`Rule` objects."""

    __slots__ = ("rows",)

    def __init__(self, rows: NDArray[np.void]) -> None:
        if rows.dtype != RULE_ROW:
            raise TypeError(f"a rule batch has rows of {RULE_ROW}, not {rows.dtype}")
        self.rows = rows

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> RuleBatch:
        """Make a batch from rule objects."""
        rows = np.zeros(len(rules), dtype=RULE_ROW)
        for row, rule in zip(rows, rules, strict=True):
            row["key"], row["family"], row["cookie"] = rule.match.to_key(), rule.match.family, rule.cookie
            row["vlans"] = rule.vlans
            if isinstance(rule.action, SetMark):
                row["action"], row["mark"] = Action.SET_MARK, rule.action.mark
            else:
                row["action"] = Action.DROP
        return cls(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Rule]:
        for row in self.rows:
            action = SetMark(int(row["mark"])) if row["action"] == Action.SET_MARK else Drop()
            match = FlowMatch.from_key(row["key"], int(row["family"]))
            yield Rule(match, action, int(row["cookie"]), tags_of(row))


class Outcome(IntEnum):
    """The result for one rule."""

    INSTALLED = 1
    FULL = 2
    UNSUPPORTED = 3
    FAILED = 4
    REMOVED = 5
    ABSENT = 6


@dataclass
class Outcomes:
    """A backend's result for a batch: a status per rule, and messages for the rules that need one."""

    status: NDArray[np.uint8]
    """:class:`Outcome` per rule."""
    messages: dict[int, str] = field(default_factory=dict)
    """Row number → message of the backend or the kernel."""
    counted: NDArray[np.uint64] | None = None
    """Of a removal, shape (rules, 2): packets and bytes that each rule had counted at its end; None if the NIC does not
    report them. Without them, what came since the last dump is not counted."""

    @classmethod
    def all(cls, status: Outcome, length: int, message: str = "") -> Outcomes:
        """Give all rules the same status; the message belongs to the first."""
        return cls(np.full(length, status, dtype=np.uint8), {0: message} if message and length else {})


@dataclass(frozen=True)
class Device:
    """An interface, and the names of its backends, best first."""

    name: str
    ifindex: int
    backends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do on one device, found out by trial."""

    mark_width: int
    """Bits of a mark that arrive at XDP: 16 for most NICs, 0 when the device cannot set marks."""
    ipv6: bool = True
    drop: bool = True
    masks: bool = False
    """Whether rules may be masked: prefixes, any port, any protocol (`wild` of a key). Other backends get no such."""
    counters: bool = True
    """Whether each rule counts its packets. If not, each rule is removed after `[offload] idle_timeout`; if its flow is
    still alive, it is reported and offloaded again."""
    table_size: int | None = None
    """Number of rules that fit, if the device reports it."""
    temporary: bool = False
    """Whether what is lacking may come back soon, as when a NIC is not there yet or another program is in the way. The
    core then keeps the backend, and probes again with growing pauses."""
    notes: tuple[str, ...] = ()
    """Further lines, such as a feature that the device refuses, with the kernel's message."""
    protocols: tuple[int, ...] | None = None
    """IP protocols, such as (6, 17), of the rules that it takes: it gets none that names another. None: of any. Whether
    a rule may leave the protocol open is `masks`."""
    vlans: bool = False
    """Whether rules match VLAN tags (`vlans` of a row): one tag at least. Other backends get only rules without tags.
    A rule with tags is never masked."""

    def describe(self) -> str:
        """Describe them in one line."""
        marks = f"marks of {self.mark_width} bits" if self.mark_width else "no marks"
        parts = [marks, "IPv6" if self.ipv6 else "no IPv6", "drop" if self.drop else "no drop"]
        if self.masks:
            parts.append("masked rules")
        if self.vlans:
            parts.append("VLAN tags")
        if self.protocols is not None:
            names = (PROTOCOL_NAMES.get(number, f"IP protocol {number}") for number in self.protocols)
            parts.append("only " + " and ".join(names) if self.protocols else "no protocol")
        if not self.counters:
            parts.append("no counters")
        if self.table_size is not None:
            parts.append(f"room for {self.table_size:,} rules")
        return ", ".join([*parts, *self.notes])
