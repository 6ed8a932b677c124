# SPDX-License-Identifier: Apache-2.0
"""What the engine knows of a device: its room for rules, its counters, and when to poll and to retry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FlowBatch, ReportKind
from ..api.rules import Action, Capabilities
from .backends import BackendChain, RuleShapes
from .rule_counters import RuleCounters
from .token_bucket import TokenBucket
from .worker import Worker

PLENTY = 1 << 62
"""Room for rules where no limit is known."""
PROBE_RULES = 16
"""Rules that are sent to a full NIC to find out whether it has room again."""
SHORTEST_RETRY, LONGEST_RETRY = 1.0, 30.0
"""Seconds between two such attempts, and between two probes of what may pass, doubling."""
UNSUPPORTED_RETRY = 300.0
"""Seconds after which a backend is probed again that has called rules unsupported: firmware and modes change."""


@dataclass
class DeviceState:
    """The state of one device. Times are seconds by the engine's clock."""

    backends: BackendChain
    worker: Worker
    budget: TokenBucket
    polling: bool = False
    next_poll: float = 0.0
    polled_at: float = 0.0
    """When the last dump was requested. Backends may be missing in it."""
    counted_at: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Per backend: when the last dump was requested that has its rules."""
    full: bool = False
    """The NIC has refused a rule because its table was full, and is not known to have room again."""
    spare: int = 0
    """Places on a full NIC that removals have freed."""
    retry_at: float = 0.0
    refill_began: float | None = None
    """When rules were found missing; None when all have been put back."""
    refill_seconds: float = 0.0
    """How long the last refill took."""
    last_message: str = ""
    """The last message of a backend about a rule that it could not install."""
    to_probe: bool = False
    """The link has changed: the backends are to be probed again."""
    probing: bool = False
    probe_at: float = math.inf
    """When the backends are to be probed again though nothing was announced: what they refused may have passed."""
    failed_retry: float = math.inf
    """When flows whose rules have failed again and again are to be tried once more."""
    found: Mapping[str, Capabilities] = field(default_factory=dict)
    """What the last probe has found."""
    rule_counters: RuleCounters = field(default_factory=lambda: RuleCounters(0))
    """What the NIC's rules have counted."""
    _probe_pause: float = field(default=SHORTEST_RETRY)
    _retry: float = field(default=SHORTEST_RETRY)
    _tried: bool = False
    """Rules are on their way to a full NIC to find out whether it has room again."""

    @property
    def ifindex(self) -> int:
        """The device's ifindex."""
        return self.backends.device.ifindex

    @property
    def name(self) -> str:
        """The device's name."""
        return self.backends.device.name

    @property
    def accelerated(self) -> bool:
        """Whether the device has a backend."""
        return bool(self.backends.names)

    @property
    def able(self) -> list[str]:
        """The backends but for those that can set no marks for now."""
        narrow = self.backends.too_narrow
        waiting = [name for name, each in self.found.items() if each.temporary and not each.mark_width]
        return [name for name in self.backends.names if name not in waiting and name not in narrow]

    @property
    def hindered(self) -> bool:
        """Whether rules fail, or a backend is of no use, for a reason that may pass."""
        return self.failed_retry < math.inf or any(each.temporary for each in self.found.values())

    @property
    def table_sizes(self) -> dict[str, int]:
        """Backend → how many rules fit, where it states this."""
        return {name: size for name, each in self.found.items() if (size := each.table_size) is not None}

    @property
    def without_counters(self) -> list[int]:
        """Backends without counters, by index in the device's list."""
        return [
            at for at, name in enumerate(self.backends.names) if name in self.found and not self.found[name].counters
        ]

    def begin_counting(self, now: float) -> None:
        """Set the counters up for the backends that are left after probing."""
        backends = len(self.backends.names)
        self.rule_counters, self.counted_at = RuleCounters(backends), np.full(backends, now)

    def counters_age(self, now: float) -> float:
        """Seconds since the counters were read, of the backend whose counters are the oldest."""
        return float(now - self.counted_at.min(initial=now))

    def room(self, now: float) -> int:
        """How many rules may be sent now."""
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
        """Note that the NIC had no room. The next attempt waits for a time that doubles with each failed one."""
        if not self.full:
            self._retry = SHORTEST_RETRY
        elif self._tried:
            self._retry = min(self._retry * 2, LONGEST_RETRY)
        self.full, self.spare, self.retry_at, self._tried = True, 0, now + self._retry, False

    def accepted(self) -> None:
        """Note that a whole batch fitted. Only an attempt shows that there is room; freed places were known before."""
        if self._tried:
            self.full, self.spare, self._tried = False, 0, False

    def freed(self, rules: int) -> None:
        """Note that rules are gone from the NIC."""
        if self.full:
            self.spare += rules

    def renew(self) -> None:
        """Forget the NIC's limits: after a reset or another driver they may be different."""
        self.full, self.spare, self._retry, self._tried = False, 0, SHORTEST_RETRY, False
        self.backends.forget_unsupported()

    def probed(self, found: Mapping[str, Capabilities], now: float) -> bool:
        """Note what a probe has found; whether it is news. While it may pass, probe again after a doubling pause."""
        news = found != self.found
        self.found = found
        if any(capabilities.temporary for capabilities in found.values()):
            self.probe_at = now + self._probe_pause
            self._probe_pause = min(self._probe_pause * 2, LONGEST_RETRY)
        else:
            self.probe_at, self._probe_pause = math.inf, SHORTEST_RETRY
        return news

    def unsupported_again(self, now: float) -> None:
        """Note that a backend has called rules unsupported: some time later it is asked once more."""
        self.probe_at = min(self.probe_at, now + UNSUPPORTED_RETRY)

    def poll_soon(self, now: float, least: float = 0.0) -> None:
        """Poll the counters as soon as possible, but not within `least` seconds of the last poll."""
        self.next_poll = min(self.next_poll, max(now, self.polled_at + least))

    def unsupported(self, batch: FlowBatch) -> NDArray[np.bool_]:
        """Which rows are known to be unsupported by every backend of the device."""
        drops = batch.rows["kind"] == ReportKind.ORDERED_DROP
        actions = np.where(drops, Action.DROP, Action.SET_MARK).astype(np.uint32)
        return self.backends.unsupported(RuleShapes.of(batch.rows, actions))
