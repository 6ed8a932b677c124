# SPDX-License-Identifier: Apache-2.0
"""`nfcore bench`: shows progress, then prints tables or one JSON object, and writes the report."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from ..bench.report.html import render
from ..bench.report.tables import TextTable, tables
from ..bench.results import Results
from ..bench.run import Bench, choose_workload, stop_on_signals
from ..bench.sizes import PARTS, Sizes
from ..errors import ConfigError, HostError, Problem
from ..refusals import explain
from .tables import show


def read_parts(text: str) -> list[str]:
    """Return the parts of a comma-separated list, in the order of measuring. ConfigError: one is unknown."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(PARTS):
        message = f"is {text!r}; should be some of {', '.join(PARTS)}, with commas between them"
        raise ConfigError("nfcore bench", [Problem("--parts", message)])
    return [part for part in PARTS if part in names]


class ProgressDisplay:
    """Shows what is being measured: a progress bar on a terminal, one line per step elsewhere."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None) if progress else None

    def step(self, name: str, number: int, count: int) -> None:
        """Show that a step begins; steps are numbered from 0."""
        if self._progress is None or self._task is None:
            print(f"[{number + 1}/{count}] {name}", file=sys.stderr, flush=True)
            return
        self._progress.update(self._task, total=count, completed=number, description=name)
        self._progress.refresh()

    def detail(self, name: str, text: str) -> None:
        """Show what happens within the step `name`, on a terminal only."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"{name}: {text}")
            self._progress.refresh()


@contextmanager
def progress_display() -> Iterator[ProgressDisplay]:
    """Give a display on standard error, for the time of a `with` block."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressDisplay(None)
        return
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    # No refresh thread: the benchmark forks processes meanwhile.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        yield ProgressDisplay(progress)


def run_bench(parts: list[str], sizes: Sizes, nf: str | None, report: Path, *, as_json: bool) -> None:
    """Measure, write the report, print tables or JSON. HostError when the report cannot be written."""
    if logging.getLogger().level > logging.DEBUG:
        # Dozens of engines and daemons start and stop; what matters is in the results.
        logging.getLogger().setLevel(logging.ERROR)
    _check_writable(report)
    with stop_on_signals(), progress_display() as display:
        name, workload = choose_workload(nf)
        results = Bench(name, workload, sizes, display.detail).run(parts, display.step)
    _write(report, render(results))
    if as_json:
        print(json.dumps(results.as_json()))
        return
    print_tables(results)
    print(f"report: {report.absolute()}")


def _check_writable(report: Path) -> None:
    """HostError, before the long run, when the report could not be written after it."""
    if not os.access(report if report.exists() else report.absolute().parent, os.W_OK) or report.is_dir():
        raise HostError(f"--report: cannot write {report}: should be a file in an existing folder")


def _write(report: Path, text: str) -> None:
    try:
        report.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HostError(f"--report: cannot write {report}: {explain(error, report)}") from None


def print_tables(results: Results) -> None:
    """Print machine, tables, profiles of missed targets, and notes."""
    machine = results.machine
    jit = ", ".join(f"{name} {value}" for name, value in machine["jit"].items())
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}")
    print(f"load {', '.join(map(str, machine['load_average']))}; {jit}; {results.size} run, {results.seconds:g} s")
    for table in tables(results):
        print(f"\n{table.title}")
        show(_rich(table))
    for target in results.targets:
        if not target.met and target.profile:
            print(f"\n{target.name}: where the time goes\n{target.profile}")
    print("", *(f"- {note}" for note in results.notes), "", sep="\n")


def _rich(table: TextTable) -> RichTable:
    rich_table = RichTable(box=None, pad_edge=False)
    for column, head in enumerate(table.heads):
        rich_table.add_column(head, justify="left" if column in table.text_columns else "right")
    for row in table.rows:
        rich_table.add_row(*row)
    return rich_table
