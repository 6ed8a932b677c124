# SPDX-License-Identifier: Apache-2.0
"""Traffic that goes on while something is done to the load balancer: waited on, counted and shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .events import Event, UnseenError
from .lab import Lab
from .meters import Meters, read_meters
from .stage import Client, Stage
from .view import Picture, View

TICK = 0.05
"""Seconds between two looks at what somebody waits for."""
METERS_EVERY = 0.2
"""Seconds between two readings of the daemon's counters."""
PATIENCE = 30.0
"""Seconds that an effect may take to be seen. Most take less than one; a busy machine may be slow."""


class Traffic:
    """A churn of connections (`demo.load`) and what is known of it. Context: it flows meanwhile."""

    def __init__(self, stage: Stage, view: View, client: Client, total: int) -> None:
        self.stage = stage
        self.daemon_answers = True
        """Whether there is a daemon to be asked."""
        self.picture = Picture("churn", total=total)
        self._view = view
        self._client = client
        self._read_at = 0.0
        self._client.tell("churn")

    @property
    def meters(self) -> Meters:
        """The last reading."""
        return self.picture.meters

    def end(self) -> list[dict[str, Any]]:
        """Let the churn end; the records of all connections."""
        self._client.tell("calm")
        self._client.tell("close")
        records: list[dict[str, Any]] = []
        done: list[str] = []
        while "close" not in done:
            for event in self.pump():
                if event["event"] == "connection":
                    records.append(event)
                elif event["event"] == "done":
                    done.append(event["phase"])
        return records

    def pump(self) -> list[dict[str, Any]]:
        """Take the news, waiting a tick for some, and show how things are. Raises what `Stage.check` does."""
        self.stage.check()
        news = []
        event = self._client.event(TICK)
        while event is not None:
            news.append(event)
            if event["event"] != "connection":
                self._show(**{key: event[key] for key in ("asked", "answered", "failed", "reals")})
            # The client tells no more once it has closed, and ends.
            closed = event["event"] == "done" and event["phase"] == "close"
            event = None if closed else self._client.event(0.0)
        if self.daemon_answers and time.monotonic() >= self._read_at + METERS_EVERY:
            self.read()
        return news

    def read(self) -> Meters:
        """Read the daemon's counters now."""
        self._read_at = time.monotonic()
        meters = read_meters(self.stage.socket)
        share = meters.share_since(self.picture.meters)
        recent = self.picture.recent_share if share is None else share
        self._show(meters=meters, recent_share=recent)
        return meters

    def share_again(self) -> None:
        """Forget the share of the fast path that was seen last: what counts is what comes."""
        self._show(recent_share=None)
        self.read()

    def until(self, seen: Callable[[], bool], wanted: str, within: float = PATIENCE) -> None:
        """Let the traffic flow until `seen`. UnseenError names what was `wanted` and did not come."""
        deadline = time.monotonic() + within
        while not seen():
            if time.monotonic() > deadline:
                raise UnseenError(f"{wanted}: not seen within {within:g} s; {self._state()}")
            self.pump()

    def flow_for(self, seconds: float) -> None:
        """Let the traffic flow for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.pump()

    def answers(self, count: int) -> None:
        """Let the traffic flow until so many more requests have been answered."""
        # News of what was answered before must not count.
        self.pump()
        wanted = self.picture.answered + count
        self.until(lambda: self.picture.answered >= wanted, f"{count} more requests answered")

    def began(self, doing: str) -> None:
        """Show what is being done."""
        self._show(doing=doing)

    def ended(self, event: Event) -> None:
        """Show what was done."""
        self._show(doing="", events=(*self.picture.events, event))

    def _show(self, **values: Any) -> None:
        self.picture = replace(self.picture, **values)
        self.picture = replace(self.picture, total=max(self.picture.total, self.picture.asked))
        self._view.show(self.picture)

    def _state(self) -> str:
        meters = self.meters
        return (
            f"{self.picture.answered:,} of {self.picture.asked:,} requests answered, {self.picture.failed} connections "
            f"failed, {meters.rules} rules, {meters.waiting} flows waiting"
        )


def retransmitted(lab: Lab) -> int:
    """TCP segments that client and reals sent again: they hide from an HTTP client, so they are reported beside it."""
    total = 0
    for role in ("client", *(real.name for real in lab.reals)):
        names, values = (
            line.split()
            for line in lab.run(role, ["cat", "/proc/net/snmp"]).stdout.splitlines()
            if line.startswith("Tcp:")
        )
        total += int(values[names.index("RetransSegs")])
    return total
