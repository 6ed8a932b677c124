# SPDX-License-Identifier: Apache-2.0
"""The demo without chaos: the phases of its traffic, and the proof at the end."""

from __future__ import annotations

import math
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from nfcore.errors import HostError

from .counters import read_counters
from .proof import Prediction, Summary, prove
from .stage import Client, Stage
from .traffic import retransmitted
from .view import Progress, View

WARM, MEASURED = 8, 52
"""Requests on each kept-alive connection, before and after its rule is installed."""
RULES_TIMEOUT = 3.0
"""Seconds to wait for the rules of the kept-alive connections."""
PICTURE_TIMEOUT = 30.0
METERS_EVERY = 0.25
"""Seconds between two readings of the daemon's counters."""


class Run:
    """One run of the traffic on a stage."""

    def __init__(self, stage: Stage, view: View, requests: int, picture: Path | None = None) -> None:
        short = requests // 4
        self.kept = math.ceil((requests - short) / (WARM + MEASURED))
        self.stage = stage
        self.view = view
        self._progress = Progress("start", total=short + self.kept * (WARM + MEASURED))
        self._read_at = 0.0
        self._picture = picture
        self._arguments = (
            *("--short", str(short), "--kept", str(self.kept)),
            *("--warm", str(WARM), "--measured", str(MEASURED)),
        )

    def traffic(self) -> Summary:
        """Make the requests, and prove the claims about them."""
        client = self.stage.client(*self._arguments)
        began = time.monotonic()
        self._phase(client, "short")
        self._phase(client, "open")
        self._wait_for_rules(client)
        before = read_counters(self.stage.socket)
        drawing = self.stage.take_picture(self._picture) if self._picture else None
        self._phase(client, "main")
        if drawing is not None:
            self._finish(drawing)
        after = read_counters(self.stage.socket)
        seconds = time.monotonic() - began
        records = self._phase(client, "close")
        return prove(
            records,
            Prediction(self.stage.config, self.stage.lab.reals),
            strategy=self.stage.strategy,
            counters=(before, after),
            retransmitted=retransmitted(self.stage.lab),
            seconds=seconds,
        )

    def _finish(self, drawing: subprocess.Popen[str]) -> None:
        """Wait for the picture; HostError with the output of `nfcore top` if it fails."""
        try:
            _, output = drawing.communicate(timeout=PICTURE_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise HostError(f"nfcore top did not draw its picture within {PICTURE_TIMEOUT:g} s") from None
        if drawing.returncode:
            raise HostError(f"nfcore top could not draw its picture: {output.strip()}")

    def _phase(self, client: Client, name: str) -> list[dict[str, Any]]:
        """Run a phase; returns the records of connections that it gives."""
        records = []
        self._show(replace(self._progress, phase=name))
        for event in client.phase(name):
            self.stage.check()
            if event is not None and event["event"] == "connection":
                records.append(event)
                continue
            if event is not None and "asked" in event:
                counts = {key: event[key] for key in ("asked", "answered", "failed", "reals")}
                self._show(replace(self._progress, **counts))
            self._read()
        return records

    def _wait_for_rules(self, client: Client) -> None:
        """Return when no packet of a round of requests takes the slow path, or after the time-out."""
        deadline = time.monotonic() + RULES_TIMEOUT
        while time.monotonic() < deadline:
            before = read_counters(self.stage.socket)
            self._phase(client, "idle")
            if read_counters(self.stage.socket).slow == before.slow:
                return
            time.sleep(0.1)

    def _read(self) -> None:
        now = time.monotonic()
        if now < self._read_at + METERS_EVERY:
            return
        self._read_at = now
        counters = read_counters(self.stage.socket)
        share = counters.share_since(self._progress.counters)
        recent = self._progress.recent_share if share is None else share
        self._show(replace(self._progress, counters=counters, recent_share=recent))

    def _show(self, progress: Progress) -> None:
        self._progress = replace(progress, total=max(progress.total, progress.asked))
        self.view.show(self._progress)
