# SPDX-License-Identifier: Apache-2.0
"""``python -m demo``: run the demo, show it, prove it, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console

from nfcore.errors import HostError, NfcoreError

from .lab import VIP4, VIP6, Lab
from .meters import read_meters
from .objects import KernelObjects
from .proof import Prediction, Summary, prove
from .stage import CONFIG, Client, Stage, StoppedError, StopSwitch, nfcore
from .traces import Traces
from .view import Picture, View, make_view, print_summary

WARM, MEASURED = 8, 52
"""Requests on each kept-alive connection, before and after the rules are in."""
RULES_WITHIN = 3.0
"""Seconds that the demo waits for the rules of the kept-alive connections."""
METERS_EVERY = 0.25
"""Seconds between two readings of the daemon's counters."""


class Strategy(StrEnum):
    """What a mark means."""

    FLOW_ID = "flow-id"
    DEST_ID = "dest-id"


class Run:
    """One run of the traffic on a stage: the phases, what is shown of them, and the proof."""

    def __init__(self, stage: Stage, view: View, requests: int) -> None:
        short = requests // 4
        self.kept = math.ceil((requests - short) / (WARM + MEASURED))
        self.stage = stage
        self.view = view
        self._picture = Picture("start", total=short + self.kept * (WARM + MEASURED))
        self._read_at = 0.0
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
        self._phase(client, "main")
        after = read_meters(self.stage.socket)
        seconds = time.monotonic() - began
        records = self._phase(client, "close")
        return prove(
            records,
            Prediction(self.stage.config, self.stage.lab.reals),
            strategy=self.stage.strategy,
            meters=(before, after),
            retransmitted=self._retransmitted(),
            seconds=seconds,
        )

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

    def _retransmitted(self) -> int:
        # Segments that TCP sent again hide from an HTTP client, so they are reported beside its word.
        total = 0
        for role in ("client", *(real.name for real in self.stage.lab.reals)):
            names, values = (
                line.split()
                for line in self.stage.lab.run(role, ["cat", "/proc/net/snmp"]).stdout.splitlines()
                if line.startswith("Tcp:")
            )
            total += int(values[names.index("RetransSegs")])
        return total


def hints(stage: Stage) -> str:
    """How to look around while the demo stays up."""
    lab = stage.lab
    inside = "nsenter --net=/run/netns/" + lab.prefix
    command = nfcore()[0]
    return f"""
The lab stays up until Ctrl-C. In another terminal, as root:

  {inside}client curl http://{VIP4}/            # ask the VIP: names the real, your address and port
  {inside}client curl -g 'http://[{VIP6}]/'
  {command} stats {stage.config}
  {inside}gw tcpdump -ni net0                   # to the balancer and, encapsulated, back
  {inside}real1 tcpdump -ni eth0                # at a real, after decapsulation
  bpftool map list                              # {stage.pins} holds the emulated NIC's
"""


def perform(view: View, stop: StopSwitch, *, strategy: str | None, requests: int, keep: bool) -> Summary:
    """Build, run, prove, remove. Raises nfcore's errors and StoppedError; everything is removed even then."""
    lab = Lab()
    stage = Stage(lab, stop, strategy=strategy)
    traces = Traces(stage.socket, stage.pins)
    with contextlib.ExitStack() as exits:
        exits.enter_context(traces)
        view.say("building the lab: client, gateway, emulated NIC, balancer, three reals")
        exits.enter_context(lab)
        view.say(f"starting the reals and nfcore run {CONFIG.name} (strategy {stage.strategy})")
        exits.enter_context(stage)
        with view:
            summary = Run(stage, view, requests).traffic()
        objects = KernelObjects.of(lab)
        if keep:
            view.say("\n".join(f"{'held' if check.passed else 'FAILED'}: {check.claim}" for check in summary.checks))
            view.say(hints(stage))
            stop.wait()
    summary.left_behind = [*lab.leftovers(), *traces.left(), *objects.left()]
    return summary


def main(
    strategy: Annotated[
        Strategy | None, typer.Option(help="What a mark means (default: as in examples/demo.toml).")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up after the run until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object on standard output, alone.")
    ] = False,
    requests: Annotated[int, typer.Option(min=8, max=1_000_000, help="HTTP requests, at least.")] = 12_000,
) -> None:
    """An L4 load balancer with an emulated NIC, real HTTP through it, and the proof that all of it was right.

    Exit status: 0 all claims held; 1 one did not, or the demo could not run; 130 or 143 stopped by a signal.
    """
    console = Console(stderr=as_json)
    view = make_view(console)
    stop = StopSwitch()
    try:
        if os.geteuid() != 0:
            raise HostError("the demo needs root (network namespaces, XDP): run sudo ./demo.sh")
        summary = perform(view, stop, strategy=strategy, requests=requests, keep=keep)
        if as_json:
            print(json.dumps(summary.as_json()))
        print_summary(console, summary)
        if summary.left_behind:
            view.say(f"left behind: {', '.join(summary.left_behind)}")
        else:
            view.say("nothing left behind: namespaces, processes, programs, maps, pins and mounts are gone")
        status = 0 if summary.ok else 1
    except StoppedError as error:
        view.say(f"stopped by {error}; everything was removed")
        status = 128 + error.number
    except NfcoreError as error:
        print(f"demo: {error}", file=sys.stderr)
        status = 128 + stop.number if stop.number is not None else error.exit_status
    raise typer.Exit(status)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app(prog_name="demo.sh")
