# SPDX-License-Identifier: Apache-2.0
"""What one run of a program has at hand."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from .counters import Counters
from .features import Features, Quirks
from .maps import Maps, Memory


class Event(NamedTuple):
    """A sampled packet."""

    kind: int
    size: int
    """Bytes of the frame."""
    frame: bytes
    """Its first 128 bytes."""

    def published(self) -> bytes:
        """The sample as in `event_pipe`."""
        return struct.pack("=III", self.kind, self.size, len(self.frame)) + self.frame


NEW_TCP, TOO_BIG, NO_SUCH_REAL = 0, 1, 2
"""Kinds of events."""


@dataclass(slots=True)
class Run:
    """One run."""

    features: Features
    maps: Maps
    memory: Memory
    cpu: int
    now: int
    """Nanoseconds."""
    counters: Counters = field(default_factory=Counters)
    events: list[Event] = field(default_factory=list)

    @property
    def quirks(self) -> Quirks:
        """Mistakes of Katran to follow."""
        return self.features.quirks

    def sample(self, kind: int, frame: bytes) -> None:
        """Sample a frame."""
        if self.features.introspection and self.maps.introspection:
            self.events.append(Event(kind, len(frame), frame[:128]))
