# SPDX-License-Identifier: Apache-2.0
"""The program that gives TCP in GUE the source address of its outer header."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from nfcore.kernel import BPF_SOURCES, Closing, Map, MapSpec, MapType, TcProgram, compile_as

FUNCTION = "source_match"
COUNTERS = MapSpec("tc_srcmatch_map", MapType.ARRAY, np.dtype("<u4"), np.dtype("<u8"), 3)
"""As published: packets seen, those whose headers were not linear, those that were changed."""


class SourceMatch(Closing):
    """The loaded program and its counters. HostError: it cannot be loaded."""

    def __init__(self, gue_port: int) -> None:
        """Load the program for a UDP port."""
        with ExitStack() as undo:
            self._counters = undo.enter_context(Map.create(COUNTERS))
            source, maps = BPF_SOURCES / "decap/source_match.c", {COUNTERS.name: self._counters}
            self.program = compile_as(TcProgram, source, FUNCTION, defines={"GUE_PORT": gue_port}, maps=maps)
            undo.pop_all()

    def counts(self) -> dict[str, int]:
        """Count packets: `seen`, `need_pull`, `acted`."""
        return dict(zip(("seen", "need_pull", "acted"), self._counters.read_array().tolist(), strict=True))

    def close(self) -> None:
        """Close program and counters; an attached program stays."""
        self.program.close()
        self._counters.close()
