# SPDX-License-Identifier: Apache-2.0
"""One capture in the program: begun by a filter in `hw_accel_capture`, read from `hw_accel_samples`, ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.kernel import Map, RingBufferReader, possible_cpus

from . import layouts as lay


@dataclass(frozen=True)
class Filter:
    """Which packets are wanted, and how much of them."""

    verdicts: int
    """A bit for each ``enum xdp_action``."""
    reasons: int
    """A bit for each :class:`~.reasons.PacketReason`."""
    vip: int | None = None
    """Number of the VIP; None: any, or no VIP."""
    real: int | None = None
    every: int = 1
    """One of so many packets that fit, on each CPU."""
    bytes: int = 128
    """Of a frame, at most SAMPLE_BYTES."""


@dataclass(frozen=True)
class Counts:
    """What has happened since a capture began."""

    fitting: int
    """Packets that the filter wants, sampled or not."""
    lost: int
    """Samples that found no room."""


class CaptureMaps:
    """The maps of captures, from user space. Only one capture runs at a time."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._filter, self._counts = maps["hw_accel_capture"], maps["hw_accel_captured"]
        self._reader = RingBufferReader(maps["hw_accel_samples"], lay.CAPTURE_SAMPLE)
        self._row = np.zeros(1, lay.CAPTURE_FILTER)

    def begin(self, wanted: Filter, seconds: float) -> None:
        """Let the program sample for so many seconds; :meth:`go_on` moves the end."""
        self.end()
        while len(self._reader.read()):  # of the capture before
            pass
        self._counts.write_array(0, np.zeros((1, possible_cpus()), lay.CAPTURE_COUNTS))
        row = self._row[0]
        row["verdicts"], row["reasons"] = wanted.verdicts, wanted.reasons
        row["vip"] = 0 if wanted.vip is None else wanted.vip + 1
        row["real"] = wanted.real or 0
        row["every"], row["bytes"] = wanted.every, wanted.bytes
        # Packets must not see a new `until` with the old rest.
        self._filter.write_array(0, self._row)
        self.go_on(seconds)

    def go_on(self, seconds: float) -> None:
        """Let the capture end so many seconds from now."""
        self._row["until"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(seconds * 1e9)
        self._filter.write_array(0, self._row)

    def end(self) -> None:
        """Let the program sample nothing. Idempotent."""
        self._row["until"] = 0
        self._filter.write_array(0, self._row)

    def read(self, limit: int) -> NDArray[Any]:
        """Give up to `limit` samples, oldest first, as rows of CAPTURE_SAMPLE."""
        return self._reader.read(limit)

    def counts(self) -> Counts:
        """Give what was counted since the capture began."""
        rows = self._counts.read_slice(0, 1)
        return Counts(int(rows["fitting"].sum()), int(rows["lost"].sum()))

    def close(self) -> None:
        """End the capture and give up the buffer; the maps stay open."""
        self.end()
        self._reader.close()
