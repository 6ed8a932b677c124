# SPDX-License-Identifier: Apache-2.0
"""Runs `nfcore top`: a thread polls the daemon, so that keys work also while the daemon does not answer."""

from __future__ import annotations

import io
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from nfcore.cli.options import request_metrics
from nfcore.control.client import Client
from nfcore.errors import ConfigError, HostError, NfcoreError, Problem
from nfcore.refusals import explain
from nfcore.text import json_text

from .keys import KeyReader, View, press
from .model import Board, History, Sample, compare
from .terminal import Terminal
from .view import draw, draw_message, names

TIMEOUT = 5.0
"""Seconds that an answer may take."""
ESCAPE_TIMEOUT = 0.05
"""Seconds to wait for the rest of a key's sequence; after that it was the Escape key."""
FLOWS = 60
PLAIN_WIDTH, PLAIN_HEIGHT, PICTURE_HEIGHT = 100, 40, 26
"""Columns without a terminal; lines of `--once`, and of `--once --svg`."""
Find = Callable[[], Path]
"""Gives the daemon's socket; called for each connection, as the daemon may be started later."""


class TopClient:
    """Calls the daemon's method ``top``, over one connection as long as that works."""

    def __init__(self, find: Find) -> None:
        self._find, self._socket = find, Path()
        self._client: Client | None = None

    def fetch(self, parameters: dict[str, Any]) -> Sample:
        """Return one sample. HostError: the daemon gives none now."""
        try:
            if self._client is None:
                self._socket = self._find()
                self._client = Client(self._socket, TIMEOUT)
            client = self._client
            return Sample.read(request_metrics(lambda: client.request("top", **parameters), self._socket))
        except NfcoreError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None


class Poller:
    """A thread that fetches a sample every `interval` seconds into a queue, and at once when the parameters change."""

    def __init__(self, find: Find, interval: float, parameters: dict[str, Any], wake: Callable[[], None]) -> None:
        self.answers: queue.SimpleQueue[Sample | NfcoreError] = queue.SimpleQueue()
        self._client, self._interval, self._parameters, self._wake = TopClient(find), interval, parameters, wake
        self._now, self._stopped = threading.Event(), False
        threading.Thread(target=self._run, name="top", daemon=True).start()

    def set_parameters(self, parameters: dict[str, Any]) -> None:
        """Use these parameters from now on; if they differ, fetch at once."""
        if parameters != self._parameters:
            self._parameters = parameters
            self._now.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._now.set()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self.answers.put(self._client.fetch(dict(self._parameters)))
            except NfcoreError as error:
                self.answers.put(error)
            self._wake()
            self._now.wait(self._interval)
            self._now.clear()
        self._client.close()


def parameters_of(view: View) -> dict[str, Any]:
    """Return the parameters of ``top`` that a view needs."""
    optional = {"match": view.text, "vip": view.vip, "reverse": view.backwards and view.focus == "flows"}
    optional["ended"] = view.ended
    return {"sort": view.sort_of("flows"), "limit": FLOWS} | {key: value for key, value in optional.items() if value}


class Display:
    """The content of the screen: the last board and the view of it, or a message while there is no board."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.history = self._drawn = History()
        self.board: Board | None = None
        self.message = "waiting for the daemon's answer"
        self._before: Sample | None = None

    def take(self, answer: Sample | NfcoreError, least: float) -> None:
        """Show an answer. least: seconds between two samples below which rates are too inexact to show."""
        if isinstance(answer, NfcoreError):
            self.board, self._before, self.message = None, None, str(answer)
            return
        before = self._before
        if before is not None and before.answer["run"] != answer.answer["run"]:
            self.history = History()
        board = compare(before, answer)
        if before is None or board.seconds is None or board.seconds >= least:
            self._before = answer
            self.history.add(board.fast_share)
        elif self.board is not None:
            # Fetched early, for another view: keep the rates, take the flows.
            board = replace(self.board, flows=board.flows, vip=board.vip, reals=board.reals)
        if not self.view.paused or self.board is None:
            self.board, self._drawn = board, replace(self.history)
            self.view = self.view.fitting(has_rows=bool(board.vips or board.reals))

    def press(self, key: str) -> None:
        """Handle a key."""
        self.view = press(self.view, key, names(self.board, self.view) if self.board else ())

    def lines(self, width: int, height: int) -> list[Text]:
        """Return the content as lines."""
        if self.board is None:
            return draw_message(self.message, width, height)
        return draw(self.board, self.view, self._drawn, width, height)


def watch(find: Find, interval: float, view: View) -> int:
    """Show the live view until the user quits; returns the exit status."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise HostError("nfcore top needs a terminal to draw on; elsewhere use --once or --json")
    console = Console()
    if console.is_dumb_terminal:
        problem = f"is {os.environ.get('TERM', '')!r}, a terminal that cannot be drawn on; use --once or --json"
        raise ConfigError("nfcore top", [Problem("TERM", problem)])
    display, reader = Display(view), KeyReader()
    with Terminal(console) as terminal:
        poller = Poller(find, interval, parameters_of(view), terminal.wake)
        while terminal.ended is None and not display.view.over:
            terminal.show(display.lines(*terminal.size))
            data = terminal.wait(ESCAPE_TIMEOUT if reader.waiting else None)
            for key in [*reader.feed(data), *(reader.flush() if reader.waiting and not data else ())]:
                display.press(key)
            while not poller.answers.empty():
                display.take(poller.answers.get(), interval / 2)
            poller.set_parameters(parameters_of(display.view))
        poller.stop()
    if terminal.ended in (None, signal.SIGINT):
        return 0
    return 128 + int(terminal.ended)


def boards(find: Find, interval: float, view: View) -> Iterator[Board | NfcoreError]:
    """Yield a board, of two samples, every `interval` seconds; the first after one interval."""
    client, before = TopClient(find), None
    parameters = parameters_of(view)
    while True:
        began = time.monotonic()
        try:
            after = client.fetch(parameters)
            if before is not None:
                yield compare(before, after)
            before = after
        except NfcoreError as error:
            before = None
            yield error
        time.sleep(max(0.0, interval - (time.monotonic() - began)))


def once(find: Find, interval: float, view: View, *, as_json: bool, picture: Path | None) -> None:
    """Print one view, or write it as an SVG file. NfcoreError: there is no daemon, or the file cannot be written."""
    if picture is not None:
        _check_picture(picture)
    board = next(boards(find, interval, view))
    if isinstance(board, NfcoreError):
        raise board
    if as_json:
        print(json_text(board.as_json()))
        return
    width = Console().width if sys.stdout.isatty() and picture is None else PLAIN_WIDTH
    height = PLAIN_HEIGHT if picture is None else PICTURE_HEIGHT
    console = Console(width=width) if picture is None else Console(file=io.StringIO(), record=True, width=width)
    history = History()
    history.add(board.fast_share)
    view = view.fitting(has_rows=bool(board.vips or board.reals))
    lines = draw(board, view, history, width, height)[:-1]  # without the line of keys
    while lines and not lines[-1].plain.strip():
        lines.pop()
    for line in lines:
        console.print(line, no_wrap=True, overflow="crop")
    if picture is not None:
        try:
            picture.write_text(_svg(console), encoding="utf-8")
        except OSError as error:
            raise HostError(f"--svg: cannot write {picture}: {explain(error, picture)}") from None


def _check_picture(picture: Path) -> None:
    """ConfigError, before any sample is fetched, when the picture cannot be written."""
    if picture.is_dir() or not picture.absolute().parent.is_dir():
        raise ConfigError(
            "nfcore top", [Problem("--svg", f"cannot write {picture}: should be a file in an existing folder")]
        )


def _svg(console: Console) -> str:
    """Return the printed text as SVG, without the links to fonts on the network that rich puts there."""
    svg = console.export_svg(title="nfcore top", unique_id="top")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def stream(find: Find, interval: float, view: View) -> None:
    """Print a JSON object every interval, without end; a failure is ``{"error": …}``."""
    for board in boards(find, interval, view):
        row = {"error": str(board)} if isinstance(board, NfcoreError) else board.as_json()
        print(json_text(row), flush=True)
