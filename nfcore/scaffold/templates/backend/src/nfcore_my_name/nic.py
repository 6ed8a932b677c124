# SPDX-License-Identifier: Apache-2.0
"""The NIC: a table of flows in the memory of this process. Replace it by the driver of your device."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from nfcore.api.flows import PROTOCOL_NAMES, FlowMatch
from nfcore.api.rules import COOKIE_TAG, Outcome, Rule, SetMark

PROTOCOLS = tuple(PROTOCOL_NAMES)
"""IP protocols of the flows that the NIC can match: TCP and UDP."""
MARK_WIDTH = 16
"""Bits of a mark that arrive at XDP."""


@dataclass
class Entry:
    """One rule in the NIC."""

    rule: Rule
    packets: int = 0
    bytes: int = 0
    last_used: int = 0
    """ns, CLOCK_MONOTONIC; 0: never."""


class Nic:
    """A NIC with room for `size` rules. The lock is needed because packets arrive while rules change."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: dict[FlowMatch, Entry] = {}
        self._lock = threading.Lock()

    def install(self, rule: Rule) -> tuple[Outcome, str]:
        """Install one rule: its status, and a message if it failed. It replaces an earlier rule of its flow."""
        if rule.match.proto not in PROTOCOLS:
            return Outcome.UNSUPPORTED, f"protocol {rule.match.proto} is neither tcp nor udp"
        if isinstance(rule.action, SetMark) and rule.action.mark >> MARK_WIDTH:
            return Outcome.UNSUPPORTED, f"mark {rule.action.mark} is wider than {MARK_WIDTH} bits"
        with self._lock:
            entry = self.entries.get(rule.match)
            if entry is not None and not _is_own(entry.rule):
                return Outcome.FAILED, f"{rule.match} has a foreign rule"
            if entry is None and len(self.entries) >= self.size:
                return Outcome.FULL, f"the table has {self.size} rules and is full"
            if entry is None or entry.rule != rule:
                self.entries[rule.match] = Entry(rule)
            return Outcome.INSTALLED, ""

    def remove(self, rule: Rule) -> Entry | None:
        """Remove a rule; None when it is not there. A rule with another cookie is another rule."""
        with self._lock:
            entry = self.entries.get(rule.match)
            return self.entries.pop(rule.match) if entry is not None and entry.rule.cookie == rule.cookie else None

    def own_entries(self) -> list[Entry]:
        """Give the entries of nfcore's rules, as they are now."""
        with self._lock:
            return [entry for entry in self.entries.values() if _is_own(entry.rule)]

    def receive(self, flow: FlowMatch | None, length: int) -> int | None:
        """Receive a packet of `length` bytes: its mark, 0 if it has none; None: dropped. flow None: matches no rule."""
        with self._lock:
            entry = None if flow is None else self.entries.get(flow)
            if entry is None:
                return 0
            entry.packets += 1
            entry.bytes += length
            entry.last_used = time.monotonic_ns()
            return entry.rule.action.mark if isinstance(entry.rule.action, SetMark) else None


def _is_own(rule: Rule) -> bool:
    return rule.cookie >> 48 == COOKIE_TAG


_NICS: dict[int, Nic] = {}
"""ifindex → NIC. Not in the plugin, because rules on a NIC outlive the plugin that installed them."""


def find_nic(ifindex: int, size: int) -> Nic:
    """Give the NIC of a device."""
    return _NICS.setdefault(ifindex, Nic(size))


def forget_nic(ifindex: int) -> None:
    """Remove a NIC, for the next test."""
    _NICS.pop(ifindex, None)
