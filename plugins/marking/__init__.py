# SPDX-License-Identifier: Apache-2.0
"""The two marking strategies of the framework: what a mark stands for.

    flow-id   one mark per flow; XDP takes it from its CPU's pool when it reports the flow
    dest-id   one mark per (network function, target), shared by all flows to it

Neither keeps a flow table: the engine has the only one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nfcore.api.context import Context
from nfcore.api.flows import FlowBatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkAllocator, MarkMeaning, StrategyInfo
from nfcore.api.target_marks import Target, TargetMarks

FLOW_ID = StrategyInfo("flow-id", MarkMeaning.FLOW, "one mark per flow")
DEST_ID = StrategyInfo("dest-id", MarkMeaning.TARGET, "one mark per target, shared by all its flows")


class FlowId:
    """Confirms the marks that XDP took. A mark that is not on lease is answered with 0."""

    def __init__(self, marks: MarkAllocator) -> None:
        self._marks = marks

    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        """Give the event's mark where it is valid, else 0."""
        taken = batch.rows["mark"]
        return np.where(self._marks.confirm(taken), taken, 0).astype(np.uint32)

    def release(self, marks: NDArray[np.uint32]) -> None:
        """Put the marks into quarantine."""
        self._marks.release(marks)


class DestId(TargetMarks):
    """One mark per (nf, target), numbered in the order in which targets appear, kept until the target is gone."""

    def __init__(self, marks: MarkAllocator) -> None:
        super().__init__(marks, self._next)

    def _next(self, targets: Sequence[Target]) -> NDArray[np.uint32]:
        taken = self._marks.take(len(targets))
        return np.pad(taken, (0, len(targets) - len(taken)))


class MarkingPlugin:
    """Offers both strategies and is in charge when the TOML chose one of them."""

    def __init__(self) -> None:
        self._chosen: FlowId | DestId | None = None

    @hookimpl
    def marking_strategies(self) -> Sequence[StrategyInfo]:
        """Offer flow-id and dest-id."""
        return (FLOW_ID, DEST_ID)

    @hookimpl
    def setup(self, context: Context) -> None:
        """Take charge, if the configuration says so."""
        if context.strategy == FLOW_ID:
            self._chosen = FlowId(context.marks)
        elif context.strategy == DEST_ID:
            self._chosen = DestId(context.marks)

    @hookimpl
    def teardown(self) -> None:
        """Forget all marks."""
        self._chosen = None

    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        """Give each flow its mark by the chosen strategy."""
        return self._chosen.allocate(batch) if self._chosen else None

    @hookimpl
    def release_mark(self, marks: NDArray[np.uint32]) -> None:
        """Take marks back."""
        if self._chosen:
            self._chosen.release(marks)
