# SPDX-License-Identifier: Apache-2.0
"""A chain of two network functions as the daemon makes it, attached to nothing."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from ..api.carriers import Carrier
from ..api.context import ChainBuild
from ..daemon.chain import compile_dispatcher, map_specs
from ..kernel import Closing, Map, Program

MARK_WIDTH = 17
"""Bits: as many as the marks of the packet sources have at most."""
FIRST, SECOND = 0, 1
"""Slots of the functions."""


class ChainOfTwo(Closing):
    """Their maps, and the programs in front of them. A context manager. HostError when the kernel refuses."""

    def __init__(self) -> None:
        self._open = ExitStack()
        programs, self._owners = map_specs(2, MARK_WIDTH)
        self._programs = self._open.enter_context(Map.create(programs))
        self.build = ChainBuild({"CHAIN_NEXT": SECOND}, {programs.name: self._programs})
        """What the first function is to be built with."""

    def link(self, first: Program, second: Program) -> None:
        """Put the functions into their slots."""
        self._programs.update(FIRST, first)
        self._programs.update(SECOND, second)

    def dispatcher(self, owner: int) -> Program:
        """Load a program to be put in front of them: all marks belong to the function in the slot `owner`."""
        owners = self._open.enter_context(Map.create(self._owners))
        owners.write_array(0, np.full(1 << MARK_WIDTH, owner + 1, dtype=np.uint32))
        maps = {"chain_programs": self._programs, self._owners.name: owners}
        return self._open.enter_context(compile_dispatcher(maps, [FIRST, SECOND], Carrier.METADATA))

    def close(self) -> None:
        """Close maps and programs. Idempotent."""
        self._open.close()
