# SPDX-License-Identifier: Apache-2.0
"""The control plane: new flows through the engine, memory per flow, time to the first mark, start of the daemon."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..api.context import Context
from ..api.rules import Device
from ..config.loader import load_config
from ..daemon.bootstrap import make_context, make_engine, set_up
from ..devices.null_backend import NULL_BACKEND, NullBackend
from ..devices.worker import InlineWorker
from ..engine.engine import Engine
from ..engine.flow_state import FlowState
from ..errors import HostError
from ..hooks.manager import PluginManager
from .live import time_first_marks
from .packet_source import FlowSource
from .processes import ShowProgress
from .profile import profile
from .results import Figure, Target
from .sizes import Sizes
from .testbed import cold_cache, open_testbed
from .workload import Workload

NEW_FLOWS_TARGET = 300_000.0
"""New flows a second, at least."""
READY_TARGET = 5.0
"""Seconds until the daemon is ready, at most."""
NEW_FLOW_WINDOW = 1.05
"""Seconds after which the limit of new flows that XDP remembers (125,000 a second and CPU) starts again."""
VIPS, REALS = 64, 64
MAX_RULES = 1 << 20

ENGINE_CONFIG = """
[nf]
plugins = ["{nf}", "marking"]
[[interfaces]]
name = "bench"
chain = ["{nf}"]
offload = ["none"]
[marking]
strategy = "dest-id"
[offload]
min_packets = 1
inserts_per_second = 0
max_rules = {max_rules}
idle_timeout = "1h"
{nf_toml}
"""


@dataclass
class EngineSetup:
    """An engine with its network function, which is attached to nothing, and a backend that accepts every rule."""

    context: Context
    engine: Engine

    def drain(self) -> int:
        """Run the daemon's loop until no report is left; return how many there were."""
        reports = 0
        while polled := self.engine.poll():
            self.engine.tick()
            reports += polled
        return reports


@contextmanager
def open_engine(nf: str, nf_toml: str) -> Iterator[EngineSetup]:
    """Load the program and make an engine as the daemon does. Rules are installed in the calling thread."""
    with tempfile.TemporaryDirectory(prefix="nfcore-bench-") as folder:
        path = Path(folder, "engine.toml")
        path.write_text(ENGINE_CONFIG.format(nf=nf, nf_toml=nf_toml, max_rules=MAX_RULES), encoding="utf-8")
        plugins = PluginManager()
        config = load_config(path, plugins)
        plugins.register(NullBackend(), NULL_BACKEND)
        context = make_context(config, plugins, [Device("bench", 1, (NULL_BACKEND,))], tracing=True)
        with set_up(context, plugins):
            engine = make_engine(context, plugins, {1: InlineWorker()})
            engine.start()
            yield EngineSetup(context, engine)


def measure_engine(
    nf: str, workload: Workload, sizes: Sizes, show_progress: ShowProgress
) -> tuple[list[Figure], list[Target]]:
    """Fill the ring buffer and time how the engine empties it, burst by burst. Run it in a process of its own.

    It pins the process to one CPU. HostError when a flow is lost on the way.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with (
        open_engine(nf, workload.toml(VIPS, REALS)) as setup,
        FlowSource(workload.services(VIPS, 4), 4, in_turn=True) as source,
    ):
        source.send_to(workload.program(setup.context.nfs[0]))
        rates: list[float] = []
        seconds, first, profile_text = 0.0, 0, ""
        while first < sizes.new_flows:
            count = min(sizes.burst, sizes.new_flows - first)
            show_progress(f"{first:,} of {sizes.new_flows:,} flows")
            source.burst(count, first=first)
            begin = time.perf_counter()
            _drain_all(setup, count)
            elapsed = time.perf_counter() - begin
            rates.append(count / elapsed)
            seconds, first = seconds + elapsed, first + count
            time.sleep(max(0.0, NEW_FLOW_WINDOW - elapsed))
        table = setup.engine.table
        known, size = len(table), table.nbytes
        rate = first / seconds
        if rate < NEW_FLOWS_TARGET:
            source.burst(sizes.burst, first=first)
            profile_text = profile(lambda: _drain_all(setup, sizes.burst, check=False))
    return (
        [
            Figure("new flows through the engine", rate, "1/s", f"{first:,} flows, bursts of {sizes.burst:,}"),
            Figure("of the slowest burst", min(rates), "1/s"),
            Figure("of the fastest burst", max(rates), "1/s"),
            Figure("engine's memory of a flow", size / known, "B", f"table and index, {known:,} flows"),
        ],
        [Target("new flows through the engine", rate, NEW_FLOWS_TARGET, "1/s", at_least=True, profile=profile_text)],
    )


def _drain_all(setup: EngineSetup, count: int, *, check: bool = True) -> None:
    """Drain `count` reports. With `check`, HostError when not every flow was reported and got a rule."""
    before = setup.engine.table.count(FlowState.INSTALLED)
    reports = setup.drain()
    installed = setup.engine.table.count(FlowState.INSTALLED) - before
    if check and (reports, installed) != (count, count):
        raise HostError(
            f"of {count} new flows {reports} were reported through the ring buffer and {installed} got a rule"
        )


def measure_first_marks(
    nf: str, workload: Workload, sizes: Sizes, show_progress: ShowProgress
) -> tuple[list[Figure], list[Target]]:
    """Time flows from their first packet to their first marked one. Run it in a process of its own."""
    times = np.array(time_first_marks(nf, workload, sizes, show_progress)) * 1e3
    if not len(times):
        raise HostError("no flow got a mark while it was sending")
    note = f"{len(times)} of {sizes.first_marks} flows, one after the other, idle daemon, softnic"
    return [
        Figure(f"first packet to first marked one, p{percent}", round(float(time_ms), 3), "ms", note)
        for percent, time_ms in zip((50, 99), np.percentile(times, (50, 99)), strict=True)
    ], []


def measure_starts(
    nf: str, workload: Workload, sizes: Sizes, show_progress: ShowProgress
) -> tuple[list[Figure], list[Target]]:
    """Time the daemon from its start until it is ready. Run it in a process of its own."""
    vips, reals = sizes.start_config
    with open_testbed() as testbed:
        config = testbed.config(nf, workload.toml(1, 2))
        show_progress("daemon, nothing cached")
        with cold_cache(), testbed.daemon(config) as cold:
            pass
        show_progress("daemon, programs cached")
        warm = []
        for _ in range(3 if sizes.repeats > 1 else 1):
            with testbed.daemon(config) as seconds:
                warm.append(seconds)
        show_progress(f"daemon, {vips} × {reals}")
        large = testbed.config(nf, workload.toml(vips, reals))
        with testbed.daemon(large) as ready:
            pass
    name = f"ready with {vips} VIPs × {reals} reals"
    note = "from the process's start to its message ready"
    figures = [
        Figure("daemon's start, cold", round(cold, 3), "s", f"{note}, compiler included"),
        Figure("daemon's start, warm", round(statistics.median(warm), 3), "s", f"{note}, programs cached"),
        Figure(name, round(ready, 3), "s", note),
    ]
    profile_text = profile(lambda: _open_and_close(nf, workload.toml(vips, reals))) if ready > READY_TARGET else ""
    return figures, [Target(name, round(ready, 3), READY_TARGET, "s", profile=profile_text)]


def _open_and_close(nf: str, nf_toml: str) -> None:
    with open_engine(nf, nf_toml):
        pass
