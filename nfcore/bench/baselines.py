# SPDX-License-Identifier: Apache-2.0
"""Programs that do nothing but what cannot be avoided: what a figure is measured against."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
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


class Floors:
    """The programs of bpf/bench/floor.c for one family. A context manager."""

    def __init__(self, family: Family) -> None:
        self._open = ExitStack()
        defines: dict[str, int | str] = {"OUTER_BYTES": OUTER_BYTES[family]}
        self.noop, self.head, self.metadata = (
            self._open.enter_context(compile_bench("floor.c", name, defines, {}))
            for name in ("bench_noop", "bench_head", "bench_metadata")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


class BareLru:
    """bpf/bench/bare_lru.c with a table of `entries` flows. A context manager."""

    def __init__(self, family: Family, entries: int) -> None:
        self._open = ExitStack()
        self.table = self._open.enter_context(
            Map.create(MapSpec("bench_flows", MapType.LRU_HASH, FLOW_KEY, REAL, entries))
        )
        defines: dict[str, int | str] = {"IPV6": 1} if family == 6 else {}
        self.program: Program = self._open.enter_context(
            compile_bench("bare_lru.c", "bench_lru", defines, {"bench_flows": self.table})
        )

    def remember(self, keys: NDArray[np.void], reals: NDArray[np.uint8]) -> None:
        """Enter flows: FLOW_KEY rows and the address of each one's real, shape (n, 16). HostError when refused."""
        values = np.zeros(len(keys), dtype=REAL)
        values["addr"] = reals
        result = self.table.update_batch(keys, values)
        if result.errno:
            raise HostError(f"flow {result.done} of {len(keys)} does not go into an LRU hash: error {result.errno}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
