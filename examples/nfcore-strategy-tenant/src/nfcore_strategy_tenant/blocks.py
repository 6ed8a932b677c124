# SPDX-License-Identifier: Apache-2.0
"""How marks are parted: the upper bits are the block's number, the lower ones number the targets in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEFAULT_BLOCK = 0
"""The block of whatever nobody owns."""


@dataclass(frozen=True)
class Blocks:
    """Marks of `width` bits in 2**bits blocks of one size; of block 0, mark 0 means "not marked"."""

    width: int
    bits: int
    owners: Mapping[int, str]
    """Block number, from 1, → owner."""

    @property
    def shift(self) -> int:
        """Bits below the block's number."""
        return self.width - self.bits

    @property
    def mask(self) -> int:
        """The bits of a mark that are the block's number."""
        return ((1 << self.bits) - 1) << self.shift

    def marks(self, block: int) -> NDArray[np.uint32]:
        """Give all marks of a block, ascending."""
        first = block << self.shift
        return np.arange(max(first, 1), first + (1 << self.shift), dtype=np.uint32)

    def block_of(self, mark: int) -> int:
        """Give the block that a mark is in."""
        return mark >> self.shift
