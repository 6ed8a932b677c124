# SPDX-License-Identifier: Apache-2.0
"""One worker per device: the only thread that waits for its NIC.

The engine queues jobs, up to a limit; results come back on the engine's thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

log = logging.getLogger(__name__)
CALL_PERIOD = 0.2
"""Seconds between two checks whether the caller that waits for a job is to stop."""
Job = Callable[[], Any]
Done = Callable[[Any], None]


class Worker(Protocol):
    """Runs jobs for a device."""

    @property
    def queued(self) -> int:
        """How many jobs wait."""

    @property
    def turned_away(self) -> int:
        """How many jobs found the queue full, since the start."""

    def call(self, job: Job) -> Any:
        """Run a job after the queued ones, and return its result or raise its exception.

        Waits: only for the time before the event loop runs.
        """

    def submit(self, job: Job, done: Done) -> bool:
        """Queue a job. `done` gets its result, or the exception that it raised. False: the queue is full."""

    def stop(self, timeout: float) -> bool:
        """Finish the queued jobs and stop; False when that takes longer than `timeout` seconds."""


class InlineWorker:
    """Runs every job at once, in the caller's thread: for `nfcore trace`, the benchmark and tests."""

    queued = turned_away = 0

    def call(self, job: Job) -> Any:
        """Run `job`."""
        return job()

    def submit(self, job: Job, done: Done) -> bool:
        """Run `job`, then `done`."""
        done(_run_job(job))
        return True

    def stop(self, timeout: float) -> bool:
        """Nothing is ever queued."""
        return True


class DeviceWorker:
    """A thread with a bounded queue of jobs."""

    def __init__(
        self,
        name: str,
        deliver: Callable[[Callable[[], None]], None],
        check: Callable[[], None] = lambda: None,
        depth: int = 64,
    ) -> None:
        """Start the thread.

        deliver: gets a call per finished job and makes it on the engine's thread. check: called while :meth:`call`
        waits; ends the wait if it raises. depth: how many jobs may wait.
        """
        self._check = check
        self._jobs: queue.Queue[tuple[Job, Done] | None] = queue.Queue(depth)
        self._deliver = deliver
        self._began: float | None = None
        self.turned_away = 0
        self._thread = threading.Thread(target=self._run, name=f"offload-{name}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """How many jobs wait."""
        return self._jobs.qsize()

    def busy_seconds(self) -> float:
        """For how many seconds the present job has been running; 0 without one. For any thread."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def call(self, job: Job) -> Any:
        """Run a job after the queued ones, and return its result or raise its exception."""
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs.put((lambda: results.put(_run_job(job)), lambda _: None))
        while True:
            self._check()
            with suppress(queue.Empty):
                result = results.get(timeout=CALL_PERIOD)
                break
        if isinstance(result, Exception):
            raise result
        return result

    def submit(self, job: Job, done: Done) -> bool:
        """Queue a job unless the queue is full."""
        try:
            self._jobs.put_nowait((job, done))
        except queue.Full:
            self.turned_away += 1
            return False
        return True

    def stop(self, timeout: float) -> bool:
        """Let the thread finish its queue. Returns whether it did so in time."""
        try:
            self._jobs.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            self._began = time.monotonic()
            result = _run_job(job)
            self._began = None
            self._deliver(partial(done, result))


def _run_job(job: Job) -> Any:
    """Give a job's result, or the exception that it raised."""
    try:
        return job()
    except Exception as error:
        log.debug("traceback", exc_info=error)
        return error
