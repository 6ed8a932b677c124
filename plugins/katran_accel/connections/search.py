# SPDX-License-Identifier: Apache-2.0
"""Searches the tables, each as a whole: pages of the entries that are meant, and how full the tables are.

Pages go by a number that each flow has, a hash of its key: an entry that is there all the time is on exactly one page,
whatever comes and goes meanwhile.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from socket import IPPROTO_TCP, IPPROTO_UDP
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import FLOW_KEY, join_rows, take_rows

from ..connection_table import VipFinder
from .entries import Entries, Kind, Table
from .selection import Selection

FIRST = -1
"""Place before that of every flow."""
PLACES = 1 << 53
"""Numbers of places: programs in any language read them from JSON."""
UDP_IDLE_LIMIT = 30.0
"""Seconds after which a UDP flow is new to the program: UDP_IDLE_LIMIT_NS of bpf/balancer/katran_abi.h."""
HIT = np.dtype(
    [("key", FLOW_KEY), ("place", "<i8"), ("vip", "<i8"), ("used", "<u8"), ("real", "<u4"), ("table", "<u4")]
)
"""An entry of a page. vip: its number, or NO_VIP. used: as in :class:`Entries`. table: its position in the list."""
_FACTORS = np.frombuffer(secrets.token_bytes(FLOW_KEY.itemsize), dtype="<u8") | np.uint64(1)


@dataclass(frozen=True)
class Page:
    """Some of the entries that are meant."""

    hits: NDArray[np.void]
    """Rows of :data:`HIT`, ascending by place."""
    following: int | None
    """The place after which the next page begins; None: this is the last one."""
    matching: int
    total: int
    """Entries in all tables."""


def search(tables: Iterable[Table], selection: Selection, finder: VipFinder, after: int, limit: int) -> Page:
    """Give the page of about `limit` entries behind the place `after`; those of one flow are never divided."""
    total = matching = ahead = 0
    hits = np.zeros(0, dtype=HIT)
    for number, table in enumerate(tables):
        for entries in table.read():
            chosen = selection.find(entries, finder)
            places = places_of(take_rows(entries.keys, chosen))
            total, matching = total + len(entries), matching + len(chosen)
            ahead += int(np.count_nonzero(places > after))
            first = _first(places, after, limit)
            hits = join_rows((hits, _hits(entries, chosen[first], places[first], number)), HIT)
            hits = take_rows(hits, _first(np.ascontiguousarray(hits["place"]), after, limit))
    hits = take_rows(hits, np.argsort(hits["place"], kind="stable"))
    return Page(_with_vips(hits, finder), int(hits["place"][-1]) if ahead > len(hits) else None, matching, total)


def find(tables: Iterable[Table], keys: NDArray[np.void], finder: VipFinder) -> NDArray[np.void]:
    """Give the entries of a few connections as rows of :data:`HIT`."""
    parts = []
    for number, table in enumerate(tables):
        entries = table.look_up(keys)
        parts.append(_hits(entries, np.arange(len(entries)), places_of(entries.keys), number))
    return _with_vips(join_rows(parts, HIT), finder)


def places_of(keys: NDArray[np.void]) -> NDArray[np.int64]:
    """Give each flow its number, 0 to PLACES - 1: the same while the process lives, and unknown outside."""
    words = np.ascontiguousarray(keys).view("<u8").reshape(len(keys), len(_FACTORS))
    sums = np.zeros(len(keys), dtype=np.uint64)
    for word, factor in enumerate(_FACTORS):
        sums += words[:, word] * factor
        sums ^= sums >> np.uint64(29)
    return (sums >> np.uint64(11)).astype(np.int64)


def _first(places: NDArray[np.int64], after: int, limit: int) -> NDArray[np.intp]:
    """Positions of the first `limit` places behind `after`, and of others that are equal to the last of them."""
    behind = np.flatnonzero(places > after)
    if len(behind) <= limit:
        return behind
    last = np.partition(places[behind], limit - 1)[limit - 1]
    first: NDArray[np.intp] = behind[places[behind] <= last]
    return first


def _hits(entries: Entries, which: NDArray[np.intp], places: NDArray[np.int64], table: int) -> NDArray[np.void]:
    hits = np.zeros(len(which), dtype=HIT)
    hits["key"], hits["place"], hits["table"] = take_rows(entries.keys, which), places, table
    hits["real"], hits["used"] = entries.reals[which], entries.used[which]
    return hits


def _with_vips(hits: NDArray[np.void], finder: VipFinder) -> NDArray[np.void]:
    hits["vip"] = finder.owners_of_entries(np.ascontiguousarray(hits["key"]))
    return hits


def fill_of(table: Table, now: int) -> dict[str, Any]:
    """Say how full a table is and, for UDP, how long ago the last packets came. now: the monotonic clock, ns."""
    total = tcp = udp = 0
    ages = [np.zeros(0)]
    for entries in table.read():
        is_udp = entries.keys["proto"] == IPPROTO_UDP
        total, udp = total + len(entries), udp + int(np.count_nonzero(is_udp))
        tcp += int(np.count_nonzero(entries.keys["proto"] == IPPROTO_TCP))
        used = entries.used[is_udp & (entries.used != 0)]
        ages.append(np.maximum(now - used.astype(np.int64), 0) / 1e9)
    found: dict[str, Any] = {"table": table.kind.word, "cpu": table.cpu}
    found |= {"entries": total, "capacity": table.map.spec.max_entries, "tcp": tcp, "udp": udp}
    if table.kind is not Kind.RULES:
        idle = np.concatenate(ages)
        found["udp_expired"] = udp - int(np.count_nonzero(idle <= UDP_IDLE_LIMIT))
        quantiles = np.quantile(idle, (0, 0.5, 1)).round(3).tolist() if len(idle) else (None, None, None)
        found["udp_idle_seconds"] = dict(zip(("least", "median", "most"), quantiles, strict=True))
    return found


def kernel_now() -> int:
    """Read the clock by which the program notes packets, ns."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
