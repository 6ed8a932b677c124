# SPDX-License-Identifier: Apache-2.0
"""One run of the demo's traffic: its phases, what is shown meanwhile, and the proof at the end."""

from __future__ import annotations

import math
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from nfcore.errors import HostError

from .meters import read_meters
from .proof import Prediction, Summary, prove
from .stage import Client, Stage
from .traffic import retransmitted
from .view import Picture, View

WARM, MEASURED = 8, 52
"""Requests on each kept-alive connection, before and after the rules are in."""
RULES_WITHIN = 3.0
"""Seconds that the demo waits for the rules of the kept-alive connections."""
PICTURE_WITHIN = 30.0
METERS_EVERY = 0.25
"""Seconds between two readings of the daemon's counters."""


class Run:
    """One run of the traffic on a stage: the phases, what is shown of them, and the proof."""

    def __init__(self, stage: Stage, view: View, requests: int, picture: Path | None = None) -> None:
        short = requests // 4
        self.kept = math.ceil((requests - short) / (WARM + MEASURED))
        self.stage = stage
        self.view = view
        self._picture = Picture("start", total=short + self.kept * (WARM + MEASURED))
        self._read_at = 0.0
        self._picture_file = picture
        self._arguments = (
            *("--short", str(short), "--kept", str(self.kept)),
            *("--warm", str(WARM), "--measured", str(MEASURED)),
        )

    def traffic(self) -> Summary:
        """Make the requests and check everything about them."""
        client = self.stage.client(*self._arguments)
        began = time.monotonic()
        self._phase(client, "short")
        self._phase(client, "open")
        self._wait_for_rules(client)
        before = read_meters(self.stage.socket)
        picture = self.stage.take_picture(self._picture_file) if self._picture_file else None
        self._phase(client, "main")
        if picture is not None:
            self._finish(picture)
        after = read_meters(self.stage.socket)
        seconds = time.monotonic() - began
        records = self._phase(client, "close")
        return prove(
            records,
            Prediction(self.stage.config, self.stage.lab.reals),
            strategy=self.stage.strategy,
            meters=(before, after),
            retransmitted=retransmitted(self.stage.lab),
            seconds=seconds,
        )

    def _finish(self, picture: subprocess.Popen[str]) -> None:
        """Wait for the picture; HostError with the words of what could not make it."""
        try:
            _, words = picture.communicate(timeout=PICTURE_WITHIN)
        except subprocess.TimeoutExpired:
            raise HostError("nfcore top has not drawn its picture in time") from None
        if picture.returncode:
            raise HostError(f"nfcore top could not draw its picture: {words.strip()}")

    def _phase(self, client: Client, name: str) -> list[dict[str, Any]]:
        records = []
        self._show(replace(self._picture, phase=name))
        for event in client.phase(name):
            self.stage.check()
            if event is not None and event["event"] == "connection":
                records.append(event)
                continue
            if event is not None and "asked" in event:
                counts = {key: event[key] for key in ("asked", "answered", "failed", "reals")}
                self._show(replace(self._picture, **counts))
            self._read()
        return records

    def _wait_for_rules(self, client: Client) -> None:
        deadline = time.monotonic() + RULES_WITHIN
        while time.monotonic() < deadline:
            before = read_meters(self.stage.socket)
            self._phase(client, "idle")
            if read_meters(self.stage.socket).slow == before.slow:
                return
            time.sleep(0.1)

    def _read(self) -> None:
        now = time.monotonic()
        if now < self._read_at + METERS_EVERY:
            return
        self._read_at = now
        meters = read_meters(self.stage.socket)
        share = meters.share_since(self._picture.meters)
        recent = self._picture.recent_share if share is None else share
        self._show(replace(self._picture, meters=meters, recent_share=recent))

    def _show(self, picture: Picture) -> None:
        self._picture = replace(picture, total=max(picture.total, picture.asked))
        self.view.show(self._picture)
