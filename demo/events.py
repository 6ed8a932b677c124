# SPDX-License-Identifier: Apache-2.0
"""A step of a run: what is done while requests flow; and an event: what was done, and what was seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One event. `at`: seconds from the start of the traffic to its own start; `seconds`: how long it took."""

    name: str
    what: str
    claim: str
    at: float
    seconds: float
    passed: bool
    detail: str

    @property
    def line(self) -> str:
        """The event as a line of a log."""
        return f"{self.at:5.1f} s  {'PASS' if self.passed else 'FAIL'}  {self.what}: {self.detail}"


@dataclass(frozen=True)
class Step:
    """One event to perform; `act` waits until its effect is seen and returns a description of it."""

    name: str
    what: str
    claim: str
    act: Callable[[], str]


class UnseenError(Exception):
    """The expected effect of an event was not seen in time; the message has what was seen instead."""
