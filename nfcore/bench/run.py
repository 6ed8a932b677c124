# SPDX-License-Identifier: Apache-2.0
"""One run of `nfcore bench`: part after part, each in child processes. A part that cannot run gives the reason."""

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
from .control_plane import measure_engine, measure_first_marks, measure_starts
from .cores import measure_cores
from .datapath import Series, measure, rows_of
from .live import measure_live
from .machine import describe_machine
from .processes import STOP_SIGNALS, ShowProgress, in_process, stop_once
from .profile import kernel_profile
from .results import Figure, Results, Skipped, Target
from .rules import measure_rules
from .scraping import measure_scraping
from .sizes import FEATURE_FLOWS, Sizes
from .traffic import Family
from .workload import BenchRequest, Workload

WARM_UP_PACKETS = 1_000_000
"""Packets before a profile, which has five times as many."""
NOTES = (
    "the packet is hot in the cache, and the times include neither driver nor DMA: docs/benchmark.md",
    "the kernel truncates durations to whole nanoseconds, gross and floor alike",
)


def workloads() -> dict[str, Workload]:
    """Return what can be measured, by the name of the network function's plugin."""
    plugins = PluginManager()
    for name in discovery.installed():
        plugins.load(name)
    return {plugin: workload for plugin, workload in plugins.call_each("benchmark") if workload is not None}


def choose_workload(nf: str | None) -> tuple[str, Workload]:
    """Return the network function `nf`, or the first one installed of which everything can be measured.

    HostError lists those that can be measured.
    """
    found = workloads()
    name = nf or min(found, key=lambda name: not found[name].reports_flows, default="")
    if name not in found:
        known = ", ".join(found) or "none"
        raise HostError(f"no network function {name!r} is installed that can be measured; installed are: {known}")
    return name, found[name]


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does. A second signal does not interrupt the clean-up."""
    before = {number: signal.signal(number, stop_once) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Bench:
    """Measures one network function. `show_progress` gets the name of the step and a message about its progress."""

    def __init__(self, nf: str, workload: Workload, sizes: Sizes, show_progress: Callable[[str, str], None]) -> None:
        self._nf = nf
        self._workload = workload
        self._sizes = sizes
        self._show_progress = show_progress
        self._behind = workloads().get(workload.chained_with) if workload.chained_with else None
        self.results = Results(describe_machine(), sizes.name, nf, notes=[*NOTES, *workload.notes])

    def steps(self, parts: Sequence[str]) -> list[tuple[str, Callable[[ShowProgress], None]]]:
        """Return the steps of the given parts with their names, in order."""
        own: tuple[str, Callable[[ShowProgress], None]] = ("results of its own", self._plugin_results)
        control = [
            ("engine", self._control(measure_engine)),
            own,
            ("first marks", self._control(measure_first_marks)),
            ("starts", self._control(measure_starts)),
            ("scrapes", self._control(measure_scraping)),
        ]
        steps: dict[str, list[tuple[str, Callable[[ShowProgress], None]]]] = {
            "datapath": [(f"process {number + 1}", self._datapath) for number in range(self._sizes.processes)],
            "cores": [(f"IPv{family}", partial(self._cores, family)) for family in self._sizes.families],
            "live": [("", self._live)],
            "control": control,
            "rules": [("", self._rules)],
            "features": [(f"process {number + 1}", self._features) for number in range(self._sizes.processes)],
        }
        if self._workload.feature_subjects is None:
            steps["features"] = []
        if not self._workload.reports_flows:
            # Without reported flows there is nothing to count in the others.
            steps |= {"live": [], "control": [own], "rules": []}
        return [(f"{part}, {name}".removesuffix(", "), step) for part in parts for name, step in steps[part]]

    def run(self, parts: Sequence[str], next_step: Callable[[str, int, int], None]) -> Results:
        """Run the parts. `next_step` gets the name of a step, its number from 0, and the number of steps."""
        begin = time.monotonic()
        self._series: list[Series] = []
        for each in (self._workload, self._behind):
            if each is not None:
                each.prepare(self._sizes.families)
        steps = self.steps(parts)
        for number, (name, step) in enumerate(steps):
            next_step(name, number, len(steps))
            step_begin = time.monotonic()
            try:
                step(partial(self._show_progress, name))
            except NfcoreError as error:
                self.results.skipped.append(Skipped(name, str(error)))
            self.results.step_seconds[name] = round(time.monotonic() - step_begin, 1)
        self.results.datapath = rows_of(self._series)
        self.results.targets[:0] = self._add_profiles(self._workload.judge(self.results.datapath), next_step)
        self.results.gains += self._workload.gains(self.results.datapath, self.results.cores)
        self.results.seconds = round(time.monotonic() - begin, 1)
        return self.results

    def _add_profiles(self, targets: Sequence[Target], next_step: Callable[[str, int, int], None]) -> list[Target]:
        """Profile the rows of targets that are not met, and add the profiles to the targets."""
        missed = [target for target in targets if not target.met and target.about][: self._sizes.profiles]
        profiles: dict[str, str] = {}
        for number, target in enumerate(missed):
            next_step(f"profile, {target.name}", number, len(missed))
            try:
                profiles[target.name] = in_process(partial(profile_row, self._workload, self._sizes, target))
            except NfcoreError as error:
                self.results.skipped.append(Skipped(f"profile, {target.name}", str(error)))
        return [
            replace(target, profile=f"{target.profile}\n\n{text}") if (text := profiles.get(target.name)) else target
            for target in targets
        ]

    def _datapath(self, show_progress: ShowProgress) -> None:
        self._series += in_process(partial(measure_datapath, self._workload, self._sizes, self._behind), show_progress)

    def _features(self, show_progress: ShowProgress) -> None:
        self._series += in_process(partial(measure_features, self._workload, self._sizes), show_progress)

    def _cores(self, family: Family, show_progress: ShowProgress) -> None:
        if len(os.sched_getaffinity(0)) < 2:
            raise HostError("this process may run on one CPU only")
        for flows in self._workload.setups(self._sizes.core_flows):
            task = partial(measure_cores, self._workload, self._sizes, family, flows)
            self.results.cores += in_process(task, show_progress)

    def _live(self, show_progress: ShowProgress) -> None:
        self.results.live = in_process(partial(measure_live, self._nf, self._workload, self._sizes), show_progress)

    def _control(
        self, function: Callable[[str, Workload, Sizes, ShowProgress], tuple[list[Figure], list[Target]]]
    ) -> Callable[[ShowProgress], None]:
        def step(show_progress: ShowProgress) -> None:
            figures, targets = in_process(partial(function, self._nf, self._workload, self._sizes), show_progress)
            self.results.control += figures
            self.results.targets += targets

        return step

    def _plugin_results(self, show_progress: ShowProgress) -> None:
        for figure, target in in_process(lambda _: list(self._workload.own_results(self._sizes)), show_progress):
            self.results.control.append(figure)
            self.results.targets += [target] if target else []

    def _rules(self, show_progress: ShowProgress) -> None:
        rates, skipped = in_process(partial(measure_rules, self._nf, self._workload, self._sizes), show_progress)
        self.results.rules += rates
        self.results.skipped += skipped


def measure_datapath(
    workload: Workload, sizes: Sizes, behind: Workload | None, show_progress: ShowProgress
) -> list[Series]:
    """Measure one family after the other in this process, pinned to one CPU."""
    with _one_cpu() as cpu:
        measured: list[Series] = []
        for family in sizes.families:
            fast_flows = sizes.fast_flows
            for flows in workload.setups(sizes.flows):
                with workload.subjects(BenchRequest(family, (cpu,), flows, fast_flows, behind)) as subjects:
                    measured += measure(subjects, sizes.rounds, show_progress)
                # These programs need no table of flows, so one setup is enough.
                fast_flows = ()
        return measured


def measure_features(workload: Workload, sizes: Sizes, show_progress: ShowProgress) -> list[Series]:
    """Measure what optional features cost, one family after the other in this process, pinned to one CPU."""
    assert workload.feature_subjects is not None  # without, there is no such step
    flows = tuple(number for number in sizes.flows if number <= FEATURE_FLOWS)
    measured: list[Series] = []
    with _one_cpu() as cpu:
        for family in sizes.families:
            with workload.feature_subjects(BenchRequest(family, (cpu,), flows, flows)) as subjects:
                measured += measure(subjects, sizes.rounds, show_progress)
    return measured


@contextmanager
def _one_cpu() -> Iterator[int]:
    """Keep this process on one CPU for a block."""
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, allowed)


def profile_row(workload: Workload, sizes: Sizes, target: Target, show_progress: ShowProgress) -> str:
    """Profile the datapath's row of a target with perf, on one CPU. Run it in a process of its own."""
    assert target.about is not None  # the caller chose such targets
    row, _, flows = target.about
    family: Family = 6 if target.about[1] == 6 else 4
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    setup = next(setup for setup in workload.setups(sizes.fast_flows) if flows in setup)
    with workload.subjects(BenchRequest(family, (cpu,), setup, setup)) as subjects:
        (subject,) = [subject for subject in subjects if subject.row == row]
        source = subject.source
        source.send_to(subject.program)
        source.set_flow_count(flows)
        source.run(WARM_UP_PACKETS)
        return kernel_profile(lambda: source.run(5 * WARM_UP_PACKETS))
