# SPDX-License-Identifier: Apache-2.0
"""Signals that stop the daemon, noted until it is safe to stop."""

from __future__ import annotations

import signal
import sys
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP tells of a terminal that is gone; a daemon without one reads its configuration again instead."""


class StoppedError(BaseException):
    """A stop signal came before the daemon was ready. No Exception: who goes on after those must not go on."""


class StopSwitch:
    """Takes note of SIGINT, SIGTERM and SIGHUP, and stops where it is asked: what is half done would be left behind.

    While the event loop runs it has handlers of its own.
    """

    def __init__(self) -> None:
        self.noted = False

    def __enter__(self) -> StopSwitch:
        self._before = [signal.signal(number, self._note) for number in STOP_SIGNALS]
        return self

    def __exit__(self, *about: object) -> None:
        for number, handler in zip(STOP_SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise StoppedError if a signal came."""
        if self.noted:
            raise StoppedError

    def resume(self) -> None:
        """Take note again after the event loop has had the signals."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Nothing is read again that is only just being read.
        self.noted |= number != signal.SIGHUP or sys.stderr.isatty()
