# SPDX-License-Identifier: Apache-2.0
"""Reads per-CPU maps of counters, summed over the CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.kernel import Map

OF_FEATURES = ("quic_stats_map", "stable_rt_stats", "tpr_stats_map", "server_id_stats", "decap_vip_stats")
"""Maps of counters that only programs with certain features have."""
SAMPLE = "_sample"
"""End of a field's name that is no counter, but one of the values seen last; 0: none."""


def read_counters(map_: Map, first: int = 0, count: int | None = None) -> NDArray[np.void]:
    """Read rows of a per-CPU array, each field summed over the CPUs; of a sample, the largest. All rows by default."""
    per_cpu = map_.read_slice(first, map_.spec.max_entries - first if count is None else count)
    total = np.zeros(len(per_cpu), map_.spec.value)
    for field in _fields(total):
        total[field] = per_cpu[field].max(axis=1) if field.endswith(SAMPLE) else per_cpu[field].sum(axis=1)
    return total


def read_feature_counters(maps: Mapping[str, Map]) -> dict[str, NDArray[np.void]]:
    """Read those of :data:`OF_FEATURES` that a program has, one after the other."""
    return {name: read_counters(maps[name]) for name in OF_FEATURES if name in maps}


def _fields(rows: NDArray[Any]) -> tuple[str, ...]:
    assert rows.dtype.names is not None, "these maps have structs"
    return rows.dtype.names
