# SPDX-License-Identifier: Apache-2.0
"""Reads the rules of the NIC and the counters of the datapath from the kernel, without the daemon."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from nfcore.api.rules import RuleBatch
from nfcore.kernel import Map, MapSpec, MapType
from nfcore.plugins.katran_accel.layouts import AccelCounter
from nfcore.plugins.softnic.backend import SoftnicBackend

from .host_state import BALANCER_PINS

_PATHS = MapSpec("hw_accel_stats", MapType.PERCPU_ARRAY, np.dtype("<u4"), np.dtype("<u8"), len(AccelCounter))


@dataclass(frozen=True)
class Paths:
    """Packets on each path since the balancer was pinned."""

    fast: int
    slow: int

    def __sub__(self, other: Paths) -> Paths:
        return Paths(self.fast - other.fast, self.slow - other.slow)

    @property
    def summary(self) -> str:
        """Both numbers as text."""
        return f"{self.fast:,} packets fast, {self.slow:,} slow"


class Hardware:
    """Context: the emulated NIC's rules and the pinned balancer's counters."""

    def __init__(self, nic_pins: Path) -> None:
        self._nic_pins = nic_pins
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            self._nic = SoftnicBackend.open(self._nic_pins, "demo")
            exits.callback(self._nic.close)
            self._paths = exits.enter_context(Map.open_pinned(BALANCER_PINS / _PATHS.name, _PATHS))
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._exits.close()

    def rules(self) -> int:
        """Return how many rules the NIC holds."""
        return len(self._nic.dump())

    def wipe(self) -> int:
        """Remove every rule from the NIC; returns how many there were."""
        rows = self._nic.dump()
        self._nic.remove(RuleBatch(np.ascontiguousarray(rows["rule"])))
        return len(rows)

    def paths(self) -> Paths:
        """Return the packets on each path."""
        counters = self._paths.read_array().sum(axis=1)
        return Paths(int(counters[AccelCounter.FAST]), int(counters[AccelCounter.SLOW]))
