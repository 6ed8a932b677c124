# SPDX-License-Identifier: Apache-2.0
"""A machine of its own for each process that runs kernel tests: network, mounts and /run, and a CPU to stay on.

So several of them run beside each other, and nothing is left on the host, however a run ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nfcore.bench.testbed import isolate


def isolate_tests(folder: Path) -> None:
    """Move this process into namespaces of its own; `folder` is for its temporary files. Needs root.

    /run is empty there: network namespaces that `ip netns` makes, locks and pins have the same names in each process.
    """
    isolate()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def own_cpu() -> int:
    """The CPU that this process pins work to: another one for each parallel worker, as far as there are enough."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[int(worker) % len(cpus)]


@contextmanager
def on_one_cpu() -> Iterator[int]:
    """Keep this thread, and what it starts, on :func:`own_cpu` for a block; gives the CPU."""
    before, cpu = os.sched_getaffinity(0), own_cpu()
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, before)
