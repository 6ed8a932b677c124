# SPDX-License-Identifier: Apache-2.0
"""What is done to the load balancer in the chaos, and what was seen of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One thing that was done. `at` and `seconds`: when it began, since the traffic did, and how long it took."""

    name: str
    what: str
    claim: str
    at: float
    seconds: float
    passed: bool
    detail: str

    @property
    def line(self) -> str:
        """For a log."""
        return f"{self.at:5.1f} s  {'PASS' if self.passed else 'FAIL'}  {self.what}: {self.detail}"


class UnseenError(Exception):
    """What an event should bring about was not seen in time; the words tell what was seen instead."""
