# SPDX-License-Identifier: Apache-2.0
"""The hooks of a marking strategy: which mark a target gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from nfcore.api.config import Config, ConfigTable, Section
from nfcore.api.context import Context
from nfcore.api.flows import FlowBatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkMeaning, StrategyInfo
from nfcore.api.metrics import MetricFamily, MetricKind
from nfcore.api.target_marks import Target, TargetMarks
from nfcore.errors import Problem
from numpy.typing import NDArray
from pydantic import Field

NAME = "my_name"
STRATEGY = StrategyInfo("my-name", MarkMeaning.TARGET, "one mark per target, the lowest")
"""The value of `[marking] strategy`, and what a mark stands for: here a target, for all flows to it."""


class MyNameTable(ConfigTable):
    """`[my_name]`: strict, like every table of nfcore."""

    first: int = Field(default=1, ge=1, lt=1 << 24)
    """The lowest mark that the strategy may use."""


def check_whole(config: Config) -> Iterator[Problem]:
    """Check the table against other tables; called once all tables could be read, also if other checks fail."""
    table = config.sections[NAME]
    assert isinstance(table, MyNameTable)  # as config_section() declares
    width = config.marking.width
    if config.marking.strategy == STRATEGY.name and table.first >> width:
        yield Problem(f"{NAME}.first", f"is {table.first}; marks of marking.width = {width} end at {(1 << width) - 1}")


class MyNameMarks(TargetMarks):
    """Chooses the lowest free marks. Change this to choose marks in your own way."""

    def __init__(self, context: Context, table: MyNameTable) -> None:
        super().__init__(context.marks, self._lowest)
        self._range = np.arange(table.first, 1 << context.config.marking.width, dtype=np.uint32)

    def _lowest(self, targets: Sequence[Target]) -> NDArray[np.uint32]:
        """Give each target, in their order, a mark that is live from now on; 0 when no mark is free."""
        marks = self._range[self._marks.free(self._range)][: len(targets)]
        given = np.zeros(len(targets), dtype=np.uint32)
        given[: len(marks)] = np.where(self._marks.claim(marks), marks, 0)
        return given


class MyNamePlugin:
    """Implements the hooks. They run on the event loop and must not block it."""

    nfcore_api = 1
    """The version of nfcore's hooks for which this plugin was written."""

    def __init__(self) -> None:
        self._chosen: MyNameMarks | None = None

    @hookimpl
    def config_section(self) -> Section:
        """Declare `[my_name]`."""
        return Section(MyNameTable, check_whole=check_whole)

    @hookimpl
    def marking_strategies(self) -> Sequence[StrategyInfo]:
        """Offer the strategy to `[marking] strategy`."""
        return (STRATEGY,)

    @hookimpl
    def setup(self, context: Context) -> None:
        """Make the marks, if this strategy is chosen and an interface has a backend."""
        if context.strategy == STRATEGY:
            table = context.config.sections[NAME]
            assert isinstance(table, MyNameTable)  # as config_section() declares
            self._chosen = MyNameMarks(context, table)

    @hookimpl
    def teardown(self) -> None:
        """Forget all marks."""
        self._chosen = None

    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        """Give each flow its mark, 0 for none; None when another strategy is chosen."""
        return self._chosen.allocate(batch) if self._chosen else None

    @hookimpl
    def release_mark(self, marks: NDArray[np.uint32]) -> None:
        """Take back marks that no rule and no entry uses any more; they are free after their quarantine."""
        if self._chosen:
            self._chosen.release(marks)

    @hookimpl
    def collect_stats(self) -> Iterator[MetricFamily]:
        """Give the plugin's metrics."""
        if self._chosen:
            in_use = MetricFamily(f"nfcore_{NAME}_in_use", MetricKind.GAUGE, "Marks that a target has", "marks")
            in_use.add(len(self._chosen.known))
            yield in_use
