# SPDX-License-Identifier: Apache-2.0
"""Where the time goes, for a figure that is not as it should be: in Python, and in the kernel where there is perf."""

from __future__ import annotations

import cProfile
import io
import os
import pstats
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

LINES = 14
_WARM_UP = 0.3
"""Seconds that perf takes until it samples."""


def profile(work: Callable[[], object]) -> str:
    """Run `work` under Python's profiler; the functions that took most, by their own time. It is slower by that."""
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        work()
    finally:
        profiler.disable()
    stats = pstats.Stats(profiler, stream=io.StringIO())
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])  # type: ignore[attr-defined]
    total = sum(timing[2] for _, timing in rows) or 1.0
    lines = [f"{'own ms':>9} {'share':>6} {'calls':>9}  function"]
    for (file, line, name), (_, calls, own, _, _) in rows[:LINES]:
        where = f"{Path(file).name}:{line} {name}" if line else name
        lines.append(f"{own * 1e3:>9.1f} {own / total:>6.1%} {calls:>9,}  {where}")
    return "\n".join(lines)


def kernel_profile(work: Callable[[], object]) -> str:
    """Run `work` while perf samples this process; where in kernel and BPF programs it was, in shares of all samples.

    Empty where there is no perf, or it finds nothing.
    """
    if shutil.which("perf") is None:
        return ""
    with tempfile.TemporaryDirectory(prefix="nfcore-bench-") as folder:
        data = str(Path(folder, "perf.data"))
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "4000", "-p", str(os.getpid()), "-o", data]
        nowhere = subprocess.DEVNULL
        sampling = subprocess.Popen(record, start_new_session=True, stdout=nowhere, stderr=nowhere)
        try:
            time.sleep(_WARM_UP)
            work()
        finally:
            sampling.send_signal(signal.SIGINT)
            sampling.wait()
        report = ["perf", "report", "-i", data, "--stdio", "-q", "--sort", "symbol", "--percent-limit", "1"]
        done = subprocess.run(report, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    found = [" ".join(line.split()[:3]) for line in done.stdout.splitlines() if " [k] " in line]
    return "\n".join(f"{share:>7}  {name}" for share, _, name in (line.split(" ", 2) for line in found[:LINES]))
