# SPDX-License-Identifier: Apache-2.0
"""XDP programs of the tests here.

The host compiles them before it boots, which takes a fraction of a second there and 20 s in the guest; the
guest finds them in nfcore's cache of compiled programs. What is missing here is compiled once in the guest
and kept for its next boot.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nfcore.kernel import Map, MapSpec, MapType, Program, compile_program

_VERDICT = Path(__file__).parents[2] / "kernel" / "programs" / "verdict.c"
_COUNTS = MapSpec("counts", MapType.ARRAY, np.dtype(np.uint32), np.dtype(np.uint64), 4)


def new_counts() -> Map:
    """What :func:`count_and_drop` counts in."""
    return Map.create(_COUNTS)


def count_and_drop(counts: Map) -> Program:
    """A program that drops every frame and counts it at index 1."""
    defines: dict[str, int | str] = {"VERDICT": "XDP_DROP", "COUNT_AS": 1}
    return compile_program(_VERDICT, "verdict_prog_with_a_long_name", defines=defines, maps={"counts": counts})


def prebuild() -> None:
    """Have every program here compiled. Raises HostError."""
    with new_counts() as counts:
        count_and_drop(counts).close()
