# SPDX-License-Identifier: Apache-2.0
"""Marking strategies that are wrong on purpose, each in one way, and the promise that each of them breaks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nfcore.api.context import Context
from nfcore.api.flows import FlowBatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkAllocator, MarkState, StrategyInfo
from nfcore.api.target_marks import Target
from nfcore.plugins.marking import DEST_ID, FLOW_ID, DestId, FlowId, MarkingPlugin

_Class = type[MarkingPlugin]
_Strategy = Callable[[MarkAllocator], DestId | FlowId]
WRONG: dict[str, tuple[_Class, StrategyInfo, str, set[str]]] = {}
"""What is wrong → the plugin, the strategy to choose, the promise that must be reported, others that it breaks, too."""


def breaks(promise: str, *also: str, strategy: StrategyInfo = DEST_ID) -> Callable[[_Class], _Class]:
    def enter(kind: _Class) -> _Class:
        WRONG[kind.__name__] = (kind, strategy, promise, set(also))
        return kind

    return enter


def enter(name: str, kind: _Strategy, promise: str, *also: str, strategy: StrategyInfo = DEST_ID) -> None:
    """Add a plugin that uses `kind` as its strategy."""

    class Wrong(MarkingPlugin):
        @hookimpl
        def setup(self, context: Context) -> None:
            self._strategy = kind(context.marks) if context.strategy == strategy else None

    WRONG[name] = (Wrong, strategy, promise, set(also))


@breaks("hooks-have-our-signatures", "it-offers-itself")
class OffersNothing(MarkingPlugin):
    marking_strategies = None  # type: ignore[assignment]


@breaks("it-offers-itself")
class HasNoHelp(MarkingPlugin):
    @hookimpl
    def marking_strategies(self) -> Sequence[StrategyInfo]:
        return (StrategyInfo(DEST_ID.name, DEST_ID.meaning, ""),)

    @hookimpl
    def setup(self, context: Context) -> None:
        if context.strategy is not None:
            self._strategy = DestId(context.marks)


@breaks("hooks-do-not-raise")
class RaisesAtTargetsOf64Bits(MarkingPlugin):
    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        [target.to_bytes(6, "little") for target in batch.rows["target"].tolist()]
        return super().allocate_mark(batch)


@breaks("another-strategy-is-left-in-charge")
class IsAlwaysInCharge(MarkingPlugin):
    @hookimpl
    def setup(self, context: Context) -> None:
        self._strategy = DestId(context.marks)


@breaks("every-flow-has-an-answer")
class AnswersOneTooFew(MarkingPlugin):
    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        marks = super().allocate_mark(batch)
        return marks[:-1] if marks is not None and len(marks) else marks


@breaks("every-flow-has-an-answer", strategy=FLOW_ID)
class AnswersWithFractions(MarkingPlugin):
    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        marks = super().allocate_mark(batch)
        return None if marks is None else marks.astype(np.float64)  # type: ignore[return-value]


@breaks("every-flow-has-an-answer")
class WritesToTheBatch(MarkingPlugin):
    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        marks = super().allocate_mark(batch)
        if marks is not None:
            batch.rows["mark"] = marks
        return marks


@breaks("marks-fit-the-width")
class AddsABit(MarkingPlugin):
    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        marks = super().allocate_mark(batch)
        return None if marks is None else np.where(marks, marks | 1 << 16, 0).astype(np.uint32)


class _OwnNumbers(DestId):
    def _choose_new(self, targets: Sequence[Target]) -> None:
        for target in targets:
            self.known.setdefault(target, len(self.known) + 1)

    def release(self, marks: NDArray[np.uint32]) -> None:
        self.known.clear()


enter("MakesMarksUp", _OwnNumbers, "marks-are-live")


class _OnePerGroup(DestId):
    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        coarse = FlowBatch(batch.rows.copy())
        coarse.rows["target"] //= 2
        return super().allocate(coarse)


enter("SharesMarksOfNeighbours", _OnePerGroup, "a-target-has-one-mark", "functions-do-not-share-marks")


class _AllOfOneFunction(DestId):
    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        one = FlowBatch(batch.rows.copy())
        one.rows["nf"] = 1
        return super().allocate(one)


enter("IgnoresTheFunction", _AllOfOneFunction, "functions-do-not-share-marks", "a-target-has-one-mark")


_RUNS = itertools.count(1)


@breaks("numbering-is-repeatable")
class NumbersByTheRun(MarkingPlugin):
    @hookimpl
    def setup(self, context: Context) -> None:
        if context.strategy == DEST_ID:
            context.marks.take(next(_RUNS) % 100)
        super().setup(context)


class _NoRest(DestId):
    def release(self, marks: NDArray[np.uint32]) -> None:
        super().release(marks)
        self._marks.state[marks] = MarkState.FREE
        self._marks._free.appendleft(marks)


enter("GivesMarksAgainAtOnce", _NoRest, "a-mark-rests-before-it-is-used-again")


@breaks("a-mark-rests-before-it-is-used-again", "exhausted-marks-are-none")
class ForgetsAndReleasesNothing(MarkingPlugin):
    @hookimpl
    def release_mark(self, marks: NDArray[np.uint32]) -> None:
        if isinstance(self._strategy, DestId):
            self._strategy.known.clear()


class _Generous(DestId):
    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        marks = super().allocate(batch)
        live = np.flatnonzero(self._marks.state == MarkState.LIVE)
        return np.where(marks == 0, live[0] if len(live) else 0, marks).astype(np.uint32)


enter("GivesSomebodyElsesMarkWhenNoneIsLeft", _Generous, "exhausted-marks-are-none")


class _Trusting(FlowId):
    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        taken = np.where(batch.rows["mark"] < self._marks.size, batch.rows["mark"], 0).astype(np.uint32)
        # Does not use `confirm`, which would refuse.
        self._marks._move(np.unique(taken[taken != 0]), MarkState.LIVE)
        return taken


enter("BelievesEveryMark", _Trusting, "only-leased-marks-are-confirmed", strategy=FLOW_ID)


@breaks("released-marks-rest", strategy=FLOW_ID)
class KeepsMarksForEver(MarkingPlugin):
    @hookimpl
    def release_mark(self, marks: NDArray[np.uint32]) -> None:
        pass


@breaks("teardown-forgets")
class OutlivesTeardown(MarkingPlugin):
    @hookimpl
    def teardown(self) -> None:
        pass


class _UpToAThousand(DestId):
    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        marks = super().allocate(batch)
        marks[1000:] = 0
        return marks


enter("StopsAtAThousand", _UpToAThousand, "throughput")
