# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of marking strategies: subclass it and define the fixture `strategy`.

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
from .plugin_context import context_for
from .promises import PluginDriver
from .samples import sample_flow

_DEVICE = Device("eth1", 1, ("some_nic",))
_OTHER_STRATEGY = "another-strategy"
_ALL_MARKS = 1 << 24
"""To take: more marks than there are."""
_QUARANTINE = 5.0
"""Seconds."""
_EXAMPLES = 25
"""That hypothesis tries for one promise."""


def _two_functions() -> Sequence[NetworkFunction]:
    return SampleFunction("one"), SampleFunction("two")


@dataclass
class StrategyUnderTest:
    """What the fixture `strategy` returns: how to make the plugin, and the configuration for its setup."""

    make: Callable[[], object]
    """The plugin's class."""
    strategy: str
    """Its name in `[marking] strategy`."""
    name: str
    """The plugin's name, for messages."""
    table: Mapping[str, Any] = field(default_factory=dict)
    """The plugin's own table in the TOML."""
    functions: Callable[[], Sequence[NetworkFunction]] = _two_functions
    """Makes the network functions whose targets get marks: at least two, each with at least four targets."""
    width: int = 10
    """Bits of a mark; they must suffice for all targets of these functions."""


class StrategyRun:
    """The plugin in one process: set up, called, torn down. The clock advances only when a test sets `now`."""

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
        """A flow to each target, given as (index of the function, index of its target)."""
        flows = FlowBatch.empty(len(targets))
        for index, (function, target) in enumerate(targets):
            row, flow = flows.rows[index], sample_flow(index + 1)
            row["key"], row["family"], row["ifindex"], row["packets"] = flow.to_key(), 4, _DEVICE.ifindex, 8
            row["nf"], row["target"] = function + 1, self.rows[function][target]["target"]
        flows.rows["mark"][: len(marks)] = marks
        return flows

    def all_targets(self) -> list[tuple[int, int]]:
        """All targets of all functions, in order."""
        return [(function, target) for function, rows in enumerate(self.rows) for target in range(len(rows))]

    def call_allocate(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        """Call `allocate_mark`; None when the strategy is not in charge."""
        __tracebackhide__ = True
        before = batch.rows.tobytes()
        marks = self._driver.call("allocate_mark", "every-flow-has-an-answer", batch=batch)
        if marks is None:
            return None
        self._check_marks(marks)
        unchanged = batch.rows.tobytes() == before
        self._driver.expect(unchanged, "the hook has written to the batch", promise="every-flow-has-an-answer")
        return marks  # type: ignore[no-any-return]

    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        """Call `allocate_mark` of the strategy that is in charge; return the marks."""
        __tracebackhide__ = True
        marks = self.call_allocate(batch)
        if marks is None:
            self._driver.broken(
                "the configuration chooses it, and it returned None", promise="every-flow-has-an-answer"
            )
        return marks

    def _check_marks(self, marks: NDArray[np.uint32]) -> None:
        __tracebackhide__ = True
        driver = self._driver
        wide = marks[marks >= self.marks.size]
        wrong = f"returned the mark {int(wide.max(initial=0))}, but marks have {self.marks.width} bits"
        driver.expect(not len(wide), wrong, promise="marks-fit-the-width")
        allocated = marks[marks != 0]
        not_live = allocated[self.marks.state[allocated] != MarkState.LIVE]
        if len(not_live):
            state = MarkState(int(self.marks.state[not_live[0]])).name.lower()
            driver.broken(f"returned the mark {int(not_live[0])}, which is {state}", promise="marks-are-live")

    def release(self, marks: NDArray[np.uint32]) -> None:
        """Call `release_mark`, as the engine does when no rule and no entry uses the marks."""
        __tracebackhide__ = True
        self._driver.call("release_mark", marks=marks)

    def lease(self, count: int) -> NDArray[np.uint32]:
        """Take marks as XDP takes them from the pool of its CPU."""
        return self.marks.take(count, MarkState.LEASED)

    def report_flows(self, *targets: tuple[int, int]) -> FlowBatch:
        """Flows to some targets as XDP reports them: if marks mean flows, each with a leased mark."""
        leased = self._driver.info.meaning is MarkMeaning.FLOW
        return self.batch(*targets, marks=self.lease(len(targets)) if leased else ())


class StrategyDriver(PluginDriver):
    """One strategy in one test."""

    def __init__(self, node: pytest.Item, under_test: StrategyUnderTest, teardowns: ExitStack) -> None:
        super().__init__(node, under_test.name, StrategyConformance)
        self.under_test = under_test
        # Not pytest's tmp_path, which may be too long for the address of a socket.
        self._folder = Path(teardowns.enter_context(TemporaryDirectory(prefix="nfcore-")))
        self._teardowns = teardowns
        self.register(under_test.make())

    @cached_property
    def info(self) -> StrategyInfo:
        """The entry of `marking_strategies` for the strategy under test."""
        __tracebackhide__ = True
        offered: list[StrategyInfo] = self.call("marking_strategies", "it-offers-itself")
        found = [info for info in offered if info.name == self.under_test.strategy]
        if len(found) != 1:
            names = ", ".join(repr(info.name) for info in offered) or "nothing"
            wrong = f"offers {names}, not {self.under_test.strategy!r} once"
            self.broken(wrong, promise="it-offers-itself", hook="marking_strategies")
        return found[0]

    def run(self, chosen: str = "", width: int = 0) -> StrategyRun:
        """Set up a new plugin object, as a new process does."""
        __tracebackhide__ = True
        assert self.info  # raises BrokenPromise if the plugin does not offer the strategy
        run = StrategyRun(self, chosen or self.under_test.strategy, width or self.under_test.width, self._folder)
        self._teardowns.callback(self.plugins.call, self.name, "teardown")
        return run

    def means(self, meaning: MarkMeaning) -> None:
        """End the test unless marks mean this."""
        __tracebackhide__ = True
        if self.info.meaning is not meaning:
            self.not_applicable(f"its marks mean a {self.info.meaning.value}")


class StrategyConformance:
    """Tests of one strategy. Each test is a promise: the docstring states it."""

    @pytest.fixture
    def strategy(self) -> StrategyUnderTest:
        """The strategy under test, defined by the author."""
        raise pytest.UsageError(f"{type(self).__name__} needs a fixture `strategy` that returns a StrategyUnderTest")

    @pytest.fixture
    def marking(self, request: pytest.FixtureRequest, strategy: StrategyUnderTest) -> Iterator[StrategyDriver]:
        """Calls the plugin's hooks as the engine does."""
        with ExitStack() as teardowns:
            yield StrategyDriver(request.node, strategy, teardowns)

    def test_hooks_have_our_signatures(self, marking: StrategyDriver) -> None:
        """A strategy implements marking_strategies, allocate_mark and release_mark, as in nfcore.api.hookspecs."""
        wanted = ("marking_strategies", "allocate_mark", "release_mark")
        missing = [hook for hook in wanted if not marking.plugins.implementing(hook)]
        marking.expect(not missing, f"{', '.join(missing)} is missing; has each @hookimpl above it?")

    def test_hooks_do_not_raise(self, marking: StrategyDriver) -> None:
        """No hook raises, whatever is in a batch: marks out of range, unknown targets, no flows at all."""
        run = marking.run()
        strange = run.batch(*[(0, 0)] * 5, marks=[0, 1, run.marks.size, 1 << 31, 0xFFFF_FFFF])
        strange.rows["target"] = [0, 1, 1 << 32, (1 << 64) - 1, 5]
        for batch in (strange, run.batch(), strange):
            run.allocate(batch)
        run.release(np.zeros(0, dtype=np.uint32))

    def test_it_offers_itself(self, marking: StrategyDriver) -> None:
        """`marking_strategies` has an entry for it, with the meaning of its marks and a line of help."""
        info = marking.info
        marking.expect(
            isinstance(info.meaning, MarkMeaning), f"its meaning is {info.meaning!r}", hook="marking_strategies"
        )
        marking.expect(bool(info.help.strip()), "its help is empty", hook="marking_strategies")

    def test_another_strategy_is_left_in_charge(self, marking: StrategyDriver) -> None:
        """It returns None, and takes no mark, when the configuration chooses another strategy or none."""
        run = marking.run(_OTHER_STRATEGY)
        marks = run.call_allocate(run.batch((0, 0), (1, 1)))
        marking.expect(marks is None, f"returned {marks!r}, but another strategy is chosen", hook="allocate_mark")
        live = run.marks.count(MarkState.LIVE)
        marking.expect(live == 0, f"took {live} marks, but another strategy is chosen", hook="setup")

    def test_every_flow_has_an_answer(self, marking: StrategyDriver) -> None:
        """The result is an array of integers, a mark per flow, 0 for none; the hook does not write to the batch."""
        run = marking.run()
        for targets in ([], [(0, 0)], [(0, 0), (1, 0), (0, 0), (0, 3)]):
            run.allocate(run.report_flows(*targets))

    def test_marks_fit_the_width(self, marking: StrategyDriver) -> None:
        """Marks are less than 2 to the power of `[marking] width`."""
        run = marking.run(width=marking.under_test.width)
        marks = run.allocate(run.report_flows(*run.all_targets()))
        marking.expect(marks.any(), f"none of {len(marks)} targets got a mark", hook="allocate_mark")

    def test_marks_are_live(self, marking: StrategyDriver) -> None:
        """Each mark that it returns comes from Context.marks and is LIVE there until it is released."""
        run = marking.run()
        marks = run.allocate(run.report_flows(*run.all_targets()[:8]))
        live = run.marks.count(MarkState.LIVE)
        allocated = len(np.unique(marks[marks != 0]))
        marking.expect(allocated > 0, "no flow got a mark, although marks are free", hook="allocate_mark")
        wrong = f"it returned {allocated} marks, of which {live} are live"
        marking.expect(live >= allocated, wrong, hook="allocate_mark")

    # Marks that mean targets

    def test_a_target_has_one_mark(self, marking: StrategyDriver) -> None:
        """All flows to a target have the same mark, in every batch, until it is released; no two targets share one."""
        marking.means(MarkMeaning.TARGET)
        targets_of_batch = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=12)

        @settings(deadline=None, database=None, max_examples=_EXAMPLES)
        @given(st.lists(targets_of_batch, max_size=5))
        def check(batches: list[list[tuple[int, int]]]) -> None:
            __tracebackhide__ = True
            run = marking.run()
            known: dict[tuple[int, int], int] = {}
            for targets in batches:
                marks = run.allocate(run.batch(*targets)).tolist()
                for target, mark in zip(targets, marks, strict=True):
                    first = known.setdefault(target, mark)
                    marking.expect(first == mark, f"target {target} had the mark {first} and now has {mark}")
            _expect_distinct(marking, known)

        check()

    def test_functions_do_not_share_marks(self, marking: StrategyDriver) -> None:
        """Targets with the same number in two network functions are two targets, in one batch or in several."""
        marking.means(MarkMeaning.TARGET)
        for together in (True, False):
            run = marking.run()
            pairs = [(function, target) for target in range(4) for function in range(2)]
            batches = [pairs] if together else [[pair] for pair in pairs]
            marks = np.concatenate([run.allocate(run.batch(*targets)) for targets in batches])
            _expect_distinct(marking, dict(zip(pairs, marks.tolist(), strict=True)))

    def test_numbering_is_repeatable(self, marking: StrategyDriver) -> None:
        """The same targets in the same order get the same marks in every process: rules stay right over a restart."""
        marking.means(MarkMeaning.TARGET)
        numbered = []
        for _ in range(2):
            run = marking.run()
            all_targets = run.all_targets()
            half = len(all_targets) // 2
            parts = [all_targets[half:], all_targets[:half], all_targets[::-1]]
            numbered.append([run.allocate(run.batch(*part)).tolist() for part in parts])
        marking.expect(numbered[0] == numbered[1], f"first {numbered[0][0][:8]}…, then {numbered[1][0][:8]}…")

    def test_a_mark_rests_before_it_is_used_again(self, marking: StrategyDriver) -> None:
        """A released mark is not used again during its quarantine, and is free afterwards."""
        marking.means(MarkMeaning.TARGET)
        run = marking.run()
        first = [(0, 0), (0, 1), (1, 0)]
        released = run.allocate(run.batch(*first))
        run.release(released)
        live = released[run.marks.state[released] == MarkState.LIVE]
        wrong = f"{len(live)} of {len(released)} released marks are still live"
        marking.expect(not len(live), wrong, hook="release_mark")
        run.now += _QUARANTINE / 2
        again = set(run.allocate(run.batch(*run.all_targets())).tolist()) & set(released.tolist()) - {0}
        marking.expect(not again, f"the marks {sorted(again)} were used again during their quarantine")
        run.now += _QUARANTINE
        free = run.marks.take(_ALL_MARKS)
        kept = set(released.tolist()) - set(free.tolist())
        marking.expect(not kept, f"the marks {sorted(kept)} are not free after their quarantine", hook="release_mark")

    def test_exhausted_marks_are_none(self, marking: StrategyDriver) -> None:
        """Without a free mark a new target gets 0, and other targets keep their marks; when the quarantine of released
        marks is over, targets get marks again.
        """
        marking.means(MarkMeaning.TARGET)
        run = marking.run()
        old, new = [(0, 0), (1, 0)], [(0, 1), (1, 1)]
        had = run.allocate(run.batch(*old))
        run.marks.take(_ALL_MARKS)
        marks = run.allocate(run.batch(*new, *old)).tolist()
        marking.expect(not any(marks[:2]), f"without free marks new targets got {marks[:2]}")
        marking.expect(marks[2:] == had.tolist(), f"targets had {had.tolist()} and now have {marks[2:]}")
        run.release(had)
        run.now += _QUARANTINE
        marks = run.allocate(run.batch(*old)).tolist()
        marking.expect(all(marks), f"with {len(had)} marks free again, {len(old)} targets got {marks}")

    # Marks that mean flows

    def test_only_leased_marks_are_confirmed(self, marking: StrategyDriver) -> None:
        """A flow keeps the mark that XDP took for it if that mark is LEASED, and only once; any other mark gives 0."""
        marking.means(MarkMeaning.FLOW)
        run = marking.run()
        leased, live = run.lease(3), run.marks.take(1)
        free = int(run.marks.size - 1)
        reported = [int(leased[1]), 0, int(live[0]), free, 1 << 31, int(leased[1]), int(leased[2])]
        marks = run.allocate(run.batch(*[(0, 0)] * len(reported), marks=reported)).tolist()
        right = [reported[0], 0, 0, 0, 0, 0, reported[6]]
        wrong = f"reported were {reported}, of which {leased.tolist()} are leased; it returned {marks}, not {right}"
        marking.expect(marks == right, wrong)
        state = MarkState(int(run.marks.state[leased[0]]))
        marking.expect(state is MarkState.LEASED, f"a leased mark that no flow carries became {state.name.lower()}")

    def test_released_marks_rest(self, marking: StrategyDriver) -> None:
        """Released marks of flows are not leased again during their quarantine, and can be afterwards."""
        marking.means(MarkMeaning.FLOW)
        run = marking.run()
        marks = run.allocate(run.report_flows((0, 0), (1, 1)))
        run.release(marks)
        early = set(run.lease(_ALL_MARKS).tolist()) & set(marks.tolist())
        marking.expect(not early, f"the marks {sorted(early)} are free during their quarantine", hook="release_mark")
        run.now += _QUARANTINE
        kept = set(marks.tolist()) - set(run.lease(_ALL_MARKS).tolist())
        marking.expect(not kept, f"the marks {sorted(kept)} are not free after their quarantine", hook="release_mark")

    # Teardown and speed

    def test_teardown_forgets(self, marking: StrategyDriver) -> None:
        """After teardown it allocates nothing, teardown may be called twice, and the next setup works as the first."""
        run = marking.run()
        run.allocate(run.report_flows((0, 0)))
        for _ in range(2):
            marking.call("teardown")
        marks = run.call_allocate(run.batch((0, 0)))
        marking.expect(marks is None, f"returned {marks!r} after teardown", hook="allocate_mark")
        marking.call("setup", context=run.context)
        run.allocate(run.report_flows((0, 1)))

    def test_throughput(self, marking: StrategyDriver) -> None:
        """Batches are processed completely, whatever their size; the summary shows the rate, which is not judged."""
        run = marking.run(width=16)
        all_targets = run.all_targets()
        count = 50_000
        flows = FlowBatch(run.batch(*all_targets).rows[np.arange(count) % len(all_targets)])
        if marking.info.meaning is MarkMeaning.FLOW:
            flows.rows["mark"] = run.lease(count)
        began = time.perf_counter()
        marks = run.allocate(flows)
        seconds = time.perf_counter() - began
        marking.expect(marks.all(), f"{int((marks == 0).sum())} of {count} flows got no mark", hook="allocate_mark")
        marking.report_throughput(marked=count / max(seconds, 1e-9))


def _expect_distinct(marking: StrategyDriver, known: Mapping[tuple[int, int], int]) -> None:
    """Each target, (function, target), must have a mark of its own."""
    __tracebackhide__ = True
    owners: dict[int, tuple[int, int]] = {}
    for target, mark in known.items():
        marking.expect(mark, f"target {target} got no mark, although marks are free")
        other = owners.setdefault(mark, target)
        marking.expect(other == target, f"targets {other} and {target}, (function, target), share the mark {mark}")
