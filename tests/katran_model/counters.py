# SPDX-License-Identifier: Apache-2.0
"""The counters, under the names of the published maps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum

CounterValues = dict[str, list[int] | int]
"""Name of a counter → [v1, v2], or the number."""


class Stat(IntEnum):
    """Slots of `stats` behind those of the VIPs: what v1 and v2 count."""

    LRU = 512  # packets, misses
    TCP_MISS = 513  # SYN, others
    NO_LRU = 515  # packets of CPUs without a table of their own
    TOO_BIG = 516  # v4, v6
    SOURCE_ROUTE = 517  # misses, hits
    DECAP_ADDRESS = 518
    ENCAP_FAIL = 519  # v4, v6
    GLOBAL_LRU = 520  # no map for this CPU, hits
    RING_DROP = 521  # no such real, slot without a real
    DECAP = 522  # outer v4, outer v6
    QUIC_ICMP = 523  # all, ignorable
    ICMP_TOO_BIG_V6 = 524  # all, MTU below 1280
    ICMP_TOO_BIG_V4 = 525
    CROSS_POP = 526  # inner v4, inner v6
    MIGRATED = 527
    TOTAL = 528  # packets, bytes; the others alike
    TX = 529
    DROP = 530
    PASS = 531
    EGRESS_DECAP = 532  # inner v4, inner v6


@dataclass
class Counters:
    """Counts of one run or of many."""

    pairs: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    """Map and index → v1, v2."""
    fields: Counter[str] = field(default_factory=Counter)
    """Map and field → number."""

    def add(self, name: str, index: int, v1: int = 0, v2: int = 0) -> None:
        """Add to a pair."""
        pair = self.pairs.setdefault((name, index), [0, 0])
        pair[0] += v1
        pair[1] += v2

    def stat(self, slot: int, v1: int = 0, v2: int = 0) -> None:
        """Add to a slot of `stats`."""
        self.add("stats", slot, v1, v2)

    def family(self, slot: int, family: int) -> None:
        """Add 1 to v1 of a slot for IPv4, to v2 for IPv6."""
        self.add("stats", slot, int(family == 4), int(family == 6))

    def field(self, name: str) -> None:
        """Add 1 to a number, such as `quic_stats_map.cid_v1`."""
        self.fields[name] += 1

    def merge(self, other: Counters) -> None:
        """Add all of `other`."""
        for (name, index), (v1, v2) in other.pairs.items():
            self.add(name, index, v1, v2)
        self.fields.update(other.fields)

    def published(self) -> CounterValues:
        """All that is not 0, by the names of the published suites."""
        pairs: CounterValues = {f"{name}[{index}]": [*pair] for (name, index), pair in self.pairs.items() if any(pair)}
        return pairs | {name: count for name, count in self.fields.items() if count}
