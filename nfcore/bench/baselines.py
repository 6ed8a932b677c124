# SPDX-License-Identifier: Apache-2.0
"""Baselines: programs that do only what no balancer can avoid. The program under test is compared with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FLOW_KEY
from ..errors import HostError
from ..kernel import Map, MapSpec, MapType, Program
from .packet_source import compile_bench
from .traffic import Family

OUTER_BYTES: dict[Family, int] = {4: 20, 6: 40}
REAL = np.dtype([("addr", "u1", (16,))])
"""`struct bench_real` of bpf/bench/bare_lru.c."""


@dataclass(frozen=True)
class Floors:
    """The programs of bpf/bench/floor.c for one family."""

    noop: Program
    head: Program
    metadata: Program

    @classmethod
    @contextmanager
    def open(cls, family: Family) -> Iterator[Self]:
        """Load them for a block. HostError as :func:`compile_bench`."""
        defines: dict[str, int | str] = {"OUTER_BYTES": OUTER_BYTES[family]}
        with (
            compile_bench("floor.c", "bench_noop", defines, {}) as noop,
            compile_bench("floor.c", "bench_head", defines, {}) as head,
            compile_bench("floor.c", "bench_metadata", defines, {}) as metadata,
        ):
            yield cls(noop, head, metadata)


@dataclass(frozen=True)
class BareLru:
    """bpf/bench/bare_lru.c and its table of flows."""

    table: Map
    program: Program

    @classmethod
    @contextmanager
    def open(cls, family: Family, entries: int) -> Iterator[Self]:
        """Load it for a block, with a table of `entries` flows. HostError as :func:`compile_bench`."""
        defines: dict[str, int | str] = {"IPV6": 1} if family == 6 else {}
        with (
            Map.create(MapSpec("bench_flows", MapType.LRU_HASH, FLOW_KEY, REAL, entries)) as table,
            compile_bench("bare_lru.c", "bench_lru", defines, {"bench_flows": table}) as program,
        ):
            yield cls(table, program)

    def add(self, keys: NDArray[np.void], reals: NDArray[np.uint8]) -> None:
        """Add flows: FLOW_KEY rows and the address of each one's real, shape (n, 16). HostError when refused."""
        values = np.zeros(len(keys), dtype=REAL)
        values["addr"] = reals
        result = self.table.update_batch(keys, values)
        if result.errno:
            raise HostError(f"the LRU hash refuses flow {result.done} of {len(keys)}: error {result.errno}")
