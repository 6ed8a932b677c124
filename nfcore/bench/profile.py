# SPDX-License-Identifier: Apache-2.0
"""Profiles a measurement that missed its target: in Python, and in the kernel where perf is installed."""

from __future__ import annotations

import io
import os
import pstats
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from cProfile import Profile
from pathlib import Path

LINES = 14
_WARM_UP = 0.3
"""Seconds until perf takes samples."""


def profile(work: Callable[[], object]) -> str:
    """Run `work` under Python's profiler, which slows it down; return the functions with the most time of their own."""
    text = io.StringIO()
    with Profile() as profiler:
        work()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(LINES)
    return text.getvalue().strip()


def kernel_profile(work: Callable[[], object]) -> str:
    """Run `work` while perf samples this process; return the symbols of kernel and BPF programs with their shares.

    Empty when perf is not installed, or has no samples.
    """
    if shutil.which("perf") is None:
        return ""
    with tempfile.TemporaryDirectory(prefix="nfcore-bench-") as folder:
        data = str(Path(folder, "perf.data"))
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "4000", "-p", str(os.getpid()), "-o", data]
        null = subprocess.DEVNULL
        sampler = subprocess.Popen(record, start_new_session=True, stdout=null, stderr=null)
        try:
            time.sleep(_WARM_UP)
            work()
        finally:
            sampler.send_signal(signal.SIGINT)
            sampler.wait()
        report = ["perf", "report", "-i", data, "--stdio", "-q", "--sort", "symbol", "--percent-limit", "1"]
        done = subprocess.run(report, capture_output=True, text=True, check=False, stdin=null)
    symbols = [line.split()[:3] for line in done.stdout.splitlines() if " [k] " in line]
    return "\n".join(f"{share:>7}  {name}" for share, _, name in symbols[:LINES])
