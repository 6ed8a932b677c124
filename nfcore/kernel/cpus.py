# SPDX-License-Identifier: Apache-2.0
"""Possible and online CPUs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_CPU_DIRECTORY = Path("/sys/devices/system/cpu")


def parse_cpu_list(text: str) -> list[int]:
    """Parse the kernel's list format: ``"0-2,5"`` is ``[0, 1, 2, 5]``, an empty text ``[]``."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


@cache
def possible_cpus() -> int:
    """Number of possible CPUs: the values that a per-CPU map has per key. Constant while the machine runs."""
    return len(parse_cpu_list((_CPU_DIRECTORY / "possible").read_text()))


def online_cpus() -> list[int]:
    """Numbers of the CPUs that are online now, ascending."""
    return parse_cpu_list((_CPU_DIRECTORY / "online").read_text())
