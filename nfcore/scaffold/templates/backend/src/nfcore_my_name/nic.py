# SPDX-License-Identifier: Apache-2.0
"""The NIC: a table of exact flows in this process's memory. Put your device's driver in its place."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from nfcore.api.flows import PROTOCOL_NAMES, FlowMatch
from nfcore.api.rules import COOKIE_TAG, Outcome, Rule, SetMark

MARK_WIDTH = 16
"""Bits of a mark that arrive."""


@dataclass
class Entry:
    """One rule as the NIC holds it."""

    rule: Rule
    packets: int = 0
    bytes: int = 0
    last_used: int = 0
    """ns, CLOCK_MONOTONIC; 0: never."""


class Nic:
    """A NIC with room for `size` rules. Packets come while rules are changed, hence the lock."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: dict[FlowMatch, Entry] = {}
        self._lock = threading.Lock()

    def install(self, rule: Rule) -> tuple[Outcome, str]:
        """Take one rule: what became of it, and why not. A rule for a flow that has one takes its place."""
        if rule.match.proto not in PROTOCOL_NAMES:
            return Outcome.UNSUPPORTED, f"protocol {rule.match.proto} is neither tcp nor udp"
        if isinstance(rule.action, SetMark) and rule.action.mark >> MARK_WIDTH:
            return Outcome.UNSUPPORTED, f"mark {rule.action.mark} is wider than {MARK_WIDTH} bits"
        with self._lock:
            there = self.entries.get(rule.match)
            if there is not None and not _is_ours(there.rule):
                return Outcome.FAILED, f"{rule.match} has a rule of somebody else"
            if there is None and len(self.entries) >= self.size:
                return Outcome.FULL, f"all {self.size} places are taken"
            if there is None or there.rule != rule:
                self.entries[rule.match] = Entry(rule)
            return Outcome.INSTALLED, ""

    def remove(self, rule: Rule) -> Entry | None:
        """Take a rule off; None when it is not there. One of another cookie is another rule."""
        with self._lock:
            there = self.entries.get(rule.match)
            return self.entries.pop(rule.match) if there is not None and there.rule.cookie == rule.cookie else None

    def ours(self) -> list[Entry]:
        """Give the rules that nfcore made, as they are now."""
        with self._lock:
            return [entry for entry in self.entries.values() if _is_ours(entry.rule)]

    def receive(self, flow: FlowMatch | None, length: int) -> int | None:
        """Take a packet off the wire, `length` bytes, of a flow or of none: its mark, 0 without; None: dropped."""
        with self._lock:
            entry = None if flow is None else self.entries.get(flow)
            if entry is None:
                return 0
            entry.packets += 1
            entry.bytes += length
            entry.last_used = time.monotonic_ns()
            return entry.rule.action.mark if isinstance(entry.rule.action, SetMark) else None


def _is_ours(rule: Rule) -> bool:
    return rule.cookie >> 48 == COOKIE_TAG


_MACHINE: dict[int, Nic] = {}
"""By ifindex: rules of a NIC outlive the plugin that made them."""


def find_nic(ifindex: int, size: int) -> Nic:
    """Give the NIC of a device."""
    return _MACHINE.setdefault(ifindex, Nic(size))


def forget_nic(ifindex: int) -> None:
    """Take the NIC out of the machine, for the next test."""
    _MACHINE.pop(ifindex, None)
