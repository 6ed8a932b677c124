# SPDX-License-Identifier: Apache-2.0
"""Runs one frame through the loaded program and derives what it did from the counters that changed."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from nfcore.api.network_function import PacketTrace
from nfcore.kernel import XdpAction

from . import layouts as lay
from .balancer import Balancer
from .metrics import accel_counters

REASONS = {
    lay.AccelCounter.MALFORMED: "to a VIP, but truncated, a fragment or with IP options",
    lay.AccelCounter.INELIGIBLE: "SYN, FIN, RST or too long: never sent by a mark",
    lay.AccelCounter.UNKNOWN_MARK: "the mark has no entry",
    lay.AccelCounter.OTHER_FLOW: "the mark belongs to another flow or VIP",
    lay.AccelCounter.STALE: "VIP or real changed since the mark was given",
    lay.AccelCounter.REAL_GONE: "its real is gone: the ring chose another",
}
"""Counter → what it says about a packet that raised it."""


def trace(balancer: Balancer, frame: bytes, mark: int) -> PacketTrace:
    """Run `frame` with `mark` (0: none) in its metadata through the program."""
    counters = _snapshot(balancer)
    metadata = struct.pack("=I", mark) if mark else b""
    run = balancer.program.test_run(frame, metadata=metadata)
    vips, reals, accel = (after - before for after, before in zip(_snapshot(balancer), counters, strict=True))
    vip, real = _changed(vips), _changed(reals)
    path = "none"
    if accel[lay.AccelCounter.FAST]:
        path = "fast"
    elif accel[lay.AccelCounter.SLOW]:
        path = "slow"
    return PacketTrace(
        verdict=run.verdict.name,
        output=run.output,
        path=path,
        vip=None if vip is None else balancer.inventory.vips[vip].name,
        real=None if real is None else balancer.inventory.real_name(real),
        why=next((reason for counter, reason in REASONS.items() if accel[counter]), ""),
        passed_on=run.verdict is XdpAction.PASS,
    )


def _snapshot(balancer: Balancer) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Packets per VIP, packets per real, and `hw_accel_stats`, summed over the CPUs."""
    vips = balancer.maps["stats"].read_slice(0, max(balancer.inventory.vips) + 1)["v1"].sum(axis=1)
    reals = balancer.maps["reals_stats"].read_slice(0, max(balancer.inventory.reals.values()) + 1)["v1"].sum(axis=1)
    accel = accel_counters(balancer)
    return vips.astype(np.int64), reals.astype(np.int64), accel.astype(np.int64)


def _changed(delta: NDArray[np.int64]) -> int | None:
    """Index of the counter that changed, None when none did."""
    changed = np.flatnonzero(delta)
    return int(changed[0]) if len(changed) else None
