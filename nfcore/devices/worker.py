# SPDX-License-Identifier: Apache-2.0
"""One worker per device: the only place where a NIC is waited for.

Jobs go in through a bounded queue and come out, finished, on the engine's thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..api.rules import INSTALLED_ROW, Capabilities, Device, Outcome, Outcomes, RuleBatch
from ..hooks.manager import PluginHost
from .latency import Operation, Timings
from .rule_counters import Counts

log = logging.getLogger(__name__)
CALL_PERIOD = 0.2
"""Seconds between two looks whether whoever waits for a job is to stop."""
Job = Callable[[], Any]
Done = Callable[[Any], None]


@dataclass
class InstallResult:
    """What became of a batch over all backends of a device."""

    status: NDArray[np.uint8]
    """:class:`Outcome` per rule, of the last backend that was asked."""
    backend: NDArray[np.uint8]
    """Index of that backend in the device's list."""
    words: list[str]
    """What backends said, each sentence once."""
    said: dict[int, str] = field(default_factory=dict)
    """Row → what the last backend that was asked said of this rule, where it did."""


@dataclass
class Removal:
    """What became of rules that were to go."""

    gone: NDArray[np.bool_]
    """Which are off the NIC now."""
    counted: Counts
    """Packets and bytes that each had counted to its end, shape (rules, 2); 0 where the backend does not tell."""


@dataclass
class Dump:
    """What the backends of a device hold for us."""

    rows: NDArray[np.void]
    """:data:`INSTALLED_ROW` per rule."""
    backend: NDArray[np.uint8]
    """Per row: index of the backend that holds it in the device's list."""
    answered: list[int]
    """Backends, by index in the device's list, whose rules are all among the rows."""


class Backends:
    """The offload backends of one device as one: the best first, the next for what it could not take."""

    def __init__(self, device: Device, host: PluginHost) -> None:
        self.device = device
        self._host = host
        # Replaced as a whole, since the worker writes it and the engine reads it.
        self._refused: frozenset[tuple[str, int, int]] = frozenset()
        self.timings = Timings()

    def probe(self) -> dict[str, Capabilities]:
        """Ask each backend what it can do here; those that do not tell are taken at their word and left out."""
        told = {}
        for backend in self.device.backends:
            done, able = self._host.attempt(backend, "probe_offload", device=self.device)
            if done and able is not None:
                told[backend] = able
        return told

    def leave_out(self, useless: Collection[str]) -> None:
        """Go on without some of the backends. Before the first rule only: rules remember a backend by its index."""
        left = tuple(name for name in self.device.backends if name not in useless)
        self.device = replace(self.device, backends=left)

    def install(self, rules: RuleBatch) -> InstallResult:
        """Install rules; a row that no backend took gets the most hopeful outcome: FULL, FAILED, UNSUPPORTED.

        What a backend calls UNSUPPORTED it is not asked for again: rules of that family and protocol.
        """
        with self.timings.time(Operation.INSTALL) as took:
            took.rules = len(rules)
            return self._install(rules)

    def _install(self, rules: RuleBatch) -> InstallResult:
        result = InstallResult(
            np.full(len(rules), Outcome.UNSUPPORTED, dtype=np.uint8), np.zeros(len(rules), dtype=np.uint8), []
        )
        left = np.arange(len(rules))
        for number, backend in enumerate(self.device.backends):
            willing = ~self._refuses(backend, rules.rows["family"][left], rules.rows["key"]["proto"][left])
            asked = left[willing]
            if not len(asked):
                continue
            few = rules if len(asked) == len(rules) else RuleBatch(rules.rows[asked])
            outcomes = self._ask(backend, "install_offload", few)
            self._learn(backend, rules.rows[asked[outcomes.status == Outcome.UNSUPPORTED]])
            better = np.isin(outcomes.status, (Outcome.INSTALLED, Outcome.FULL))
            better |= (outcomes.status != Outcome.UNSUPPORTED) & (result.status[asked] == Outcome.UNSUPPORTED)
            result.status[asked[better]] = outcomes.status[better]
            result.backend[asked] = number
            result.words = list(dict.fromkeys([*result.words, *outcomes.words.values()]))
            result.said |= {int(asked[row]): words for row, words in outcomes.words.items() if 0 <= row < len(asked)}
            left = left[result.status[left] != Outcome.INSTALLED]
            if not len(left):
                break
        return result

    def unsupported(self, families: NDArray[Any], protocols: NDArray[Any]) -> NDArray[np.bool_]:
        """Rows of a family (4, 6) and IP protocol that every backend has refused to support."""
        refused = np.ones(len(families), dtype=bool)
        for backend in self.device.backends:
            refused &= self._refuses(backend, families, protocols)
        return refused

    def forget_unsupported(self) -> None:
        """Ask again for everything."""
        self._refused = frozenset()

    def _refuses(self, backend: str, families: NDArray[Any], protocols: NDArray[Any]) -> NDArray[np.bool_]:
        refused = np.zeros(len(families), dtype=bool)
        for name, family, protocol in self._refused:
            if name == backend:
                refused |= (families == family) & (protocols == protocol)
        return refused

    def _learn(self, backend: str, rows: NDArray[np.void]) -> None:
        if len(rows):
            shapes = set(zip(rows["family"].tolist(), rows["key"]["proto"].tolist(), strict=True))
            self._refused |= {(backend, *shape) for shape in shapes}

    def remove(self, rules: RuleBatch, backend: NDArray[np.uint8]) -> Removal:
        """Remove rules, each from the backend (by index) that holds it."""
        removal = Removal(np.zeros(len(rules), dtype=bool), np.zeros((len(rules), 2), dtype=np.uint64))
        with self.timings.time(Operation.REMOVE) as took:
            took.rules = len(rules)
            for number, name in enumerate(self.device.backends):
                mine = np.flatnonzero(backend == number)
                if len(mine):
                    outcomes = self._ask(name, "remove_offload", RuleBatch(rules.rows[mine]))
                    removal.gone[mine] = np.isin(outcomes.status, (Outcome.REMOVED, Outcome.ABSENT))
                    if outcomes.counted is not None:
                        removal.counted[mine] = outcomes.counted
        return removal

    def dump(self) -> Dump:
        """All rules that the backends hold for us, of those backends that can tell."""
        with self.timings.time(Operation.DUMP) as took:
            dump = self._dump()
            took.rules = len(dump.rows)
        return dump

    def _dump(self) -> Dump:
        raw: list[NDArray[np.uint8]] = []
        holders: list[NDArray[np.uint8]] = []
        answered = []
        for number, backend in enumerate(self.device.backends):
            done, rows = self._host.attempt(backend, "dump_offload", device=self.device)
            if not done or rows is None:
                continue
            answered.append(number)
            # Joined as bytes: numpy's concatenate would turn the ports to the host's byte order.
            raw.append(np.ascontiguousarray(rows).view(np.uint8))
            holders.append(np.full(len(rows), number, dtype=np.uint8))
        rows = np.concatenate(raw).view(INSTALLED_ROW) if raw else np.zeros(0, dtype=INSTALLED_ROW)
        return Dump(rows, np.concatenate(holders) if holders else np.zeros(0, dtype=np.uint8), answered)

    def _ask(self, backend: str, hook: str, rules: RuleBatch) -> Outcomes:
        done, outcomes = self._host.attempt(backend, hook, device=self.device, rules=rules)
        return outcomes if done else Outcomes.all(Outcome.FAILED, len(rules))


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
