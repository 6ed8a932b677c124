# SPDX-License-Identifier: Apache-2.0
"""One worker per device: the only place where a NIC is waited for.

Jobs go in through a bounded queue and come out, finished, on the engine's thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

log = logging.getLogger(__name__)
CALL_PERIOD = 0.2
"""Seconds between two looks whether whoever waits for a job is to stop."""
Job = Callable[[], Any]
Done = Callable[[Any], None]


class Worker(Protocol):
    """Runs jobs away from the caller."""

    @property
    def queued(self) -> int:
        """Jobs that wait."""

    @property
    def turned_away(self) -> int:
        """Jobs for which the queue had no room, ever."""

    def call(self, job: Job) -> Any:
        """Run a job behind those that are queued and wait for its result; what it raises comes through.

        For the time before the event loop runs, which must never wait.
        """

    def submit(self, job: Job, done: Done) -> bool:
        """Queue a job; `done` gets its result, or the exception that it raised. False: the queue is full."""

    def stop(self, timeout: float) -> bool:
        """Finish what is queued and stop; False when that took longer than `timeout` seconds."""


class InlineWorker:
    """Runs every job at once, in the caller's thread: for tracing one packet after the other."""

    queued = turned_away = 0

    def call(self, job: Job) -> Any:
        """Run `job`."""
        return job()

    def submit(self, job: Job, done: Done) -> bool:
        """Run `job`, then `done`."""
        done(_attempt(job))
        return True

    def stop(self, timeout: float) -> bool:
        """Nothing is ever queued."""
        return True


class DeviceWorker:
    """A thread with a bounded queue; results are handed to `deliver`, which brings them to the engine's thread."""

    def __init__(
        self,
        name: str,
        deliver: Callable[[Callable[[], None]], None],
        check: Callable[[], None] = lambda: None,
        depth: int = 64,
    ) -> None:
        """Hand finished jobs to `deliver`; `check` is called while :meth:`call` waits, and may raise to end that."""
        self._check = check
        self._jobs: queue.Queue[tuple[Job, Done] | None] = queue.Queue(depth)
        self._deliver = deliver
        self._began: float | None = None
        self.turned_away = 0
        self._thread = threading.Thread(target=self._run, name=f"offload-{name}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return self._jobs.qsize()

    def busy_seconds(self) -> float:
        """For how long the job under way has been; 0 without one. For any thread."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def call(self, job: Job) -> Any:
        """Wait for the result of a job."""
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs.put((lambda: answer.put(_attempt(job)), lambda _: None))
        while True:
            self._check()
            with suppress(queue.Empty):
                result = answer.get(timeout=CALL_PERIOD)
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
        """Let the thread finish its queue; whether it did in time."""
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
            result = _attempt(job)
            self._began = None
            self._deliver(lambda done=done, result=result: done(result))  # type: ignore[misc]


def _attempt(job: Job) -> Any:
    try:
        return job()
    except Exception as error:
        log.debug("traceback", exc_info=error)
        return error
