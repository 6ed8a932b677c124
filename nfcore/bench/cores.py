# SPDX-License-Identifier: Apache-2.0
"""The same program on several cores at once: one pinned process per core, all with the same maps."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Sequence
from functools import partial
from multiprocessing.synchronize import Barrier

from .datapath import Subject
from .packet_source import FlowSource
from .processes import ShowProgress, at_once
from .results import CoreRow
from .sizes import Sizes
from .traffic import Family
from .workload import BenchRequest, Workload

STEPS = (1, 2, 4, 7, 12)
"""Numbers of cores: the talk's numbers of queues, and 4. Each core's connection table takes 200 MB at most."""
BARRIER_TIMEOUT = 60.0
"""Seconds that cores wait for each other."""


def core_counts(cpus: int) -> list[int]:
    """Return the numbers of cores to measure on a machine with `cpus` CPUs: :data:`STEPS`, and all CPUs, at most 12."""
    most = min(cpus, STEPS[-1])
    return sorted({*(count for count in STEPS if count <= most), most})


def measure_cores(
    workload: Workload, sizes: Sizes, family: Family, flows: tuple[int, ...], show_progress: ShowProgress
) -> list[CoreRow]:
    """Measure every subject that has `several_cores`, in one setup. Run it in a process of its own."""
    cpus = tuple(sorted(os.sched_getaffinity(0), reverse=True))[: STEPS[-1]]
    os.sched_setaffinity(0, {cpus[0]})
    rows: list[CoreRow] = []
    with workload.subjects(BenchRequest(family, cpus, flows, flows)) as subjects:
        chosen = [subject for subject in subjects if subject.several_cores]
        for count in core_counts(len(cpus)):
            show_progress(f"{count} of {len(cpus)} cores")
            barrier = multiprocessing.get_context("fork").Barrier(count)
            task = partial(_run_on, chosen, flows, sizes, barrier)
            rows += _rows(chosen, flows, family, at_once([partial(task, cpu) for cpu in cpus[:count]]))
    return rows


def _run_on(
    subjects: Sequence[Subject],
    flows: tuple[int, ...],
    sizes: Sizes,
    barrier: Barrier,
    cpu: int,
    show_progress: ShowProgress,
) -> list[list[int]]:
    """Time each subject with each number of flows on one core; return the nanoseconds per packet of each round."""
    os.sched_setaffinity(0, {cpu})
    times: list[list[int]] = []
    for subject in subjects:
        assert isinstance(subject.source, FlowSource)  # a source of one frame is never run on several cores
        with subject.source.twin() as source:
            source.send_to(subject.program)
            for number in flows:
                source.set_flow_count(number)
                source.run(sizes.core_packets // 4)
                rounds = []
                for _ in range(sizes.core_rounds):
                    # With a timeout: when one process died, the barrier breaks and ends the others.
                    barrier.wait(BARRIER_TIMEOUT)
                    rounds.append(source.run(sizes.core_packets).duration_ns)
                times.append(rounds)
    return times


def _rows(
    subjects: Sequence[Subject], flows: tuple[int, ...], family: Family, times: Sequence[Sequence[Sequence[int]]]
) -> list[CoreRow]:
    """Summarise `times`: by core, then by subject and number of flows, then by round."""
    keys = [(subject.row, number) for subject in subjects for number in flows]
    rows = []
    for place, (row, number) in enumerate(keys):
        medians = [statistics.median(core[place]) for core in times]
        mpps = sum(1e3 / max(ns, 1) for ns in medians)
        rows.append(CoreRow(row, family, number, len(times), statistics.median(medians), round(mpps, 3)))
    return rows
