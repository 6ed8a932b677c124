# SPDX-License-Identifier: Apache-2.0
"""Metrics of the process and of the hooks."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from ..api.health import Health
from ..api.metrics import MetricFamily, counter, gauge
from ..hooks.manager import PluginManager
from ..version import __version__


def process_metrics(health: Health) -> Iterator[MetricFamily]:
    """Give the metrics of the process."""
    start = gauge("nfcore_start_time_seconds", "When the daemon started, since 1970.", "seconds")
    start.add(health.started)
    build = gauge("nfcore_build_info", "1; its labels tell the version.", "", "version", "python")
    build.add(1, version=__version__, python=platform.python_version())
    spent = counter("nfcore_process_cpu_seconds_total", "CPU time of the daemon, all threads.", "seconds")
    spent.add(time.process_time())
    memory = gauge("nfcore_process_resident_memory_bytes", "Memory of the daemon.", "bytes")
    memory.add(_resident_bytes())
    longest = gauge("nfcore_loop_longest_turn_seconds", "Longest turn of the event loop lately.", "seconds")
    longest.add(health.longest_turn)
    attached = gauge("nfcore_program_attached", "1 while nfcore's program is on the interface.", "", "interface")
    for interface, is_attached in health.programs().items():
        attached.add(int(is_attached), interface=interface)
    yield from (start, build, spent, memory, longest, attached)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def hook_metrics(plugins: PluginManager) -> Iterator[MetricFamily]:
    """Give the faults of plugins, and the calls and time of their hooks."""
    labels = ("plugin", "hook")
    errors = counter("nfcore_hook_errors_total", "Faults of plugins in hooks.", "calls", *labels, "kind")
    for (plugin, hook, fault), count in sorted(plugins.faults.items()):
        errors.add(count, plugin=plugin, hook=hook, kind=str(fault))
    calls = counter("nfcore_hook_calls_total", "Calls of plugins' hooks.", "calls", *labels)
    seconds = counter("nfcore_hook_seconds_total", "Time spent in plugins' hooks.", "seconds", *labels)
    for (plugin, hook), spent in sorted(plugins.times.items()):
        calls.add(spent.calls, plugin=plugin, hook=hook)
        seconds.add(spent.seconds, plugin=plugin, hook=hook)
    yield from (errors, calls, seconds)
