# SPDX-License-Identifier: Apache-2.0
"""A device with what the engine knows of its NIC: whether there is room, and when to look again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FlowBatch
from .backends import BackendChain
from .rule_counters import RuleCounters
from .token_bucket import TokenBucket
from .worker import Worker

PLENTY = 1 << 62
PROBE_RULES = 16
"""Rules that try whether a full NIC has room again."""
SHORTEST_RETRY, LONGEST_RETRY = 1.0, 30.0
"""Seconds between two such tries, doubling."""


@dataclass
class DeviceState:
    """One device. Times are seconds by the engine's clock."""

    backends: BackendChain
    worker: Worker
    budget: TokenBucket
    polling: bool = False
    next_poll: float = 0.0
    polled: float = 0.0
    """When the backends were asked last for their counters, whatever they answered."""
    counted: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """When each backend, by index, was asked last for its counters and gave them."""
    full: bool = False
    """The NIC has refused a rule for want of room, and none has fitted since."""
    spare: int = 0
    """Rules removed since it was full."""
    retry_at: float = 0.0
    refill_began: float | None = None
    """When rules were found missing that have not all been put back."""
    refill_seconds: float = 0.0
    """How long the last refill took."""
    last_message: str = ""
    """What a backend said last of a rule that it could not install."""
    to_probe: bool = False
    """The link has changed: what the NIC can do has to be found out again."""
    probing: bool = False
    rule_counters: RuleCounters = field(default_factory=lambda: RuleCounters(0))
    """What the NIC's rules have counted."""
    table_sizes: dict[str, int] = field(default_factory=dict)
    """Rules that fit, by backend, where one says so."""
    blind: Sequence[int] = ()
    """Backends, by index in the device's list, whose rules count nothing."""
    _retry: float = field(default=SHORTEST_RETRY)
    _tried: bool = False
    """Rules are on their way that try whether a full NIC has room again."""

    @property
    def ifindex(self) -> int:
        """The device's."""
        return self.backends.device.ifindex

    @property
    def name(self) -> str:
        """The device's."""
        return self.backends.device.name

    @property
    def accelerated(self) -> bool:
        """Whether any backend takes rules here."""
        return bool(self.backends.names)

    def begin_counting(self, now: float) -> None:
        """Count for as many backends as there are once they have been probed."""
        backends = len(self.backends.names)
        self.rule_counters, self.counted = RuleCounters(backends), np.full(backends, now)

    def counters_age(self, now: float) -> float:
        """Seconds since the counters were read, of the backend that has been silent for longest."""
        return float(now - self.counted.min(initial=now))

    def room(self, now: float) -> int:
        """How many rules are worth sending now."""
        if not self.full:
            return PLENTY
        if self.spare:
            return self.spare
        return PROBE_RULES if now >= self.retry_at else 0

    def sent(self, rules: int, now: float) -> None:
        """Note rules that are on their way to the NIC."""
        if self.full and rules > self.spare:
            self._tried, self.retry_at = True, now + self._retry
        self.spare = max(0, self.spare - rules)

    def refused(self, now: float) -> None:
        """Note that the NIC had no room: try again after a pause, which doubles with each try in vain."""
        if not self.full:
            self._retry = SHORTEST_RETRY
        elif self._tried:
            self._retry = min(self._retry * 2, LONGEST_RETRY)
        self.full, self.spare, self.retry_at, self._tried = True, 0, now + self._retry, False

    def accepted(self) -> None:
        """Note that a whole batch fitted. What fitted in a place that was vacated says nothing about others."""
        if self._tried:
            self.full, self.spare, self._tried = False, 0, False

    def freed(self, rules: int) -> None:
        """Note that rules are gone from the NIC."""
        if self.full:
            self.spare += rules

    def renew(self) -> None:
        """Forget what is known of the NIC's limits: it may be another than before."""
        self.full, self.spare, self._retry, self._tried = False, 0, SHORTEST_RETRY, False
        self.backends.forget_unsupported()

    def look_soon(self, now: float, least: float = 0.0) -> None:
        """Read the counters at once, but not within `least` seconds of the last time."""
        self.next_poll = min(self.next_poll, max(now, self.polled + least))

    def unsupported(self, batch: FlowBatch) -> NDArray[np.bool_]:
        """Rows whose rules no backend of the device takes, as it has said before."""
        return self.backends.unsupported(batch.rows["family"], batch.rows["key"]["proto"])
