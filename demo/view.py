# SPDX-License-Identifier: Apache-2.0
"""Shows the demo: a live table on a terminal, plain lines elsewhere, the summary at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .counters import DaemonCounters
from .events import Event
from .proof import Summary

PHASES = {
    "start": "starting",
    "short": "short connections",
    "open": "opening kept-alive connections",
    "idle": "waiting for the rules",
    "main": "kept-alive connections",
    "close": "checking",
    "churn": "chaos",
    "flows": "actions for flows",
}
EVENTS_SHOWN = 8


@dataclass(frozen=True)
class Progress:
    """State of the traffic: requests sent (`asked`) of `total`, failed connections, answers per real, counters.

    `action` is what is being done meanwhile; `events` are over. `balanced_rate`: packets a second that reach the
    balancer.
    """

    phase: str
    total: int
    asked: int = 0
    answered: int = 0
    failed: int = 0
    reals: Mapping[str, int] = field(default_factory=dict)
    counters: DaemonCounters = field(default_factory=DaemonCounters)
    recent_share: float | None = None
    balanced_rate: float = 0.0
    action: str = ""
    events: tuple[Event, ...] = ()


class View(AbstractContextManager["View"]):
    """Shows the progress of the demo: a line per second and per phase, for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._last = 0.0
        self._events = 0

    def __exit__(self, *exception: object) -> None: ...

    def show(self, progress: Progress) -> None:
        """Print new events, and the progress at a new phase or a second after the last time."""
        for event in progress.events[self._events :]:
            self.print_line(event.line)
        self._events = len(progress.events)
        now = time.monotonic()
        if progress.phase == self._phase and now < self._last + 1:
            return
        self._phase, self._last = progress.phase, now
        split = " ".join(f"{name}={count}" for name, count in progress.reals.items())
        counters = progress.counters
        self.print_line(
            f"{PHASES[progress.phase]}: {progress.answered} of {progress.total} requests, "
            f"{progress.failed} connections failed; {split or 'no answers yet'}; flows {counters.flows}, "
            f"marks {counters.marks}, fast path {_percent(progress.recent_share)}"
            + (_flood_text(progress) if progress.phase == "flows" else "")
            + (f" – {progress.action}" if progress.action else "")
        )

    def print_line(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class TableView(View):
    """A live table, for a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def show(self, progress: Progress) -> None:
        """Show the progress."""
        self._live.update(draw(progress))

    def print_line(self, text: str) -> None:
        """Print one line that stays above the table."""
        self._console.print(text, style="dim", highlight=False, markup=False)


def make_view(console: Console) -> View:
    """Return the view that suits the console."""
    return TableView(console) if console.is_terminal else View(console)


def draw(progress: Progress) -> Panel:
    """Return the live table."""
    counts = Table.grid(padding=(0, 3))
    counts.add_column(style="dim")
    counts.add_column(justify="right", min_width=8)
    counts.add_column(style="dim")
    counts.add_column(justify="right", min_width=8)
    counters = progress.counters
    failed = Text(f"{progress.failed:,}", style="bold red" if progress.failed else "green")
    share = progress.recent_share
    fast = Text(_percent(share), style="bold green" if share is not None and share >= 0.8 else "yellow")
    counts.add_row(
        "requests", f"{progress.asked:,} of {progress.total:,}", "live flows with a rule", f"{counters.flows:,}"
    )
    counts.add_row("answered", f"{progress.answered:,}", "marks in use", f"{counters.marks:,}")
    counts.add_row("failed connections", failed, "fast path, now", fast)
    if progress.phase == "flows":
        rate, dropped = f"{progress.balanced_rate:,.0f} / s", f"{counters.dropped:,}"
        counts.add_row("packets at the balancer", rate, "dropped by the NIC", dropped)

    split = Table.grid(padding=(0, 3))
    answers = sum(progress.reals.values())
    for name, count in progress.reals.items():
        bar = ProgressBar(total=max(answers, 1), completed=count, width=40)
        split.add_row(Text(name, style="dim"), f"{count:,}", f"{count / answers:.0%}" if answers else "", bar)
    parts: list[RenderableType] = [counts, Text(""), split]
    if progress.events or progress.action:
        parts += [Text(""), _events_table(progress)]
    return Panel(Group(*parts), title=f"nfcore: {PHASES[progress.phase]}", width=110 if progress.events else 90)


def _events_table(progress: Progress) -> Table:
    """Return the last events (when, result, what was done, what was seen) and the present action."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    for event in progress.events[-EVENTS_SHOWN:]:
        text = Text(event.what).append(f"\n{event.detail}", style="dim")
        table.add_row(f"{event.at:.1f} s", _pass_or_fail(event.passed), text)
    if progress.action:
        table.add_row("now", Text("…"), Text(progress.action, style="bold"))
    return table


def _pass_or_fail(passed: bool) -> Text:
    return Text("PASS", style="bold green") if passed else Text("FAIL", style="bold red")


def print_summary(console: Console, summary: Summary) -> None:
    """Print the claims with their results, and the numbers of the run."""
    table = Table.grid(padding=(0, 2))
    for check in summary.checks:
        table.add_row(_pass_or_fail(check.passed), Text(check.claim).append(f"\n{check.detail}", style="dim"))
    console.print()
    console.print(table)
    split = ", ".join(f"{name} {count:,}" for name, count in summary.reals.items())
    short, kept = summary.connections["short"], summary.connections["kept"]
    console.print(
        f"strategy {summary.strategy}; {short:,} short and {kept:,} kept-alive connections "
        f"in {summary.seconds} s; answers: {split}; slowest request "
        f"{summary.slowest_request_ms} ms; {summary.retransmitted_segments} TCP segments sent again",
        style="dim",
        highlight=False,
        markup=False,
    )


def _flood_text(progress: Progress) -> str:
    return (
        f"; {progress.balanced_rate:,.0f} packets/s at the balancer, {progress.counters.dropped:,} dropped by the NIC"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
