# SPDX-License-Identifier: Apache-2.0
"""Runs one frame through the loaded program and derives what it did from the counters that changed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nfcore.api.network_function import PacketTrace
from nfcore.kernel import XdpAction

from . import layouts as lay
from .balancer import Balancer
from .counter_maps import SAMPLE, read_counters, read_feature_counters
from .feature_metrics import FeatureCounters
from .metrics import accel_counters
from .trace_reasons import FrameFacts, Raised, explain


def trace(balancer: Balancer, frame: bytes, mark: int) -> PacketTrace:
    """Run `frame` with `mark` (0: none) in its metadata through the program."""
    before = _Counters.read(balancer)
    metadata = struct.pack("=I", mark) if mark else b""
    run = balancer.program.test_run(frame, metadata=metadata)
    raised = _Counters.read(balancer).raised_since(before)
    return PacketTrace(
        verdict=run.verdict.name,
        output=run.output,
        path=raised.path,
        vip=None if raised.vip is None else balancer.inventory.vips[raised.vip].name,
        real=None if raised.real is None else balancer.inventory.real_name(raised.real),
        why=explain(raised, FrameFacts.of(frame), run.verdict, balancer.table.mtu),
        passed_on=run.verdict is XdpAction.PASS,
    )


@dataclass(frozen=True)
class _Counters:
    """All counters of a program, summed over the CPUs."""

    stats: NDArray[np.void]
    reals: NDArray[np.int64]
    accel: NDArray[np.int64]
    of_features: FeatureCounters

    @classmethod
    def read(cls, balancer: Balancer) -> Self:
        reals = max(balancer.inventory.reals.values(), default=0) + 1
        return cls(
            read_counters(balancer.maps["stats"]),
            read_counters(balancer.maps["reals_stats"], count=reals)["v1"].astype(np.int64),
            accel_counters(balancer).astype(np.int64),
            read_feature_counters(balancer.maps.maps),
        )

    def raised_since(self, before: Self) -> Raised:
        """Subtract what the counters had before."""
        stats = np.zeros(len(self.stats), lay.LB_STATS)
        for field in ("v1", "v2"):
            stats[field] = self.stats[field] - before.stats[field]
        fields: dict[str, int] = {}
        for name, rows in self.of_features.items():
            for field in rows.dtype.names or ():
                now, then = int(rows[field].sum()), int(before.of_features[name][field].sum())
                value = now if field.endswith(SAMPLE) else now - then
                if value:
                    fields[f"{name}.{field}"] = value
        return Raised(stats, self.reals - before.reals, self.accel - before.accel, fields)
