# SPDX-License-Identifier: Apache-2.0
"""What a person sees: a live table on a terminal, plain lines elsewhere, the summary at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .events import Event
from .meters import Meters
from .proof import Summary

PHASES = {
    "start": "starting",
    "short": "short connections",
    "open": "opening kept-alive connections",
    "idle": "waiting for the rules",
    "main": "kept-alive connections",
    "close": "checking",
    "churn": "chaos",
}
EVENTS_SHOWN = 8


@dataclass(frozen=True)
class Picture:
    """One moment: requests asked of `total`, failed connections, answers per real, the daemon's meters.

    `doing` is what is being done to the load balancer, `events` what has been.
    """

    phase: str
    total: int
    asked: int = 0
    answered: int = 0
    failed: int = 0
    reals: Mapping[str, int] = field(default_factory=dict)
    meters: Meters = field(default_factory=Meters)
    recent_share: float | None = None
    doing: str = ""
    events: tuple[Event, ...] = ()


class View(Protocol):
    """Shows pictures while the demo runs."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def show(self, picture: Picture) -> None:
        """Show this moment."""

    def say(self, text: str) -> None:
        """Say one line that stays."""


class TableView:
    """A table that renews itself, for a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, picture: Picture) -> None:
        """Show this moment."""
        self._live.update(draw(picture))

    def say(self, text: str) -> None:
        """Say one line that stays above the table."""
        self._console.print(text, style="dim", highlight=False, markup=False)


class LineView:
    """A line per second and per phase, for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._last = 0.0
        self._events = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def show(self, picture: Picture) -> None:
        """Print what has happened, and the moment unless another of its phase was printed within the last second."""
        for event in picture.events[self._events :]:
            self.say(event.line)
        self._events = len(picture.events)
        now = time.monotonic()
        if picture.phase == self._phase and now < self._last + 1:
            return
        self._phase, self._last = picture.phase, now
        split = " ".join(f"{name}={count}" for name, count in picture.reals.items())
        meters = picture.meters
        self.say(
            f"{PHASES[picture.phase]}: {picture.answered} of {picture.total} requests, "
            f"{picture.failed} connections failed; {split or 'no answers yet'}; flows {meters.flows}, "
            f"marks {meters.marks}, fast path {_percent(picture.recent_share)}"
            + (f" – {picture.doing}" if picture.doing else "")
        )

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def make_view(console: Console) -> View:
    """The view that suits the console."""
    return TableView(console) if console.is_terminal else LineView(console)


def draw(picture: Picture) -> Panel:
    """The live table of one moment."""
    figures = Table.grid(padding=(0, 3))
    figures.add_column(style="dim")
    figures.add_column(justify="right", min_width=8)
    figures.add_column(style="dim")
    figures.add_column(justify="right", min_width=8)
    meters = picture.meters
    failed = Text(f"{picture.failed:,}", style="bold red" if picture.failed else "green")
    share = picture.recent_share
    fast = Text(_percent(share), style="bold green" if share is not None and share >= 0.8 else "yellow")
    figures.add_row(
        "requests", f"{picture.asked:,} of {picture.total:,}", "live flows with a rule", f"{meters.flows:,}"
    )
    figures.add_row("answered", f"{picture.answered:,}", "marks in use", f"{meters.marks:,}")
    figures.add_row("failed connections", failed, "fast path, now", fast)

    split = Table.grid(padding=(0, 3))
    answers = sum(picture.reals.values())
    for name, count in picture.reals.items():
        bar = ProgressBar(total=max(answers, 1), completed=count, width=40)
        split.add_row(Text(name, style="dim"), f"{count:,}", f"{count / answers:.0%}" if answers else "", bar)
    parts: list[RenderableType] = [figures, Text(""), split]
    if picture.events or picture.doing:
        parts += [Text(""), _story(picture)]
    return Panel(Group(*parts), title=f"nfcore: {PHASES[picture.phase]}", width=110 if picture.events else 90)


def _story(picture: Picture) -> Table:
    """The last events: when, whether as claimed, what was done, what was seen; and what is being done."""
    story = Table.grid(padding=(0, 2))
    story.add_column(justify="right", style="dim", no_wrap=True)
    story.add_column(no_wrap=True)
    for event in picture.events[-EVENTS_SHOWN:]:
        words = Text(event.what).append(f"\n{event.detail}", style="dim")
        story.add_row(f"{event.at:.1f} s", _verdict(event.passed), words)
    if picture.doing:
        story.add_row("now", Text("…"), Text(picture.doing, style="bold"))
    return story


def _verdict(passed: bool) -> Text:
    return Text("PASS", style="bold green") if passed else Text("FAIL", style="bold red")


def print_summary(console: Console, summary: Summary) -> None:
    """What was proven, claim by claim, and the figures around it."""
    table = Table.grid(padding=(0, 2))
    for check in summary.checks:
        table.add_row(_verdict(check.passed), Text(check.claim).append(f"\n{check.detail}", style="dim"))
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


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
