# SPDX-License-Identifier: Apache-2.0
"""One mark per target, whoever chooses it: what strategies of `MarkMeaning.TARGET` have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .flows import FlowBatch
from .marks import MarkAllocator

Target = tuple[int, int]
"""(number of the network function, target)."""
Choose = Callable[[Sequence[Target]], NDArray[np.uint32]]
"""Gives targets that have no mark one each, live already, 0 where there is none; in their order."""


class TargetMarks:
    """The mark of each target, from its first flow until :meth:`release`."""

    def __init__(self, marks: MarkAllocator, choose: Choose) -> None:
        self._marks = marks
        self._choose = choose
        self.known: dict[Target, int] = {}
        """In the order in which they were chosen."""

    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        """Give each flow the mark of its target, 0 when none could be chosen; such a target is chosen for again."""
        given = np.zeros(len(batch), dtype=np.uint32)
        for nf in np.unique(batch.rows["nf"]).tolist():
            mine = batch.rows["nf"] == nf
            targets, first, inverse = np.unique(batch.rows["target"][mine], return_index=True, return_inverse=True)
            # In the order of their appearance: what the first run numbered so, the next numbers alike.
            self._learn([(nf, target) for target in targets[np.argsort(first)].tolist()])
            marks = [self.known.get((nf, target), 0) for target in targets.tolist()]
            given[mine] = np.array(marks, dtype=np.uint32)[inverse]
        return given

    def _learn(self, targets: Sequence[Target]) -> None:
        fresh = [target for target in targets if target not in self.known]
        if fresh:
            chosen = zip(fresh, self._choose(fresh).tolist(), strict=True)
            self.known |= {target: mark for target, mark in chosen if mark}

    def release(self, marks: NDArray[np.uint32]) -> None:
        """Put the marks of targets that are gone into quarantine."""
        ended = set(marks.tolist())
        self.known = {target: mark for target, mark in self.known.items() if mark not in ended}
        self._marks.release(marks)
