# SPDX-License-Identifier: Apache-2.0
"""`nfcore run` as tests start it: in a network namespace, watched until it is ready, asked for its figures."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfcore.api.metrics import total
from nfcore.control.client import request


@dataclass
class Daemons:
    """Daemons that are started with `enter` (a command line before theirs) and answer at `socket`."""

    enter: Sequence[str]
    socket: Path
    patience: float
    """Seconds until something that should happen counts as not happening."""
    python: Path = Path(sys.executable)
    """That of the environment with the nfcore that is to run."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """What the last one wrote until it was ready."""

    def start(self, config: Path) -> subprocess.Popen[str]:
        """Start one and wait until it is ready; AssertionError with its words when it ends instead."""
        command = [*self.enter, str(self.python), "-m", "nfcore.cli", "run", str(config)]
        daemon = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.started.append(daemon)
        assert daemon.stderr is not None
        self.said = []
        for line in daemon.stderr:
            self.said.append(line)
            if line.startswith("ready"):
                return daemon
        raise AssertionError(f"the daemon ended with {daemon.wait()}: {''.join(self.said)}")

    @contextmanager
    def running(self, config: Path) -> Iterator[subprocess.Popen[str]]:
        """Start one for a block; at its end it has to stop as told."""
        daemon = self.start(config)
        yield daemon
        daemon.terminate()
        assert daemon.wait(self.patience) == 0, daemon.stderr and daemon.stderr.read()

    def figure(self, name: str, **labels: str) -> float:
        """Give the sum of a metric's samples that have these labels."""
        return total(request(self.socket, "stats", timeout=self.patience)["metrics"], name, **labels)

    def kill_all(self) -> None:
        """End those that still run, whatever they think of it."""
        for daemon in self.started:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
            if daemon.stderr is not None:
                daemon.stderr.close()


def eventually(condition: Callable[[], Any], patience: float) -> Any:
    """Wait until `condition` holds; its last value."""
    deadline = time.monotonic() + patience
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return value
