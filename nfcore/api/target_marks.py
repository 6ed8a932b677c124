# SPDX-License-Identifier: Apache-2.0
"""One mark per target: the common part of strategies of `MarkMeaning.TARGET`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .flows import FlowBatch
from .marks import MarkAllocator

Target = tuple[int, int]
"""(number of the network function, target)."""
Choose = Callable[[Sequence[Target]], NDArray[np.uint32]]
"""Gives each of the new targets, in their order, a mark that is live; 0 where there is none."""


class TargetMarks:
    """Keeps the mark of each target, from its first flow until :meth:`release`."""

    def __init__(self, marks: MarkAllocator, choose: Choose) -> None:
        self._marks = marks
        self._choose = choose
        self.known: dict[Target, int] = {}
        """Target → mark, in the order in which the marks were chosen."""

    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        """Give each flow the mark of its target, 0 when there is none; the next batch tries such a target again."""
        given = np.zeros(len(batch), dtype=np.uint32)
        for nf in np.unique(batch.rows["nf"]).tolist():
            of_nf = batch.rows["nf"] == nf
            targets, first, inverse = np.unique(batch.rows["target"][of_nf], return_index=True, return_inverse=True)
            # In the order in which they appear in the batch, so that the next run gives them the same marks.
            self._choose_new([(nf, target) for target in targets[np.argsort(first)].tolist()])
            marks = [self.known.get((nf, target), 0) for target in targets.tolist()]
            given[of_nf] = np.array(marks, dtype=np.uint32)[inverse]
        return given

    def _choose_new(self, targets: Sequence[Target]) -> None:
        new = [target for target in targets if target not in self.known]
        if new:
            chosen = zip(new, self._choose(new).tolist(), strict=True)
            self.known |= {target: mark for target, mark in chosen if mark}

    def release(self, marks: NDArray[np.uint32]) -> None:
        """Put the marks of targets that are gone into quarantine."""
        released = set(marks.tolist())
        self.known = {target: mark for target, mark in self.known.items() if mark not in released}
        self._marks.release(marks)
