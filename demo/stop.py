# SPDX-License-Identifier: Apache-2.0
"""When to stop: signals, noted in a way that leaves the cleaning up in peace."""

from __future__ import annotations

import signal
import time
from types import FrameType


class StoppedError(Exception):
    """Somebody asked the demo to end (SIGINT, SIGTERM, SIGHUP); `number` is the signal."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class StopSwitch:
    """Remembers a signal to stop, and raises where the demo can be left.

    A signal handler that raises could do so amid the cleaning up; this one only takes a note.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def check(self) -> None:
        """Raise StoppedError if a signal came."""
        if self.number is not None:
            raise StoppedError(self.number)

    def wait(self) -> None:
        """Until a signal comes."""
        while self.number is None:
            time.sleep(0.1)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
