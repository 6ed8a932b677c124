# SPDX-License-Identifier: Apache-2.0
"""The interface of a network function that the engine uses, and the result of a traced packet."""

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
    """What the engine needs of an NF. :meth:`Context.register_nf` sets `number`."""

    name: str
    number: int
    pools: CpuPools | None
    """The pools of marks, when the strategy lets XDP take marks; else None."""

    def wake_fds(self) -> Sequence[int]:
        """Descriptors that become readable when there is a report that should be read at once."""

    def read_events(self, limit: int) -> FlowBatch:
        """Read up to `limit` reports of flows; never waits."""

    def targets(self) -> FlowBatch:
        """Give all targets in the order of the configuration: a row each, with nf and target set and a key of zeros."""

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Give the group of each target, a small number: `[offload] max_share` limits the rules of each group."""

    def describe(self, target: int) -> Mapping[str, str]:
        """Describe a target for people, such as ``{"vip": "198.18.10.1:80/tcp", "real": "198.18.20.11"}``."""

    def fingerprint(self) -> bytes:
        """Give bytes that are equal in two runs only if each target means the same in both."""

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Fill in the targets of flows whose rules an earlier run left: per row, whether the mark has a fitting entry.

        Called at the start, after the targets are published, and only when the fingerprints of both runs are equal.
        """

    def attach(self, device: Device) -> None:
        """Attach the program to the device. HostError when that fails."""

    def detach(self, device: Device) -> None:
        """Detach the program from the device, if it is still the NF's own."""


@dataclass(frozen=True)
class PacketTrace:
    """What a program did with one frame."""

    verdict: str
    """``XDP_TX``, ``XDP_PASS``, ``XDP_DROP``, …"""
    output: bytes
    """The frame afterwards, without metadata."""
    path: str
    """``fast``: by its mark; ``slow``: by lookup; ``none``: it is no traffic of the NF."""
    vip: str | None
    real: str | None
    why: str = ""
    """As text, why it did not take the fast path or was not sent; not part of the JSON."""
