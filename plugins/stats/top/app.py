# SPDX-License-Identifier: Apache-2.0
"""`nfcore top` at work: asks the daemon in a thread of its own, so that keys are heard whatever the daemon does."""

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

from nfcore.cli.options import ask_metrics
from nfcore.control.client import Client
from nfcore.errors import ConfigError, HostError, NfcoreError, Problem
from nfcore.text import json_text

from .keys import KeyReader, View, press
from .model import Board, History, Sample, compare
from .terminal import Terminal
from .view import draw, draw_message, names

PATIENCE = 5.0
"""Seconds that an answer may take."""
ESCAPE_WITHIN = 0.05
"""Seconds within which the rest of a key's sequence comes; after them it was the Escape key."""
FLOWS = 60
PLAIN_WIDTH, PLAIN_HEIGHT, PICTURE_HEIGHT = 100, 40, 26
"""Of a view that goes to no terminal; lines of one that is no live view."""


class Asker:
    """Asks for `top` again and again, over one connection as long as it holds."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._client: Client | None = None

    def ask(self, parameters: dict[str, Any]) -> Sample:
        """Give one sample. HostError: there is none now."""
        try:
            if self._client is None:
                self._client = Client(self._socket, PATIENCE)
            client = self._client
            return Sample.read(ask_metrics(lambda: client.ask("top", **parameters), self._socket))
        except NfcoreError:
            self.close()
            raise

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
            self._client = None


class Fetcher:
    """A thread that asks every `interval` seconds, and at once when it is told to; answers come in a queue."""

    def __init__(self, socket: Path, interval: float, parameters: dict[str, Any], wake: Callable[[], None]) -> None:
        self.answers: queue.SimpleQueue[Sample | NfcoreError] = queue.SimpleQueue()
        self._asker, self._interval, self._parameters, self._wake = Asker(socket), interval, parameters, wake
        self._again, self._over = threading.Event(), False
        threading.Thread(target=self._run, name="top", daemon=True).start()

    def want(self, parameters: dict[str, Any]) -> None:
        """Ask for something else from now on, at once if it is something else."""
        if parameters != self._parameters:
            self._parameters = parameters
            self._again.set()

    def stop(self) -> None:
        """Ask no more."""
        self._over = True
        self._again.set()

    def _run(self) -> None:
        while not self._over:
            try:
                self.answers.put(self._asker.ask(dict(self._parameters)))
            except NfcoreError as error:
                self.answers.put(error)
            self._wake()
            self._again.wait(self._interval)
            self._again.clear()
        self._asker.close()


def parameters_of(view: View) -> dict[str, Any]:
    """Say what a view needs of the daemon."""
    wanted = {"match": view.text, "vip": view.vip, "reverse": view.backwards and view.focus == "flows"}
    return {"sort": view.sort_of("flows"), "limit": FLOWS} | {key: value for key, value in wanted.items() if value}


class Display:
    """What is on the screen: the last board, the view of it, and what there is to say when there is no board."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.history = self._drawn = History()
        self.board: Board | None = None
        self.message = "waiting for the daemon's answer"
        self._before: Sample | None = None
        self._least = 0.0

    def take(self, answer: Sample | NfcoreError, least: float) -> None:
        """Take an answer. least: seconds that two samples should be apart, so that rates mean something."""
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
            # Asked early, for another view: the rates of before stand, the flows are new.
            board = replace(self.board, flows=board.flows, vip=board.vip, reals=board.reals)
        if not self.view.paused or self.board is None:
            self.board, self._drawn = board, replace(self.history)

    def press(self, key: str) -> None:
        """Take a key."""
        self.view = press(self.view, key, names(self.board, self.view) if self.board else ())

    def lines(self, width: int, height: int) -> list[Text]:
        """Draw."""
        if self.board is None:
            return draw_message(self.message, width, height)
        return draw(self.board, self.view, self._drawn, width, height)


def watch(socket: Path, interval: float, view: View) -> int:
    """Show the live view until the user quits; the exit status."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise HostError("nfcore top needs a terminal to draw on; elsewhere use --once or --json")
    console = Console()
    if console.is_dumb_terminal:
        words = f"is {os.environ.get('TERM', '')!r}, a terminal that cannot be drawn on; use --once or --json"
        raise ConfigError("nfcore top", [Problem("TERM", words)])
    display, reader = Display(view), KeyReader()
    with Terminal(console) as terminal:
        fetcher = Fetcher(socket, interval, parameters_of(view), terminal.wake)
        while terminal.ended is None and not display.view.over:
            terminal.show(display.lines(*terminal.size))
            data = terminal.wait(ESCAPE_WITHIN if reader.waiting else None)
            for key in [*reader.feed(data), *(reader.flush() if reader.waiting and not data else ())]:
                display.press(key)
            while not fetcher.answers.empty():
                display.take(fetcher.answers.get(), interval / 2)
            fetcher.want(parameters_of(display.view))
        fetcher.stop()
    if terminal.ended in (None, signal.SIGINT):
        return 0
    return 128 + int(terminal.ended)


def boards(socket: Path, interval: float, view: View) -> Iterator[Board | NfcoreError]:
    """Give a board every `interval` seconds, of two samples each; the first after one interval."""
    asker, before = Asker(socket), None
    parameters = parameters_of(view)
    while True:
        began = time.monotonic()
        try:
            after = asker.ask(parameters)
            if before is not None:
                yield compare(before, after)
            before = after
        except NfcoreError as error:
            before = None
            yield error
        time.sleep(max(0.0, interval - (time.monotonic() - began)))


def once(socket: Path, interval: float, view: View, *, as_json: bool, picture: Path | None) -> None:
    """Print one view, or write it into an SVG file. NfcoreError: there is no daemon, the file cannot be written."""
    if picture is not None:
        _refuse(picture)
    board = next(boards(socket, interval, view))
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
    lines = draw(board, view, history, width, height)[:-1]  # keys mean nothing here
    while lines and not lines[-1].plain.strip():
        lines.pop()
    for line in lines:
        console.print(line, no_wrap=True, overflow="crop")
    if picture is not None:
        try:
            picture.write_text(_svg(console), encoding="utf-8")
        except OSError as error:
            raise HostError(f"--svg: cannot write {picture}: {error.strerror or error}") from None


def _refuse(picture: Path) -> None:
    """ConfigError, before the looks are taken, when the picture could not be written after them."""
    if picture.is_dir() or not picture.absolute().parent.is_dir():
        raise ConfigError(
            "nfcore top", [Problem("--svg", f"cannot write {picture}: should be a file in a folder that is there")]
        )


def _svg(console: Console) -> str:
    """Write what was printed as a picture that needs nothing of the network: rich's refers to fonts there."""
    drawn = console.export_svg(title="nfcore top", unique_id="top")
    return re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)


def stream(socket: Path, interval: float, view: View) -> None:
    """Print a JSON object every interval, for good; a failure is ``{"error": …}``."""
    for board in boards(socket, interval, view):
        told = {"error": str(board)} if isinstance(board, NfcoreError) else board.as_json()
        print(json_text(told), flush=True)
