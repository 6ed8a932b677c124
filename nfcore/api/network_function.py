# SPDX-License-Identifier: Apache-2.0
"""What the engine needs of a network function, and what a traced packet tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .flows import FlowBatch
from .mark_pools import CpuPools
from .rules import Device


class NetworkFunction(Protocol):
    """What the engine needs of an NF. `number` is given by :meth:`Context.register_nf`."""

    name: str
    number: int
    pools: CpuPools | None
    """Leased marks, when the strategy lets XDP take them."""

    def wake_fds(self) -> Sequence[int]:
        """Descriptors that become readable when a report cannot wait for the next look."""

    def read_events(self, limit: int) -> FlowBatch:
        """Take up to `limit` reports of new flows; never waits."""

    def targets(self) -> FlowBatch:
        """All targets in the configuration's order, a row each with nf and target set and the key zero."""

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Give the group of each target, a small number: what shares of the NIC's table are granted to."""

    def describe(self, target: int) -> Mapping[str, str]:
        """Name a target for people, such as ``{"vip": "198.18.10.1:80/tcp", "real": "198.18.20.11"}``."""

    def fingerprint(self) -> bytes:
        """Whatever decides which number stands for what: equal in two runs, targets mean the same in both."""

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Fill in the targets of flows whose rules an earlier run left; False where a mark does not lead there.

        Asked at the start, after the targets were published, and only when the fingerprints of both runs are equal.
        """

    def attach(self, device: Device) -> None:
        """Put the program on the device. HostError when that cannot be."""

    def detach(self, device: Device) -> None:
        """Take the program off the device, if it is still ours."""


@dataclass(frozen=True)
class PacketTrace:
    """What a program did with one frame."""

    verdict: str
    """``XDP_TX``, ``XDP_PASS``, ``XDP_DROP``, …"""
    output: bytes
    """The frame afterwards, without metadata."""
    path: str
    """``fast`` by a mark, ``slow`` by lookup, ``none`` when it was no traffic of the NF."""
    vip: str | None
    real: str | None
    why: str = ""
    """In words, what kept it from the fast path or from being sent; not part of the JSON."""
