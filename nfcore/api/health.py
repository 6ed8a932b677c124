# SPDX-License-Identifier: Apache-2.0
"""Whether the daemon works. Threads other than the event loop's read it, because that one may be what hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

LOOP_TIMEOUT = 5.0
"""Seconds that one turn of the event loop may take."""
WORKER_TIMEOUT = 30.0
"""Seconds that a NIC may take for one batch."""
REMEMBERED = 60.0
"""Seconds for which the longest turn is remembered at least; at most twice as long."""


@dataclass(frozen=True)
class Attachment:
    """A program of nfcore on an interface."""

    id: int
    """The kernel's id of the program."""
    there: bool = True
    """Whether it is still attached."""
    other: int | None = None
    """Id of the program that has replaced it."""
    missing: tuple[str, ...] = ()
    """Functions of the interface's chain whose program is not in the chain any more."""

    @property
    def works(self) -> bool:
        """Whether packets reach every function of the interface."""
        return self.there and not self.missing

    @property
    def message(self) -> str:
        """The message for when it does not work."""
        if self.there and self.missing:
            return f"the chain has lost {', '.join(self.missing)}"
        message = "the program is no longer attached"
        return message if self.other is None else f"{message}: another, {self.other}, is in its place"


class Health:
    """The state of event loop, workers and programs. The event loop writes it, any thread reads it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.started = time.time()
        self.workers: dict[str, Callable[[], float]] = {}
        """Interface → gives for how many seconds the present job of its worker has been running."""
        self.attached: dict[str, Attachment] = {}
        """Interface → its program at the last check; a new check here could take long."""
        self.trouble_sources: list[Callable[[], Iterable[str]]] = []
        """Functions of plugins that say what is wrong, so that packets may be lost, a sentence each; any thread calls
        them."""
        self.warning_sources: list[Callable[[], Iterable[str]]] = []
        """Functions of plugins that give warnings, a sentence each; any thread calls them."""
        self._clock = clock
        self._turned: float | None = None
        self._longest: tuple[float, float] = (0.0, 0.0)
        """Longest turn of the last minute and of this one, in seconds."""
        self._minute = clock()

    @property
    def longest_turn(self) -> float:
        """The longest turn of the event loop in the last one to two minutes, in seconds."""
        return max(self._longest)

    def turn(self, nap: float) -> None:
        """Record a turn of the event loop, before which it waited for up to `nap` seconds."""
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
        """Yield what is wrong, a sentence each."""
        if self._turned is None:
            yield "the event loop does not run yet"
        elif (seconds := self._clock() - self._turned) > LOOP_TIMEOUT:
            yield f"the event loop has not turned for {seconds:.0f} s"
        for interface, busy in self.workers.items():
            if (seconds := busy()) > WORKER_TIMEOUT:
                yield f"{interface}: the NIC has not answered for {seconds:.0f} s"
        for interface, attachment in self.attached.items():
            if not attachment.works:
                yield f"{interface}: {attachment.message}"
        for source in self.trouble_sources:
            yield from source()

    def warnings(self) -> Iterator[str]:
        """Yield what an operator should know, though the daemon works, a sentence each."""
        for source in self.warning_sources:
            yield from source()
