# SPDX-License-Identifier: Apache-2.0
"""The same program on several cores at once: one pinned test run each, over the same maps."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.synchronize import Barrier

from .datapath import Subject
from .packet_source import FlowSource
from .processes import Say, at_once
from .results import CoreRow
from .sizes import Sizes
from .traffic import Family
from .workload import BenchRequest, Workload

STEPS = (1, 2, 4, 7, 12)
"""Numbers of cores. Not more: each has a connection table of its own, which a million flows make 200 MB large."""
PATIENCE = 60.0
"""Seconds that cores wait for each other."""


def core_counts(cpus: int) -> list[int]:
    """Give the numbers of cores to measure: those of the talk's queues, four, and as many as there are."""
    most = min(cpus, STEPS[-1])
    return sorted({*(count for count in STEPS if count <= most), most})


def measure_cores(workload: Workload, sizes: Sizes, family: Family, flows: tuple[int, ...], say: Say) -> list[CoreRow]:
    """Measure every subject that says that its packets may be spread, in one world. In a process of its own."""
    cpus = tuple(sorted(os.sched_getaffinity(0), reverse=True))[: STEPS[-1]]
    os.sched_setaffinity(0, {cpus[0]})
    rows: list[CoreRow] = []
    with workload.subjects(BenchRequest(family, cpus, flows, flows)) as subjects:
        spread = [each for each in subjects if each.spread]
        for count in core_counts(len(cpus)):
            say(f"{count} of {len(cpus)} cores")
            barrier = multiprocessing.get_context("fork").Barrier(count)
            task = partial(_run_on, spread, flows, sizes, barrier)
            rows += _rows(spread, flows, family, at_once([partial(task, cpu) for cpu in cpus[:count]]))
    return rows


def _run_on(
    subjects: Sequence[Subject],
    flows: tuple[int, ...],
    sizes: Sizes,
    barrier: Barrier,
    cpu: int,
    say: Callable[[str], None],
) -> list[list[int]]:
    """Time each subject with each number of flows on one core; nanoseconds per packet of each round."""
    os.sched_setaffinity(0, {cpu})
    taken: list[list[int]] = []
    for subject in subjects:
        assert isinstance(subject.source, FlowSource)  # a source of one frame is never spread
        with ExitStack() as leaving:
            source = leaving.enter_context(subject.source.twin())
            source.aim(subject.program)
            for number in flows:
                source.among(number)
                # A core that died must not be waited for: the barrier breaks, which ends the others.
                source.run(sizes.core_packets // 4)
                rounds = []
                for _ in range(sizes.core_rounds):
                    barrier.wait(PATIENCE)
                    rounds.append(source.run(sizes.core_packets).duration_ns)
                taken.append(rounds)
    return taken


def _rows(
    subjects: Sequence[Subject], flows: tuple[int, ...], family: Family, taken: Sequence[Sequence[Sequence[int]]]
) -> list[CoreRow]:
    places = [(subject.row, number) for subject in subjects for number in flows]
    rows = []
    for place, (row, number) in enumerate(places):
        of_cores = [statistics.median(core[place]) for core in taken]
        mpps = sum(1e3 / max(ns, 1) for ns in of_cores)
        rows.append(CoreRow(row, family, number, len(taken), statistics.median(of_cores), round(mpps, 3)))
    return rows
