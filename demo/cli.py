# SPDX-License-Identifier: Apache-2.0
"""The demo's command line: build the lab, run the traffic, show it, prove the claims, remove everything."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nfcore.errors import HostError, NfcoreError

from .chaos import Chaos
from .flows import CONFIG as FLOWS_CONFIG
from .flows import Flows
from .host_state import SCRATCH, HostState
from .lab import VIP4, VIP6, Lab
from .objects import KernelObjects
from .proof import Summary
from .run import Run
from .scenario import NIC_RULES, Scenario
from .stage import CONFIG, Stage, nfcore
from .stop import StoppedError, StopSwitch
from .view import View, make_view, print_summary

REQUESTS, CHAOS_REQUESTS, FLOWS_REQUESTS = 12_000, 6_000, 2_000


class Strategy(StrEnum):
    """What a mark stands for."""

    FLOW_ID = "flow-id"
    DEST_ID = "dest-id"


def hints(stage: Stage) -> str:
    """Return commands to try while the demo stays up."""
    lab = stage.lab
    inside = "nsenter --net=/run/netns/" + lab.prefix
    command = nfcore()[0]
    entries = f"\n  {command} flow list -c {stage.config}" if stage.config == FLOWS_CONFIG else ""
    return f"""
The lab stays up until Ctrl-C. In another terminal, as root:

  {inside}client curl http://{VIP4}/            # the answer has the real, your address and port
  {inside}client curl -g 'http://[{VIP6}]/'
  {command} stats {stage.config}{entries}
  {inside}gw tcpdump -ni net0                   # to the balancer and, encapsulated, back
  {inside}real1 tcpdump -ni eth0                # at a real, after decapsulation
  bpftool map list                              # {stage.pins} holds the emulated NIC's
"""


@dataclass(frozen=True)
class Options:
    """The options of the command line; `requests` None: the default of the run."""

    strategy: str | None
    requests: int | None
    chaos: bool
    flows: bool
    keep: bool
    picture: Path | None = None
    """SVG file for the output of `nfcore top` during the run."""


def perform(console: Console, view: View, stop: StopSwitch, options: Options) -> Summary:
    """Build, run, prove, remove. Raises nfcore's errors and StoppedError, after everything is removed."""
    lab = Lab()
    settings = tomllib.loads(CONFIG.read_text())
    host_state = HostState(Path(settings["nf"]["socket"]), Path(settings["softnic"]["pins"]["eth1"]))
    with contextlib.ExitStack() as exits:
        exits.enter_context(host_state)
        scenario = Scenario(CONFIG, SCRATCH / "chaos.toml") if options.chaos else None
        if scenario:
            stage = Stage(lab, stop, config=scenario.path, strategy=options.strategy, rules=NIC_RULES)
        else:
            stage = Stage(lab, stop, config=FLOWS_CONFIG if options.flows else CONFIG, strategy=options.strategy)
        view.print_line("building the lab: client, gateway, emulated NIC, balancer, three reals")
        exits.enter_context(lab)
        view.print_line(f"starting the reals and nfcore run {stage.config.name} (strategy {stage.strategy})")
        exits.enter_context(stage)
        with view:
            if scenario:
                summary = Chaos(stage, view, scenario, options.requests or CHAOS_REQUESTS).run()
            elif options.flows:
                summary = Flows(stage, view, options.requests or FLOWS_REQUESTS).run()
            else:
                summary = Run(stage, view, options.requests or REQUESTS, options.picture).traffic()
        objects = KernelObjects.of(lab)
        print_summary(console, summary)
        if options.keep:
            view.print_line(hints(stage))
            stop.wait()
    summary.left_behind = [*lab.leftovers(), *host_state.left(), *objects.left()]
    return summary


def main(
    context: typer.Context,
    strategy: Annotated[
        Strategy | None, typer.Option(help="What a mark stands for (default: as in examples/demo.toml).")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up after the run until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only the summary on standard output, as one JSON object.")
    ] = False,
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Disturb the balancer during the run: full tables, kills, lost rules, …")
    ] = False,
    flows: Annotated[
        bool, typer.Option("--flows", help="Some clients flood: an application has the NIC drop their packets.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the output of nfcore top as SVG; not with --chaos or --flows."),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=8,
            max=1_000_000,
            help=f"HTTP requests, at least (default {REQUESTS:,}; chaos {CHAOS_REQUESTS:,}; flows {FLOWS_REQUESTS:,}).",
        ),
    ] = None,
) -> None:
    """Run an L4 load balancer behind an emulated NIC, send real HTTP through it, and prove that all went right.

    Exit status: 0 all claims held; 1 one did not, or the demo could not run; 130 or 143 stopped by a signal.
    """
    stop: StopSwitch = context.obj
    console = Console(stderr=as_json)
    view = make_view(console)
    try:
        if os.geteuid() != 0:
            raise HostError("the demo needs root (network namespaces, XDP): run sudo ./demo.sh")
        given = [name for name, is_given in (("picture", picture), ("chaos", chaos), ("flows", flows)) if is_given]
        if len(given) > 1:
            raise HostError(f"--{' and --'.join(given)} do not go together: use one of them")
        summary = perform(console, view, stop, Options(strategy, requests, chaos, flows, keep, picture))
        if as_json:
            print(json.dumps(summary.as_json()))
        if summary.left_behind:
            view.print_line(f"left behind: {', '.join(summary.left_behind)}")
        else:
            view.print_line("nothing left behind: namespaces, processes, programs, maps, pins and mounts are gone")
        status = 0 if summary.ok else 1
    except NfcoreError as error:
        # After a signal the error of a command that it interrupted does not matter.
        if stop.number is None:
            print(f"demo: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_status) from error
        status = _stopped(view, stop.number)
    except StoppedError as error:
        status = _stopped(view, error.number)
    raise typer.Exit(status)


def _stopped(view: View, number: int) -> int:
    view.print_line(f"stopped by {signal.Signals(number).name}; everything was removed")
    return 128 + number
