# SPDX-License-Identifier: Apache-2.0
"""The control plane: new flows through the engine, memory of a flow, starts of the daemon, time to the first mark."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from .processes import Say
from .profile import profile
from .results import Figure, Target
from .sizes import Sizes
from .testbed import cold_cache, open_site
from .workload import Workload

EVENTS_WANTED = 300_000.0
READY_WANTED = 5.0
WINDOW = 1.05
"""Seconds after which the datapath remembers new flows again."""
VIPS, REALS = 64, 64
MOST_RULES = 1 << 20

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
max_rules = {most_rules}
idle_timeout = "1h"
{nf_toml}
"""


@dataclass
class EngineWorld:
    """An engine with its network function, attached to nothing, before a NIC that takes every rule."""

    context: Context
    engine: Engine

    def drain(self) -> int:
        """Do what the daemon does until no report is left; how many there were."""
        taken = 0
        while got := self.engine.poll():
            self.engine.tick()
            taken += got
        return taken


@contextmanager
def open_engine(nf: str, nf_toml: str) -> Iterator[EngineWorld]:
    """Load the program and make an engine as the daemon would; rules are taken in the calling thread."""
    with tempfile.TemporaryDirectory(prefix="nfcore-bench-") as folder:
        path = Path(folder, "engine.toml")
        path.write_text(ENGINE_CONFIG.format(nf=nf, nf_toml=nf_toml, most_rules=MOST_RULES), encoding="utf-8")
        plugins = PluginManager()
        config = load_config(path, plugins)
        plugins.register(NullBackend(), NULL_BACKEND)
        context = make_context(config, plugins, [Device("bench", 1, (NULL_BACKEND,))], tracing=True)
        with set_up(context, plugins):
            engine = make_engine(context, plugins, {1: InlineWorker()})
            engine.start()
            yield EngineWorld(context, engine)


def measure_engine(nf: str, workload: Workload, sizes: Sizes, say: Say) -> tuple[list[Figure], list[Target]]:
    """Fill the ring buffer, time the engine emptying it, again and again. In a process of its own, on one CPU."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with open_engine(nf, workload.toml(VIPS, REALS)) as world, ExitStack() as leaving:
        source = leaving.enter_context(FlowSource(workload.services(VIPS, 4), 4, in_turn=True))
        source.aim(workload.program(world.context.nfs[0]))
        rates: list[float] = []
        seconds, first, words = 0.0, 0, ""
        while first < sizes.events:
            count = min(sizes.burst, sizes.events - first)
            say(f"{first:,} of {sizes.events:,} flows")
            source.burst(count, first=first)
            refilled = time.monotonic()
            begin = time.perf_counter()
            _drain_all(world, count)
            took = time.perf_counter() - begin
            rates.append(count / took)
            seconds, first = seconds + took, first + count
            time.sleep(max(0.0, WINDOW - (time.monotonic() - refilled)))
        table = world.engine.table
        known, size = len(table), table.nbytes
        rate = first / seconds
        if rate < EVENTS_WANTED:
            source.burst(sizes.burst, first=first)
            words = profile(lambda: _drain_all(world, sizes.burst, installed=False))
    return (
        [
            Figure("new flows through the engine", rate, "1/s", f"{first:,} flows, bursts of {sizes.burst:,}"),
            Figure("of the slowest burst", min(rates), "1/s"),
            Figure("of the fastest burst", max(rates), "1/s"),
            Figure("engine's memory of a flow", size / known, "B", f"table and index, {known:,} flows"),
        ],
        [Target("new flows through the engine", rate, EVENTS_WANTED, "1/s", at_least=True, profile=words)],
    )


def _drain_all(world: EngineWorld, count: int, *, installed: bool = True) -> None:
    before = world.engine.table.count(FlowState.INSTALLED)
    taken = world.drain()
    got = world.engine.table.count(FlowState.INSTALLED) - before
    if installed and (taken, got) != (count, count):
        raise HostError(f"of {count} new flows {taken} came through the ring buffer and {got} got a rule")


def measure_first_marks(nf: str, workload: Workload, sizes: Sizes, say: Say) -> tuple[list[Figure], list[Target]]:
    """Time flows from their first packet to their first marked one. In a process of its own."""
    times = np.array(time_first_marks(nf, workload, sizes, say)) * 1e3
    if not len(times):
        raise HostError("no flow got a mark while it was sending")
    note = f"{len(times)} of {sizes.first_marks} flows, one after the other, idle daemon, softnic"
    names = {"p50": 50, "p99": 99}
    return [
        Figure(f"first packet to first marked one, {name}", round(float(np.percentile(times, percent)), 3), "ms", note)
        for name, percent in names.items()
    ], []


def measure_starts(nf: str, workload: Workload, sizes: Sizes, say: Say) -> tuple[list[Figure], list[Target]]:
    """Time the daemon until it is ready. In a process of its own."""
    vips, reals = sizes.config
    with open_site() as site:
        config = site.config(nf, workload.toml(1, 2))
        say("daemon, nothing cached")
        with cold_cache(), site.daemon(config) as cold:
            pass
        say("daemon, programs cached")
        warm = []
        for _ in range(3 if sizes.repeats > 1 else 1):
            with site.daemon(config) as took:
                warm.append(took)
        say(f"daemon, {vips} × {reals}")
        large = site.config(nf, workload.toml(vips, reals))
        with site.daemon(large) as ready:
            pass
    name = f"ready with {vips} VIPs × {reals} reals"
    note = "process start to its word ready"
    figures = [
        Figure("daemon's start, cold", round(cold, 3), "s", f"{note}, compiler included"),
        Figure("daemon's start, warm", round(statistics.median(warm), 3), "s", f"{note}, programs cached"),
        Figure(name, round(ready, 3), "s", note),
    ]
    words = profile(lambda: _open_and_close(nf, workload.toml(vips, reals))) if ready >= READY_WANTED else ""
    return figures, [Target(name, round(ready, 3), READY_WANTED, "s", profile=words)]


def _open_and_close(nf: str, nf_toml: str) -> None:
    with open_engine(nf, nf_toml):
        pass
