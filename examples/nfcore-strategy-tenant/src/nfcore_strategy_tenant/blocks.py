# SPDX-License-Identifier: Apache-2.0
"""Divides marks into blocks: the upper bits are the block's number, the lower ones number the targets in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEFAULT_BLOCK = 0
"""The block of VIPs without an owner."""


@dataclass(frozen=True)
class Blocks:
    """Marks of `width` bits in 2**bits blocks of equal size. Mark 0, of block 0, is not used: it means "not marked"."""

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
        """All marks of a block, ascending."""
        first = block << self.shift
        return np.arange(max(first, 1), first + (1 << self.shift), dtype=np.uint32)

    def block_of(self, mark: int) -> int:
        """The block of a mark."""
        return mark >> self.shift
