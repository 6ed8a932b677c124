# SPDX-License-Identifier: Apache-2.0
"""The two marking strategies that come with nfcore: what a mark stands for.

    flow-id   one mark per flow; XDP takes it from its CPU's pool when it reports the flow
    dest-id   one mark per (network function, target), shared by all flows to it

Neither has a flow table: the only one is the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nfcore.api.context import Context
from nfcore.api.flows import FlowBatch, ReportKind
from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkAllocator, MarkMeaning, StrategyInfo
from nfcore.api.target_marks import Target, TargetMarks

FLOW_ID = StrategyInfo("flow-id", MarkMeaning.FLOW, "one mark per flow")
DEST_ID = StrategyInfo("dest-id", MarkMeaning.TARGET, "one mark per target, shared by all its flows")


class FlowId:
    """Confirms the marks that XDP has taken, and chooses those of ordered flows.

    A mark that is not leased to a CPU becomes 0.
    """

    def __init__(self, marks: MarkAllocator) -> None:
        self._marks = marks

    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        """Give the mark of each flow's report where it is leased, and a free one to each ordered flow; else 0."""
        taken = batch.rows["mark"]
        given = np.where(self._marks.confirm(taken), taken, 0).astype(np.uint32)
        ordered = np.flatnonzero(batch.rows["kind"] == ReportKind.ORDERED)
        chosen = self._marks.take(len(ordered))
        given[ordered[: len(chosen)]] = chosen
        return given

    def release(self, marks: NDArray[np.uint32]) -> None:
        """Put the marks into quarantine."""
        self._marks.release(marks)


class DestId(TargetMarks):
    """One mark per (nf, target), taken when the target first appears and kept until it is released."""

    def __init__(self, marks: MarkAllocator) -> None:
        super().__init__(marks, self._take)

    def _take(self, targets: Sequence[Target]) -> NDArray[np.uint32]:
        taken = self._marks.take(len(targets))
        return np.pad(taken, (0, len(targets) - len(taken)))


class MarkingPlugin:
    """Offers both strategies. Does nothing when the TOML chooses another one."""

    def __init__(self) -> None:
        self._strategy: FlowId | DestId | None = None

    @hookimpl
    def marking_strategies(self) -> Sequence[StrategyInfo]:
        """Offer flow-id and dest-id."""
        return (FLOW_ID, DEST_ID)

    @hookimpl
    def setup(self, context: Context) -> None:
        """Create the strategy that the TOML chooses."""
        if context.strategy == FLOW_ID:
            self._strategy = FlowId(context.marks)
        elif context.strategy == DEST_ID:
            self._strategy = DestId(context.marks)

    @hookimpl
    def teardown(self) -> None:
        """Forget all marks."""
        self._strategy = None

    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        """Give each flow its mark."""
        return self._strategy.allocate(batch) if self._strategy else None

    @hookimpl
    def release_mark(self, marks: NDArray[np.uint32]) -> None:
        """Put marks that nothing uses any more into quarantine."""
        if self._strategy:
            self._strategy.release(marks)
