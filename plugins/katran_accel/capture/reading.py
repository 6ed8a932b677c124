# SPDX-License-Identifier: Apache-2.0
"""The reader of a capture: asks the daemon for packets and writes them, until a bound is met or a signal comes."""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from nfcore.control.client import Client, EndedError
from nfcore.errors import HostError

from .sinks import Sink

WAIT = 0.5
"""Seconds that one request waits for a packet. A signal, and a closed output pipe, are noticed between two requests."""
_PATIENCE = 10.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Bounds:
    """When a capture ends."""

    packets: int
    deadline: float
    """By time.monotonic()."""
    bytes: int
    """That may be written."""

    def over(self) -> bool:
        """Whether nothing more is to be captured."""
        return self.packets <= 0 or self.bytes <= 0 or time.monotonic() >= self.deadline

    def wait(self) -> float:
        """Seconds that a request may wait."""
        return min(WAIT, max(0.0, self.deadline - time.monotonic()))

    def take(self, length: int) -> bool:
        """Count a packet of so many bytes. False, and no more packets fit, when it does not."""
        self.bytes -= length
        self.packets -= 1
        return self.bytes >= 0 and self.packets >= 0


@dataclass
class Stop:
    """Whether a signal has asked for the end."""

    asked: bool = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Note a signal. A second one interrupts: the reader may be stuck in a write."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def noted_signals() -> Iterator[Stop]:
    """Note signals to stop instead of being ended by them, so that no packet is cut off. Ignored ones stay ignored."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop.note)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_packets(path: Path, wanted: Mapping[str, Any], bounds: Bounds, sink: Sink) -> str:
    """Capture until a bound is met or a signal comes; a sentence on what was captured.

    BrokenPipeError: nobody reads the output. EndedError: the daemon ended meanwhile.
    """
    written = 0
    answer: dict[str, Any] = {"packets": [], "fitting": 0, "lost": 0}
    with noted_signals() as stop, Client(path, WAIT + _PATIENCE) as daemon:
        try:
            capture = daemon.request("capture.start", **wanted)["capture"]
            print("capturing; Ctrl-C ends it", file=sys.stderr, flush=True)
            try:
                while not bounds.over() and not stop.asked:
                    answer = daemon.request("capture.read", capture=capture, wait=bounds.wait())
                    written += _write(answer["packets"], bounds, sink)
            finally:
                with suppress(HostError):
                    answer = daemon.request("capture.stop", capture=capture)
            written += _write(answer["packets"], bounds, sink)
        except EndedError:
            raise EndedError(f"the daemon at {path} has ended; {_count(written)}") from None
    return f"{_count(written)}, {answer['fitting']:,} fitted, {answer['lost']:,} lost for want of room"


def _write(packets: list[dict[str, Any]], bounds: Bounds, sink: Sink) -> int:
    """Write packets within the bounds; how many."""
    for number, packet in enumerate(packets):
        encoded = sink.encode(packet)
        if not bounds.take(len(encoded)):
            return number
        sink.write(encoded)
    if sink.is_closed():
        raise BrokenPipeError(errno.EPIPE, "the reader of standard output has closed it")
    return len(packets)


def _count(packets: int) -> str:
    return f"captured {packets:,} packet{'s' * (packets != 1)}"
