# SPDX-License-Identifier: Apache-2.0
"""Stopping the demo by a signal, without interrupting its clean-up."""

from __future__ import annotations

import signal
import time
from types import FrameType


class StoppedError(Exception):
    """A signal ended the demo (SIGINT, SIGTERM, SIGHUP); `number` is the signal."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class StopSwitch:
    """Stores a signal; :meth:`check` raises where the demo can be left.

    A signal handler that raises could interrupt the clean-up; this one only stores the number.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._store)

    def check(self) -> None:
        """Raise StoppedError if a signal came."""
        if self.number is not None:
            raise StoppedError(self.number)

    def wait(self) -> None:
        """Wait until a signal comes."""
        while self.number is None:
            time.sleep(0.1)

    def _store(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
