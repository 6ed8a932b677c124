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
from tests.paths import PROGRAMS

_VERDICT = PROGRAMS / "verdict.c"
_MARKS_SEEN = Path(__file__).parents[1] / "simnic" / "xdp" / "marks_seen.c"
_COUNTS = MapSpec("counts", MapType.ARRAY, np.dtype(np.uint32), np.dtype(np.uint64), 4)
_MARKS = MapSpec("marks", MapType.HASH, np.dtype(np.uint32), np.dtype(np.uint64), 64)
_TARGET = MapSpec("target", MapType.ARRAY, np.dtype(np.uint32), np.dtype(np.uint32), 1)
_ANSWERS = ("DROP", "PASS", "TX", "REDIRECT")
NO_MARK = 0xFFFF_FFFF
"""What :func:`count_marks` counts frames as that came without metadata."""


def new_counts() -> Map:
    """What :func:`count_and_drop` counts in."""
    return Map.create(_COUNTS)


def count_and_drop(counts: Map) -> Program:
    """A program that drops every frame and counts it at index 1."""
    defines: dict[str, int | str] = {"VERDICT": "XDP_DROP", "COUNT_AS": 1}
    return compile_program(_VERDICT, "verdict_prog_with_a_long_name", defines=defines, maps={"counts": counts})


def new_marks() -> Map:
    """What :func:`count_marks` counts in, frames by mark."""
    return Map.create(_MARKS)


def new_target() -> Map:
    """Where :func:`count_marks` redirects to: an ifindex, at 0."""
    return Map.create(_TARGET)


def count_marks(marks: Map, target: Map, answer: str) -> Program:
    """A program that counts frames by the mark in their metadata and answers XDP_``answer``."""
    defines: dict[str, int | str] = {"VERDICT": f"XDP_{answer}", "NO_MARK": f"{NO_MARK}U"}
    return compile_program(_MARKS_SEEN, "marks_seen", defines=defines, maps={"marks": marks, "target": target})


def prebuild() -> None:
    """Have every program here compiled. Raises HostError."""
    with new_counts() as counts:
        count_and_drop(counts).close()
    with new_marks() as marks, new_target() as target:
        for answer in _ANSWERS:
            count_marks(marks, target, answer).close()
