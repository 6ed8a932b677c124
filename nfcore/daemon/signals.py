# SPDX-License-Identifier: Apache-2.0
"""The signals that stop the daemon: they are only noted until it is safe to stop."""

from __future__ import annotations

import signal
import sys
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP stops a daemon with a terminal, which is gone then. Without a terminal it means: reload."""


class StoppedError(BaseException):
    """A stop signal came before the daemon was ready. No Exception, so that `except Exception` does not catch it."""


class StopSwitch:
    """Notes SIGINT, SIGTERM and SIGHUP. The startup calls :meth:`check` between steps, so that no step ends half-way.

    While the event loop runs, the loop has handlers of its own.
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
        """Set the handlers again after the event loop has removed its own."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # During startup a reload is pointless: the configuration is just being read.
        self.noted |= number != signal.SIGHUP or sys.stderr.isatty()
