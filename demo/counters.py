# SPDX-License-Identifier: Apache-2.0
"""The daemon's counters that the demo uses, read from its control socket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfcore.control.client import request


@dataclass(frozen=True)
class DaemonCounters:
    """One reading. `fast` and `slow` are packets, `real_packets` is by address, `refill` is in seconds.
    `dropped` are those that the NIC dropped.

    `flows` have a rule, `waiting` wait for one; `adopted` and `vanished` are rules since the daemon started.
    """

    fast: int = 0
    slow: int = 0
    flows: int = 0
    marks: int = 0
    rules: int = 0
    waiting: int = 0
    full: bool = False
    adopted: int = 0
    vanished: int = 0
    refill: float = 0.0
    dropped: int = 0
    real_packets: Mapping[str, int] = field(default_factory=dict)

    def share_since(self, earlier: DaemonCounters) -> float | None:
        """Return the fast path's share of the packets since an earlier reading, 0 to 1; None without packets."""
        fast, slow = self.fast - earlier.fast, self.slow - earlier.slow
        return fast / (fast + slow) if fast + slow else None


def read_counters(socket: Path) -> DaemonCounters:
    """Read the counters of the daemon at `socket`. Raises nfcore's errors if it does not answer."""
    answer: Mapping[str, Any] = request(socket, "stats")
    samples = {family["name"]: family["samples"] for family in answer["metrics"]}

    def matching(name: str, **labels: str) -> Iterator[tuple[Mapping[str, str], float]]:
        for sample in samples.get(name, ()):
            if all(sample["labels"].get(label) == value for label, value in labels.items()):
                yield sample["labels"], sample["value"]

    def total(name: str, **labels: str) -> int:
        return int(sum(value for _, value in matching(name, **labels)))

    real_packets: dict[str, int] = {}
    for labels, value in matching("nfcore_real_packets_total"):
        address = labels.get("real", "?")
        real_packets[address] = real_packets.get(address, 0) + int(value)
    return DaemonCounters(
        fast=total("nfcore_packets_total", path="fast"),
        slow=total("nfcore_packets_total", path="slow"),
        flows=total("nfcore_flows", state="installed"),
        marks=total("nfcore_marks_in_use"),
        rules=total("nfcore_rules", state="installed"),
        waiting=total("nfcore_flows", state="waiting"),
        full=total("nfcore_nic_full") > 0,
        adopted=total("nfcore_adopted_total"),
        vanished=total("nfcore_vanished_total"),
        refill=sum(value for _, value in matching("nfcore_refill_seconds")),
        dropped=total("nfcore_softnic_packets_total", kind="dropped"),
        real_packets=real_packets,
    )
