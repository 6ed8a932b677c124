# SPDX-License-Identifier: Apache-2.0
"""Which network function of a chain a mark belongs to: its marked packets go straight to that function."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class MarkOwners(Protocol):
    """Written by the engine: before the first rule sets a mark, and after the last one is gone."""

    def give(self, nf: int, marks: NDArray[np.uint32]) -> None:
        """Let the network function with this number own the marks."""

    def clear(self, marks: NDArray[np.uint32]) -> None:
        """Let nobody own the marks: packets with them start at the first function, as packets without a mark."""


class NoOwners:
    """For interfaces with one function each: all marks are that function's."""

    def give(self, nf: int, marks: NDArray[np.uint32]) -> None:
        """Do nothing."""

    def clear(self, marks: NDArray[np.uint32]) -> None:
        """Do nothing."""
