# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of marking strategies: subclass it, give the fixture `strategy`, and pytest collects the rest.

class TestMyStrategy(StrategyConformance):
    @pytest.fixture
    def strategy(self) -> StrategyUnderTest:
        return StrategyUnderTest(MyPlugin, "my-strategy", name="my_plugin")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ..api.context import Context
from ..api.flows import FlowBatch
from ..api.marks import MarkAllocator, MarkMeaning, MarkState, StrategyInfo
from ..api.network_function import NetworkFunction
from ..api.rules import Device
from .function import SampleFunction
from .promises import Examination
from .samples import sample_flow
from .world import context_for

_DEVICE = Device("eth1", 1, ("some_nic",))
_OTHER = "a-strategy-that-nobody-offers"
_EVERYTHING = 1 << 24
_QUARANTINE = 5.0
_EXAMPLES = 25


def _two_functions() -> Sequence[NetworkFunction]:
    return SampleFunction("one"), SampleFunction("two")


@dataclass
class StrategyUnderTest:
    """What a fixture `strategy` gives: how to make the plugin, and the world that it is to be set up in."""

    make: Callable[[], object]
    """The plugin's class."""
    strategy: str
    """The word by which `[marking] strategy` chooses it."""
    name: str
    """The plugin's, as messages show it."""
    table: Mapping[str, Any] = field(default_factory=dict)
    """The plugin's own table of the TOML."""
    functions: Callable[[], Sequence[NetworkFunction]] = _two_functions
    """Makes network functions whose targets are to be marked: at least two, each with four targets or more."""
    width: int = 10
    """Bits of a mark: enough for all targets of these functions."""


class StrategyRun:
    """One process's life of the plugin: set up, asked, torn down. The clock stands until it is moved."""

    def __init__(self, driver: StrategyDriver, chosen: str, width: int, folder: Path) -> None:
        self._driver = driver
        under_test = driver.under_test
        self.plugin = under_test.make()
        driver.register(self.plugin)
        self.now = 1000.0
        self.context: Context = context_for(
            self.plugin, driver.name, [_DEVICE], under_test.table, folder=folder, strategy=chosen, width=width
        )
        self.context.marks = MarkAllocator(width, _QUARANTINE, lambda: self.now)
        self.marks = self.context.marks
        for function in under_test.functions():
            self.context.register_nf(function)
        self.rows = [function.targets().rows for function in self.context.nfs]
        driver.call("setup", context=self.context)

    def batch(self, *targets: tuple[int, int], marks: Sequence[int] | NDArray[np.uint32] = ()) -> FlowBatch:
        """Give a flow to each target, (number of the function from 0, number of its target from 0)."""
        flows = FlowBatch.empty(len(targets))
        for at, (function, target) in enumerate(targets):
            row, flow = flows.rows[at], sample_flow(at + 1)
            row["key"], row["family"], row["ifindex"], row["packets"] = flow.to_key(), 4, _DEVICE.ifindex, 8
            row["nf"], row["target"] = function + 1, self.rows[function][target]["target"]
        flows.rows["mark"][: len(marks)] = marks
        return flows

    def everything(self) -> list[tuple[int, int]]:
        """Give all targets of all functions, in their order."""
        return [(at, target) for at, rows in enumerate(self.rows) for target in range(len(rows))]

    def ask(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        """Ask for marks; None when the strategy is not in charge."""
        __tracebackhide__ = True
        before = batch.rows.tobytes()
        answer = self._driver.call("allocate_mark", "every-flow-has-an-answer", batch=batch)
        if answer is None:
            return None
        self._look_at(answer)
        self._driver.expect(
            batch.rows.tobytes() == before, "the batch was written to", promise="every-flow-has-an-answer"
        )
        return answer  # type: ignore[no-any-return]

    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        """Ask for marks, as the one that is in charge."""
        __tracebackhide__ = True
        answer = self.ask(batch)
        if answer is None:
            self._driver.broken("it is chosen and answers None", promise="every-flow-has-an-answer")
        return answer

    def _look_at(self, answer: NDArray[np.uint32]) -> None:
        __tracebackhide__ = True
        driver = self._driver
        wide = answer[answer >= self.marks.size]
        wrong = f"gave the mark {int(wide.max(initial=0))} where marks have {self.marks.width} bits"
        driver.expect(not len(wide), wrong, promise="marks-fit-the-width")
        given_ones = answer[answer != 0]
        dead = given_ones[self.marks.state[given_ones] != MarkState.LIVE]
        if len(dead):
            state = MarkState(int(self.marks.state[dead[0]])).name.lower()
            driver.broken(f"gave the mark {int(dead[0])}, which is {state}", promise="marks-are-live")

    def release(self, marks: NDArray[np.uint32]) -> None:
        """Give marks back, as the engine does when no rule and no entry uses them."""
        __tracebackhide__ = True
        self._driver.call("release_mark", marks=marks)

    def lease(self, count: int) -> NDArray[np.uint32]:
        """Take marks as XDP takes them from its CPU's pool."""
        return self.marks.take(count, MarkState.LEASED)

    def targets_to_mark(self, *targets: tuple[int, int]) -> FlowBatch:
        """Give flows as they are reported: with a leased mark each where marks mean flows."""
        flows = self._driver.info.meaning is MarkMeaning.FLOW
        return self.batch(*targets, marks=self.lease(len(targets)) if flows else ())


class StrategyDriver(Examination):
    """One strategy before one test."""

    def __init__(self, node: pytest.Item, under_test: StrategyUnderTest, leaving: ExitStack) -> None:
        super().__init__(node, under_test.name, StrategyConformance)
        self.under_test = under_test
        # Not pytest's tmp_path, which may be longer than a socket's address.
        self._folder = Path(leaving.enter_context(TemporaryDirectory(prefix="nfcore-")))
        self._leaving = leaving
        self.register(under_test.make())

    @cached_property
    def info(self) -> StrategyInfo:
        """Give what the plugin says of the strategy under test."""
        __tracebackhide__ = True
        offered: list[StrategyInfo] = self.call("marking_strategies", "it-offers-itself")
        found = [info for info in offered if info.name == self.under_test.strategy]
        if len(found) != 1:
            names = ", ".join(repr(info.name) for info in offered) or "nothing"
            wrong = f"offers {names}, not {self.under_test.strategy!r} once"
            self.broken(wrong, promise="it-offers-itself", hook="marking_strategies")
        return found[0]

    def run(self, chosen: str = "", width: int = 0) -> StrategyRun:
        """Set the plugin up anew, as a new process does."""
        __tracebackhide__ = True
        assert self.info  # or a promise is broken: without it nothing else makes sense
        run = StrategyRun(self, chosen or self.under_test.strategy, width or self.under_test.width, self._folder)
        self._leaving.callback(self.plugins.call, self.name, "teardown")
        return run

    def means(self, meaning: MarkMeaning) -> None:
        """End the test unless its marks mean that."""
        __tracebackhide__ = True
        if self.info.meaning is not meaning:
            self.not_applicable(f"its marks mean a {self.info.meaning.value}")


class StrategyConformance:
    """Tests of one strategy; each is a promise, in its docstring's words."""

    @pytest.fixture
    def strategy(self) -> StrategyUnderTest:
        """Give the strategy: the author's part."""
        raise pytest.UsageError(f"{type(self).__name__} needs a fixture `strategy` that gives a StrategyUnderTest")

    @pytest.fixture
    def marking(self, request: pytest.FixtureRequest, strategy: StrategyUnderTest) -> Iterator[StrategyDriver]:
        """Drive the plugin as the engine does."""
        with ExitStack() as leaving:
            yield StrategyDriver(request.node, strategy, leaving)

    def test_hooks_have_our_signatures(self, marking: StrategyDriver) -> None:
        """A strategy has marking_strategies, allocate_mark and release_mark, as nfcore.api.hookspecs has them."""
        wanted = ("marking_strategies", "allocate_mark", "release_mark")
        missing = [hook for hook in wanted if not marking.plugins.implementing(hook)]
        marking.expect(not missing, f"it lacks {', '.join(missing)}; is @hookimpl above each?")

    def test_hooks_do_not_raise(self, marking: StrategyDriver) -> None:
        """No hook raises, whatever is in a batch: marks out of range, targets that nobody named, no flows at all."""
        run = marking.run()
        strange = run.batch(*[(0, 0)] * 5, marks=[0, 1, run.marks.size, 1 << 31, 0xFFFF_FFFF])
        strange.rows["target"] = [0, 1, 1 << 32, (1 << 64) - 1, 5]
        for batch in (strange, run.batch(), strange):
            run.allocate(batch)
        run.release(np.zeros(0, dtype=np.uint32))

    def test_it_offers_itself(self, marking: StrategyDriver) -> None:
        """`marking_strategies` names it, with what its marks mean and a line of help."""
        info = marking.info
        marking.expect(
            isinstance(info.meaning, MarkMeaning), f"its meaning is {info.meaning!r}", hook="marking_strategies"
        )
        marking.expect(bool(info.help.strip()), "its help is empty", hook="marking_strategies")

    def test_another_strategy_is_left_in_charge(self, marking: StrategyDriver) -> None:
        """It answers None, and takes no mark, where the configuration chose another strategy or none."""
        run = marking.run(_OTHER)
        answer = run.ask(run.batch((0, 0), (1, 1)))
        marking.expect(answer is None, f"it answers {answer!r} though another is chosen", hook="allocate_mark")
        live = run.marks.count(MarkState.LIVE)
        marking.expect(live == 0, f"it took {live} marks though another is chosen", hook="setup")

    def test_every_flow_has_an_answer(self, marking: StrategyDriver) -> None:
        """Marks are an array of integers, one for each flow of the batch, 0 for none; the batch stays as it was."""
        run = marking.run()
        for targets in ([], [(0, 0)], [(0, 0), (1, 0), (0, 0), (0, 3)]):
            run.allocate(run.targets_to_mark(*targets))

    def test_marks_fit_the_width(self, marking: StrategyDriver) -> None:
        """Marks are less than 2 to the power of `[marking] width`."""
        run = marking.run(width=marking.under_test.width)
        answer = run.allocate(run.targets_to_mark(*run.everything()))
        marking.expect(answer.any(), f"{len(answer)} targets got no mark at all", hook="allocate_mark")

    def test_marks_are_live(self, marking: StrategyDriver) -> None:
        """Each mark that it gives is live in Context.marks from then on until it is released: taken from there, not
        made up.
        """
        run = marking.run()
        answer = run.allocate(run.targets_to_mark(*run.everything()[:8]))
        held = run.marks.count(MarkState.LIVE)
        given_ones = len(np.unique(answer[answer != 0]))
        marking.expect(given_ones > 0, "no flow got a mark of an allocator that is full of them", hook="allocate_mark")
        wrong = f"{held} marks are live for the {given_ones} that it gave"
        marking.expect(held >= given_ones, wrong, hook="allocate_mark")

    # Marks that mean targets

    def test_a_target_has_one_mark(self, marking: StrategyDriver) -> None:
        """All flows to one target have one mark, in every batch, until it is released; no two targets share one."""
        marking.means(MarkMeaning.TARGET)
        some = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=12)

        @settings(deadline=None, database=None, max_examples=_EXAMPLES)
        @given(st.lists(some, max_size=5))
        def check(batches: list[list[tuple[int, int]]]) -> None:
            __tracebackhide__ = True
            run = marking.run()
            known: dict[tuple[int, int], int] = {}
            for targets in batches:
                marks = run.allocate(run.batch(*targets)).tolist()
                for target, mark in zip(targets, marks, strict=True):
                    first = known.setdefault(target, mark)
                    marking.expect(first == mark, f"target {target} had the mark {first} and has {mark}")
            _expect_distinct(marking, known)

        check()

    def test_functions_do_not_share_marks(self, marking: StrategyDriver) -> None:
        """Targets of one number in two network functions are two targets, in one batch and in successive ones."""
        marking.means(MarkMeaning.TARGET)
        for together in (True, False):
            run = marking.run()
            pairs = [(function, target) for target in range(4) for function in range(2)]
            asked = [pairs] if together else [[pair] for pair in pairs]
            marks = np.concatenate([run.allocate(run.batch(*targets)) for targets in asked])
            _expect_distinct(marking, dict(zip(pairs, marks.tolist(), strict=True)))

    def test_numbering_is_repeatable(self, marking: StrategyDriver) -> None:
        """The same targets in the same order get the same marks in every process: a restart finds its rules right."""
        marking.means(MarkMeaning.TARGET)
        numbered = []
        for _ in range(2):
            run = marking.run()
            everything = run.everything()
            half = len(everything) // 2
            parts = [everything[half:], everything[:half], everything[::-1]]
            numbered.append([run.allocate(run.batch(*part)).tolist() for part in parts])
        marking.expect(numbered[0] == numbered[1], f"first {numbered[0][0][:8]}…, then {numbered[1][0][:8]}…")

    def test_a_mark_rests_before_it_is_used_again(self, marking: StrategyDriver) -> None:
        """A released mark means nothing else before its quarantine has passed, and is free afterwards."""
        marking.means(MarkMeaning.TARGET)
        run = marking.run()
        first = [(0, 0), (0, 1), (1, 0)]
        released = run.allocate(run.batch(*first))
        run.release(released)
        live = released[run.marks.state[released] == MarkState.LIVE]
        wrong = f"of {len(released)} released marks {len(live)} are still live"
        marking.expect(not len(live), wrong, hook="release_mark")
        run.now += _QUARANTINE / 2
        again = set(run.allocate(run.batch(*run.everything())).tolist()) & set(released.tolist()) - {0}
        marking.expect(not again, f"the marks {sorted(again)} were given again within their quarantine")
        run.now += _QUARANTINE
        free = run.marks.take(_EVERYTHING)
        kept = set(released.tolist()) - set(free.tolist())
        marking.expect(not kept, f"the marks {sorted(kept)} are not free after their quarantine", hook="release_mark")

    def test_exhausted_marks_are_none(self, marking: StrategyDriver) -> None:
        """Without a free mark a new target is answered 0, and those that have one keep it; when marks were released and
        have rested, a target that asks gets one.
        """
        marking.means(MarkMeaning.TARGET)
        run = marking.run()
        old, new = [(0, 0), (1, 0)], [(0, 1), (1, 1)]
        had = run.allocate(run.batch(*old))
        run.marks.take(_EVERYTHING)
        answer = run.allocate(run.batch(*new, *old)).tolist()
        marking.expect(not any(answer[:2]), f"without free marks new targets are given {answer[:2]}")
        marking.expect(answer[2:] == had.tolist(), f"targets had {had.tolist()} and have {answer[2:]}")
        run.release(had)
        run.now += _QUARANTINE
        answer = run.allocate(run.batch(*old)).tolist()
        marking.expect(all(answer), f"with {len(had)} marks free again, {len(old)} targets are given {answer}")

    # Marks that mean flows

    def test_only_leased_marks_are_confirmed(self, marking: StrategyDriver) -> None:
        """A flow keeps the mark that XDP took for it, if that is on lease, once; every other mark is answered 0."""
        marking.means(MarkMeaning.FLOW)
        run = marking.run()
        leased, live = run.lease(3), run.marks.take(1)
        free = int(run.marks.size - 1)
        asked = [int(leased[1]), 0, int(live[0]), free, 1 << 31, int(leased[1]), int(leased[2])]
        answer = run.allocate(run.batch(*[(0, 0)] * len(asked), marks=asked)).tolist()
        right = [asked[0], 0, 0, 0, 0, 0, asked[6]]
        wrong = f"of the marks {asked}, of which {leased.tolist()} are leased, it gives {answer}, not {right}"
        marking.expect(answer == right, wrong)
        left = MarkState(int(run.marks.state[leased[0]]))
        marking.expect(left is MarkState.LEASED, f"a leased mark that no flow carries became {left.name.lower()}")

    def test_released_marks_rest(self, marking: StrategyDriver) -> None:
        """Marks that flows gave back rest for their quarantine, and can be leased again afterwards."""
        marking.means(MarkMeaning.FLOW)
        run = marking.run()
        marks = run.allocate(run.targets_to_mark((0, 0), (1, 1)))
        run.release(marks)
        early = set(run.lease(_EVERYTHING).tolist()) & set(marks.tolist())
        marking.expect(not early, f"the marks {sorted(early)} are free within their quarantine", hook="release_mark")
        run.now += _QUARANTINE
        kept = set(marks.tolist()) - set(run.lease(_EVERYTHING).tolist())
        marking.expect(not kept, f"the marks {sorted(kept)} are not free after their quarantine", hook="release_mark")

    # Life and speed

    def test_teardown_forgets(self, marking: StrategyDriver) -> None:
        """After teardown it is in charge of nothing, teardown may be called twice, and the next setup begins anew."""
        run = marking.run()
        run.allocate(run.targets_to_mark((0, 0)))
        for _ in range(2):
            marking.call("teardown")
        answer = run.ask(run.batch((0, 0)))
        marking.expect(answer is None, f"after teardown it answers {answer!r}", hook="allocate_mark")
        marking.call("setup", context=run.context)
        run.allocate(run.targets_to_mark((0, 1)))

    def test_throughput(self, marking: StrategyDriver) -> None:
        """Batches are answered whole, whatever their size; the summary tells how fast, and nothing is asked of it."""
        run = marking.run(width=16)
        everything = run.everything()
        count = 50_000
        flows = FlowBatch(run.batch(*everything).rows[np.arange(count) % len(everything)])
        if marking.info.meaning is MarkMeaning.FLOW:
            flows.rows["mark"] = run.lease(count)
        began = time.perf_counter()
        marks = run.allocate(flows)
        seconds = time.perf_counter() - began
        marking.expect(marks.all(), f"{int((marks == 0).sum())} of {count} flows got no mark", hook="allocate_mark")
        marking.report_throughput(marked=count / max(seconds, 1e-9))


def _expect_distinct(marking: StrategyDriver, known: Mapping[tuple[int, int], int]) -> None:
    """No two targets, (function, target), have one mark."""
    __tracebackhide__ = True
    owners: dict[int, tuple[int, int]] = {}
    for target, mark in known.items():
        marking.expect(mark, f"target {target} got no mark of an allocator that is full of them")
        other = owners.setdefault(mark, target)
        marking.expect(other == target, f"targets {other} and {target}, (function, target), share the mark {mark}")
