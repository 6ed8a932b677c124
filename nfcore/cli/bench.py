# SPDX-License-Identifier: Apache-2.0
"""`nfcore bench` as a person meets it: progress, tables, a report, one JSON object."""

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
from ..bench.run import Bench, choose_workload, stopping_in_order
from ..bench.sizes import PARTS, Sizes
from ..errors import ConfigError, HostError, Problem
from .tables import show


def read_parts(text: str) -> list[str]:
    """Give the parts of a comma-separated list, in the order of measuring; ConfigError names an unknown one."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if word not in PARTS]
    if wrong or not words:
        message = f"is {text!r}; should be some of {', '.join(PARTS)}, with commas between them"
        raise ConfigError("nfcore bench", [Problem("--parts", message)])
    return [part for part in PARTS if part in words]


class Announcer:
    """Tells what is being measured: a bar on a terminal, a line a step elsewhere."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None) if progress else None

    def step(self, name: str, number: int, count: int) -> None:
        """Say that a step begins."""
        if self._progress is None or self._task is None:
            print(f"[{number + 1}/{count}] {name}", file=sys.stderr, flush=True)
            return
        self._progress.update(self._task, total=count, completed=number, description=name)
        self._progress.refresh()

    def say(self, name: str, words: str) -> None:
        """Say what goes on within a step."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"{name}: {words}")
            self._progress.refresh()


@contextmanager
def announcing() -> Iterator[Announcer]:
    """Give an announcer for standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Announcer(None)
        return
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    # Without a thread that refreshes: processes are forked meanwhile.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        yield Announcer(progress)


def run_bench(parts: list[str], sizes: Sizes, nf: str | None, report: Path, *, as_json: bool) -> None:
    """Measure, write the report, print tables or JSON. HostError when the report cannot be written."""
    if logging.getLogger().level > logging.DEBUG:
        # Engines and daemons by the dozen come and go; what matters of them is in the result.
        logging.getLogger().setLevel(logging.ERROR)
    _refuse(report)
    with stopping_in_order(), announcing() as announcer:
        name, workload = choose_workload(nf)
        results = Bench(name, workload, sizes, announcer.say).run(parts, announcer.step)
    _write(report, render(results))
    if as_json:
        print(json.dumps(results.as_json()))
        return
    print_tables(results)
    print(f"report: {report.absolute()}")


def _refuse(report: Path) -> None:
    """HostError before the run when the report could not be written after it."""
    if not os.access(report if report.exists() else report.absolute().parent, os.W_OK) or report.is_dir():
        raise HostError(f"--report: cannot write {report}: should be a file in a folder that is there")


def _write(report: Path, text: str) -> None:
    try:
        report.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HostError(f"--report: cannot write {report}: {error.strerror or error}") from None


def print_tables(results: Results) -> None:
    """Print everything for people."""
    machine = results.machine
    jit = ", ".join(f"{name} {value}" for name, value in machine["jit"].items())
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}")
    print(f"load {', '.join(map(str, machine['load_average']))}; {jit}; {results.size} run, {results.seconds:g} s")
    for table in tables(results):
        print(f"\n{table.title}")
        show(_rich(table))
    for bar in results.bars:
        if not bar.met and bar.profile:
            print(f"\n{bar.name}: where the time goes\n{bar.profile}")
    print("", *(f"- {note}" for note in results.notes), "", sep="\n")


def _rich(table: TextTable) -> RichTable:
    made = RichTable(box=None, pad_edge=False)
    for column, head in enumerate(table.heads):
        made.add_column(head, justify="left" if column in table.text_columns else "right")
    for row in table.rows:
        made.add_row(*row)
    return made
