# SPDX-License-Identifier: Apache-2.0
"""Traffic that flows while steps are performed, and is counted, shown and waited for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nfcore.errors import NfcoreError

from .counters import DaemonCounters, read_counters
from .events import Event, Step, UnseenError
from .lab import Lab
from .stage import Client, Stage
from .view import Progress, View

TICK = 0.05
"""Seconds between two checks of a condition."""
METERS_EVERY = 0.2
"""Seconds between two readings of the daemon's counters."""
TIMEOUT = 30.0
"""Seconds to wait for an effect. Most take less than one; a busy machine may be slow."""


class Traffic:
    """A churn of connections (`demo.load`), which begins at once, and its progress."""

    def __init__(self, stage: Stage, view: View, client: Client, total: int, phase: str = "churn") -> None:
        """`phase`: what the run is called in `view.PHASES`."""
        self.stage = stage
        self.daemon_answers = True
        """Whether a daemon runs, so that its counters can be read."""
        self.progress = Progress(phase, total=total)
        self._view = view
        self._client = client
        self._read_at = 0.0
        self._began = time.monotonic()
        self._client.send("churn")

    @property
    def counters(self) -> DaemonCounters:
        """The last reading of the daemon's counters."""
        return self.progress.counters

    @property
    def seconds(self) -> float:
        """Seconds since the traffic began."""
        return time.monotonic() - self._began

    def perform(self, step: Step) -> None:
        """Perform a step, and show its event."""
        at = self.seconds
        self._show(action=step.what)
        try:
            passed, detail = True, step.act()
        except (UnseenError, NfcoreError) as error:
            self.stage.check()  # ends the demo if the daemon has ended by itself
            passed, detail = False, str(error)
        times = (round(at, 1), round(self.seconds - at, 2))
        event = Event(step.name, step.what, step.claim, *times, passed, detail)
        self._show(action="", events=(*self.progress.events, event))

    def wait_for_requests(self) -> None:
        """Let the traffic flow until all requests are sent."""
        # Not an error here: the proof shows what was lost.
        with contextlib.suppress(UnseenError):
            self.wait_until(lambda: self.progress.asked >= self.progress.total, "requests", 10 * TIMEOUT)

    def end(self) -> list[dict[str, Any]]:
        """End the churn; returns the records of all connections."""
        self._client.send("calm")
        self._client.send("close")
        records: list[dict[str, Any]] = []
        done: list[str] = []
        while "close" not in done:
            for event in self.poll():
                if event["event"] == "connection":
                    records.append(event)
                elif event["event"] == "done":
                    done.append(event["phase"])
        return records

    def poll(self) -> list[dict[str, Any]]:
        """Return the client's new events, after a tick at most, and show the progress. Raises as `Stage.check`."""
        self.stage.check()
        events = []
        event = self._client.event(TICK)
        while event is not None:
            events.append(event)
            if event["event"] != "connection":
                self._show(**{key: event[key] for key in ("asked", "answered", "failed", "reals")})
            # After it has closed the client ends and sends nothing more.
            closed = event["event"] == "done" and event["phase"] == "close"
            event = None if closed else self._client.event(0.0)
        if self.daemon_answers and time.monotonic() >= self._read_at + METERS_EVERY:
            self.read()
        return events

    def read(self) -> DaemonCounters:
        """Read the daemon's counters now."""
        last, self._read_at = self._read_at, time.monotonic()
        counters, before = read_counters(self.stage.socket), self.progress.counters
        share = counters.share_since(before)
        recent = self.progress.recent_share if share is None else share
        rate = (counters.fast + counters.slow - before.fast - before.slow) / (self._read_at - last)
        self._show(counters=counters, recent_share=recent, balanced_rate=rate)
        return counters

    def reset_share(self) -> None:
        """Forget the last share of the fast path, so that only later packets count."""
        self._show(recent_share=None)
        self.read()

    def wait_until(self, seen: Callable[[], bool], expected: str, within: float = TIMEOUT) -> None:
        """Let the traffic flow until `seen` is true. UnseenError names what was `expected` and did not come."""
        deadline = time.monotonic() + within
        while not seen():
            if time.monotonic() > deadline:
                raise UnseenError(f"{expected}: not seen within {within:g} s; {self._state()}")
            self.poll()

    def flow_for(self, seconds: float) -> None:
        """Let the traffic flow for some seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.poll()

    def wait_for_answers(self, count: int) -> None:
        """Let the traffic flow until `count` more requests are answered."""
        self.poll()  # takes the events of earlier answers, which must not count
        target = self.progress.answered + count
        self.wait_until(lambda: self.progress.answered >= target, f"{count} more requests answered")

    def _show(self, **values: Any) -> None:
        self.progress = replace(self.progress, **values)
        self.progress = replace(self.progress, total=max(self.progress.total, self.progress.asked))
        self._view.show(self.progress)

    def _state(self) -> str:
        counters, progress = self.counters, self.progress
        return (
            f"{progress.answered:,} of {progress.asked:,} requests answered, {progress.failed} connections failed, "
            f"{counters.rules} rules, {counters.waiting} flows waiting"
        )


def retransmitted(lab: Lab) -> int:
    """Return how many TCP segments client and reals have sent again; an HTTP client does not see that."""
    total = 0
    for role in ("client", *(real.name for real in lab.reals)):
        names, values = (
            line.split()
            for line in lab.run(role, ["cat", "/proc/net/snmp"]).stdout.splitlines()
            if line.startswith("Tcp:")
        )
        total += int(values[names.index("RetransSegs")])
    return total
