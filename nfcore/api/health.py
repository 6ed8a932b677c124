# SPDX-License-Identifier: Apache-2.0
"""Whether the daemon is alive: asked by threads other than the event loop's, which may be what has stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PATIENCE = 5.0
"""Seconds that one turn of the event loop may take."""
WORKER_PATIENCE = 30.0
"""Seconds that a NIC may take for one batch."""
REMEMBERED = 60.0
"""Seconds for which the longest turn is remembered, at least."""


@dataclass(frozen=True)
class Attachment:
    """A program that was attached to an interface."""

    id: int
    """The kernel's number of the program."""
    there: bool = True
    other: int | None = None
    """Number of the program that is in its place."""

    @property
    def trouble(self) -> str:
        """What to say when it is not there."""
        words = "the program is no longer attached"
        return words if self.other is None else f"{words}: another, {self.other}, is in its place"


def make_way(interface: str) -> str:
    """Say how to be rid of another's program on an interface."""
    return f"stop what put it there, or ip link set dev {interface} xdp off"


class Health:
    """Signs of life. The event loop writes, any thread reads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.started = time.time()
        self.workers: dict[str, Callable[[], float]] = {}
        """Interface → for how many seconds the job that its worker has has been under way."""
        self.attached: dict[str, Attachment] = {}
        """Interface → the program that was attached to it, as it was seen last: to ask the kernel may take long."""
        self._clock = clock
        self._turned: float | None = None
        self._longest: tuple[float, float] = (0.0, 0.0)
        """Of the minute before this and of this."""
        self._minute = clock()

    @property
    def longest_turn(self) -> float:
        """Seconds that the event loop took between two turns, at most, in the last minute or two."""
        return max(self._longest)

    def turn(self, nap: float) -> None:
        """Note a turn of the event loop, which has slept for up to `nap` seconds before."""
        now = self._clock()
        if self._turned is not None:
            before, longest = self._longest
            self._longest = before, max(longest, now - self._turned - nap)
        if now - self._minute >= REMEMBERED:
            self._longest, self._minute = (self._longest[1], 0.0), now
        self._turned = now

    def programs(self) -> dict[str, bool]:
        """Interface → whether the program is there."""
        return {interface: attachment.there for interface, attachment in self.attached.items()}

    def troubles(self) -> Iterator[str]:
        """Whatever speaks against being alive, a sentence each."""
        if self._turned is None:
            yield "the event loop does not run yet"
        elif (silent := self._clock() - self._turned) > PATIENCE:
            yield f"the event loop has not turned for {silent:.0f} s"
        for interface, busy in self.workers.items():
            if (seconds := busy()) > WORKER_PATIENCE:
                yield f"{interface}: the NIC has not answered for {seconds:.0f} s"
        for interface, attachment in self.attached.items():
            if not attachment.there:
                yield f"{interface}: {attachment.trouble}"
