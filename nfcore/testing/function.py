# SPDX-License-Identifier: Apache-2.0
"""A sample network function for tests of strategies: targets with groups and names, and no datapath."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FlowBatch
from ..api.network_function import NetworkFunction, TargetFacts
from ..api.rules import Device
from ..kernel import Program


class SampleFunction(NetworkFunction):
    """Targets of a balancer: VIPs from 198.18.10.1 on, each with reals; target = 16 × VIP + real."""

    REALS = 16
    program: Program
    """Never set: it has none."""

    def __init__(self, name: str, vips: int = 4, reals: int = 4) -> None:
        self.name = name
        self.number = 0
        self._targets = [vip * self.REALS + real for vip in range(1, vips + 1) for real in range(1, reals + 1)]

    def wake_fds(self) -> Sequence[int]:
        """No descriptor to wait for."""
        return ()

    def read_events(self, limit: int) -> FlowBatch:
        """Never reports a flow."""
        return FlowBatch.empty()

    def targets(self) -> FlowBatch:
        """All targets, one row each."""
        batch = FlowBatch.empty(len(self._targets))
        batch.rows["nf"], batch.rows["target"] = self.number, self._targets
        return batch

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """The VIP of each target."""
        return (targets // self.REALS).astype(np.uint32)

    def describe(self, target: int) -> Mapping[str, str]:
        """The names of VIP and real."""
        vip, real = divmod(target, self.REALS)
        return {"vip": f"198.18.10.{vip}:80/tcp", "real": f"198.18.{20 + vip}.{real}"}

    def target_facts(self, target: int) -> TargetFacts:
        """VIP and real; the weight is the real's number."""
        vip, real = divmod(target, self.REALS)
        vip_address, real_address = (
            ipaddress.ip_address(text) for text in (f"198.18.10.{vip}", f"198.18.{20 + vip}.{real}")
        )
        return TargetFacts(ipaddress.ip_network(vip_address), 80, socket.IPPROTO_TCP, real_address, real)

    def fingerprint(self) -> bytes:
        """A digest of the numbering of targets."""
        return repr(self._targets).encode()

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Recognises no mark of an earlier run."""
        return np.zeros(len(batch), dtype=bool)

    def attached(self, device: Device) -> None:
        """Never called: it has no program to attach."""
