# SPDX-License-Identifier: Apache-2.0
"""One run of `nfcore bench`: part by part, each in processes of its own; what cannot run says why."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from ..errors import HostError, NfcoreError
from ..hooks import discovery
from ..hooks.manager import PluginManager
from .control import measure_engine, measure_first_marks, measure_starts
from .cores import measure_cores
from .datapath import Series, measure, rows_of
from .live import measure_live
from .machine import describe_machine
from .processes import Say, in_process, stop_once
from .profile import kernel_profile
from .results import Figure, Results, Skipped, Target
from .rules import measure_rules
from .scraping import measure_collecting
from .sizes import Sizes
from .traffic import Family
from .workload import BenchRequest, Workload

PROFILED = 1_000_000
"""Packets before a profile; five times as many are in it."""
NOTES = (
    "the packet is hot in the cache, and neither driver nor DMA is in the figures: docs/benchmark.md",
    "the kernel truncates durations to whole nanoseconds, gross and floor alike",
)


def workloads() -> dict[str, Workload]:
    """Give what there is to measure, by the name of the network function's plugin."""
    plugins = PluginManager()
    for name in discovery.installed():
        plugins.load(name)
    return {plugin: workload for plugin, workload in plugins.call_each("benchmark") if workload is not None}


def choose_workload(nf: str | None) -> tuple[str, Workload]:
    """Give the network function named, or the first that there is. HostError names those that there are."""
    found = workloads()
    name = nf or next(iter(found), "")
    if name not in found:
        known = ", ".join(found) or "none"
        raise HostError(f"no network function {name!r} is installed that can be measured; there are: {known}")
    return name, found[name]


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does; neither twice."""
    before = {number: signal.signal(number, stop_once) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Bench:
    """Measures one network function. `say` is told what is going on, after the name of the step."""

    def __init__(self, nf: str, workload: Workload, sizes: Sizes, say: Callable[[str, str], None]) -> None:
        self._nf = nf
        self._workload = workload
        self._sizes = sizes
        self._say = say
        self.results = Results(describe_machine(), sizes.name, nf, notes=[*NOTES, *workload.notes])

    def steps(self, parts: Sequence[str]) -> list[tuple[str, Callable[[Say], None]]]:
        """Give the steps of some parts with their names, in order."""
        control = [
            ("engine", self._control(measure_engine)),
            ("figures of its own", self._own_figures),
            ("first marks", self._control(measure_first_marks)),
            ("starts", self._control(measure_starts)),
            ("scrapes", self._control(measure_collecting)),
        ]
        steps: dict[str, list[tuple[str, Callable[[Say], None]]]] = {
            "datapath": [
                (f"process {number + 1}", partial(self._datapath, number)) for number in range(self._sizes.processes)
            ],
            "cores": [(f"IPv{family}", partial(self._cores, family)) for family in self._sizes.families],
            "live": [("", self._live)],
            "control": control,
            "rules": [("", self._rules)],
        }
        return [(f"{part}, {name}".removesuffix(", "), step) for part in parts for name, step in steps[part]]

    def run(self, parts: Sequence[str], next_step: Callable[[str, int, int], None]) -> Results:
        """Run the parts. `next_step` gets a step's name, its number from 0, and how many there are."""
        begin = time.monotonic()
        self._series: list[list[Series]] = []
        self._workload.prepare(self._sizes.families)
        steps = self.steps(parts)
        for number, (name, step) in enumerate(steps):
            next_step(name, number, len(steps))
            began = time.monotonic()
            try:
                step(partial(self._say, name))
            except NfcoreError as error:
                self.results.skipped.append(Skipped(name, str(error)))
            self.results.step_seconds[name] = round(time.monotonic() - began, 1)
        self.results.datapath = rows_of(series for each in self._series for series in each)
        self.results.bars[:0] = self._explained(self._workload.judge(self.results.datapath), next_step)
        self.results.gains += self._workload.gains(self.results.datapath, self.results.cores)
        self.results.seconds = round(time.monotonic() - begin, 1)
        return self.results

    def _explained(self, bars: Sequence[Target], next_step: Callable[[str, int, int], None]) -> list[Target]:
        """Let a profiler look at rows that are not as they should be."""
        missed = [bar for bar in bars if not bar.met and bar.about][: self._sizes.profiles]
        profiles: dict[str, str] = {}
        for number, bar in enumerate(missed):
            next_step(f"profile, {bar.name}", number, len(missed))
            try:
                profiles[bar.name] = in_process(partial(profile_row, self._workload, self._sizes, bar))
            except NfcoreError as error:
                self.results.skipped.append(Skipped(f"profile, {bar.name}", str(error)))
        return [
            replace(bar, profile=f"{bar.profile}\n\n{profiles[bar.name]}") if profiles.get(bar.name) else bar
            for bar in bars
        ]

    def _datapath(self, number: int, say: Say) -> None:
        self._series.append(in_process(partial(measure_datapath, self._workload, self._sizes), say))

    def _cores(self, family: Family, say: Say) -> None:
        if len(os.sched_getaffinity(0)) < 2:
            raise HostError("this process may run on one CPU alone")
        for flows in self._workload.worlds(self._sizes.core_flows):
            task = partial(measure_cores, self._workload, self._sizes, family, flows)
            self.results.cores += in_process(task, say)

    def _live(self, say: Say) -> None:
        self.results.live = in_process(partial(measure_live, self._nf, self._workload, self._sizes), say)

    def _control(
        self, function: Callable[[str, Workload, Sizes, Say], tuple[list[Figure], list[Target]]]
    ) -> Callable[[Say], None]:
        def step(say: Say) -> None:
            figures, bars = in_process(partial(function, self._nf, self._workload, self._sizes), say)
            self.results.control += figures
            self.results.bars += bars

        return step

    def _own_figures(self, say: Say) -> None:
        for figure, bar in in_process(lambda _: list(self._workload.figures(self._sizes)), say):
            self.results.control.append(figure)
            self.results.bars += [bar] if bar else []

    def _rules(self, say: Say) -> None:
        rates, skipped = in_process(partial(measure_rules, self._nf, self._workload, self._sizes), say)
        self.results.rules += rates
        self.results.skipped += skipped


def measure_datapath(workload: Workload, sizes: Sizes, say: Say) -> list[Series]:
    """Measure one family after the other in this process, on one CPU."""
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)
    os.sched_setaffinity(0, {cpu})
    try:
        measured: list[Series] = []
        for family in sizes.families:
            fast_flows = sizes.fast_flows
            for flows in workload.worlds(sizes.flows):
                with workload.subjects(BenchRequest(family, (cpu,), flows, fast_flows)) as subjects:
                    measured += measure(subjects, sizes.rounds, say)
                # They need no table of flows: once is enough.
                fast_flows = ()
        return measured
    finally:
        os.sched_setaffinity(0, allowed)


def profile_row(workload: Workload, sizes: Sizes, bar: Target, say: Say) -> str:
    """Let perf look at the row of the datapath that a bar is about, on one CPU. In a process of its own."""
    assert bar.about is not None  # the caller chose those
    row, _, flows = bar.about
    family: Family = 6 if bar.about[1] == 6 else 4
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    world = next(each for each in workload.worlds(sizes.fast_flows) if flows in each)
    with workload.subjects(BenchRequest(family, (cpu,), world, world)) as subjects:
        (subject,) = [each for each in subjects if each.row == row]
        source = subject.source
        source.aim(subject.program)
        source.among(flows)
        source.run(PROFILED)
        return kernel_profile(lambda: source.run(5 * PROFILED))
