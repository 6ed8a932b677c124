# SPDX-License-Identifier: Apache-2.0
"""What the program logs: levels, text or JSON lines, the journal's manners, and no flood of equal lines.

A line that is said again within :data:`INTERVAL` is not written but counted, and the count is told afterwards; so is
what one place in the code says beyond :data:`BURST` different lines. Call sites need not care. What an operator orders
is always written. Whatever a message holds, it is one line: only tracebacks have more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

from .text import printable

INTERVAL = 60.0
"""Seconds in which equal lines are written once."""
BURST = 20
"""Lines that one place in the code may write in that time."""
MOST_REMEMBERED = 1000
"""Different lines that are remembered."""

HOOK_TRACE = "nfcore.trace"
"""The logger of hook calls, for whoever asked to see each of them."""
AUDIT = "nfcore.audit"
"""The logger of what an operator has done: start, stop, reload, offload on or off."""
_UNFILTERED = {HOOK_TRACE, AUDIT}
"""Loggers whose lines are always written: a command that is repeated is another command."""


class Level(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Format(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


@dataclass
class _Repeat:
    since: float
    times: int = 1
    unsaid: int = 0
    example: object = None


class RepeatFilter:
    """Tells what is said too often. Thread-safe when its user is."""

    def __init__(self, interval: float, burst: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """Let a thing be said `burst` times an interval."""
        self._interval, self._burst, self._clock = interval, burst, clock
        self._said: OrderedDict[Hashable, _Repeat] = OrderedDict()

    def admit(self, key: Hashable, example: object = None) -> int | None:
        """None when `key` must not be said now; otherwise how often it was not said since the last time."""
        now, known = self._clock(), self._said.get(key)
        if known is None or now - known.since >= self._interval:
            self._said[key] = _Repeat(now)
            self._said.move_to_end(key)
            if len(self._said) > MOST_REMEMBERED:
                self._said.popitem(last=False)
            return known.unsaid if known else 0
        if known.times < self._burst:
            known.times += 1
            return 0
        known.unsaid, known.example = known.unsaid + 1, example
        return None

    @property
    def pending(self) -> bool:
        """Whether anything was not said that nobody was told of yet."""
        return any(known.unsaid for known in self._said.values())

    def overdue(self, *, all_of_them: bool = False) -> list[tuple[object, int]]:
        """Give, once, the last example of what was not said and how often, of intervals that are over (or of all)."""
        now, due = self._clock(), []
        for known in self._said.values():
            if known.unsaid and (all_of_them or now - known.since >= self._interval):
                due.append((known.example, known.unsaid))
                known.unsaid, known.example = 0, None
        return due


def with_count(words: str, times: int) -> str:
    """Add to a line how often it was not said since the last time."""
    return f"{words} ({times:,} times more since it was said last)" if times else words


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream, each that is repeated once an interval and then with its count.

    A stream whose reader is gone ends nothing: what cannot be written is lost.
    """

    def __init__(self, stream: TextIO, interval: float = INTERVAL, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self.form, self.journal = Format.TEXT, False
        self._interval = interval
        self._lines = RepeatFilter(interval, clock=clock)
        self._places = RepeatFilter(interval, BURST, clock)
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it. Never held back: debug records, traces and orders."""
        if record.levelno <= logging.DEBUG or record.name in _UNFILTERED:
            super().emit(record)
            return
        words = record.getMessage()
        times = self._lines.admit(getattr(record, "repeat_key", (record.name, record.levelno, words)), record)
        if times is None:
            self._wake_later()
        elif times:
            super().emit(_counted(record, with_count(words, times)))
        elif (others := self._places.admit((record.pathname, record.lineno), record)) is None:
            self._wake_later()
        else:
            if others:
                super().emit(_counted(record, _others(record, others)))
            super().emit(record)

    def print_user(self, level: int, words: str) -> None:
        """Write what is no line of the log; where the log is JSON, or the journal's, it has to look like one."""
        self.acquire()
        try:
            if self.form is Format.JSON:
                super().emit(logging.LogRecord("nfcore", level, __file__, 0, words, None, None))
            else:
                text = printable(words, "\n")
                _write(self.stream, _with_priority(level, text) if self.journal else text)
        finally:
            self.release()

    def _wake_later(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._interval, self.tell)
            self._timer.daemon = True
            self._timer.start()

    def tell(self, *, all_of_them: bool = False) -> None:
        """Write the counts of what was held back in intervals that are over."""
        self.acquire()
        try:
            self._timer = None
            for record, times in self._lines.overdue(all_of_them=all_of_them):
                if isinstance(record, logging.LogRecord):
                    super().emit(_counted(record, with_count(record.getMessage(), times)))
            for record, times in self._places.overdue(all_of_them=all_of_them):
                if isinstance(record, logging.LogRecord):
                    super().emit(_counted(record, _others(record, times)))
            if self._lines.pending or self._places.pending:
                self._wake_later()
        finally:
            self.release()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing: there is no place left to say it."""

    def close(self) -> None:
        """Write the counts that are due, and stop."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self.tell(all_of_them=True)
        super().close()


def _counted(record: logging.LogRecord, message: str) -> logging.LogRecord:
    """Make a record like another with a message of its own, of now."""
    return logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, message, None, None)


def _others(record: logging.LogRecord, times: int) -> str:
    return f"{times:,} lines more like this one were left out, the last: {record.getMessage()}"


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {
            "time": stamp,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        # Escaped, so that it is JSON whatever the stream's character set.
        return json.dumps(entry)


class _Text(logging.Formatter):
    """A line for people. What others have put into a message neither ends it nor steers the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return printable(super().formatException(ei), "\n")


_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def _with_priority(level: int, text: str) -> str:
    """Write each line's priority before it, as systemd-journald and the kernel read it: ``<4>``."""
    priority = next((number for least, number in _PRIORITIES if level >= least), 7)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


class _Journal(logging.Formatter):
    """Another formatter's lines, each with its priority."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return _with_priority(record.levelno, self._inner.format(record))


def goes_to_journal(stream: TextIO, told: str | None) -> bool:
    """Whether a stream is the journal's, as ``JOURNAL_STREAM`` (device and inode, or None) tells of a service."""
    try:
        there = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return told == f"{there.st_dev}:{there.st_ino}"


def make_handler(form: Format, stream: TextIO, *, journal: bool) -> LogHandler:
    """Make a handler. The journal has timestamps of its own."""
    text = "%(levelname)s %(name)s: %(message)s"
    inner = _Json() if form is Format.JSON else _Text(text if journal else f"%(asctime)s {text}")
    handler = LogHandler(stream)
    handler.form, handler.journal = form, journal
    handler.setFormatter(_Journal(inner) if journal else inner)
    return handler


def set_up_logging(level: Level, form: Format) -> None:
    """Let everything be logged to standard error, once for the whole process."""
    root = logging.getLogger()
    if any(isinstance(handler, LogHandler) for handler in root.handlers):
        return
    root.addHandler(
        make_handler(form, sys.stderr, journal=goes_to_journal(sys.stderr, os.environ.get("JOURNAL_STREAM")))
    )
    root.setLevel(level.upper())


def print_user(level: int, words: str) -> None:
    """Tell the user something on standard error, whatever the level and however often it was said before."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, LogHandler)]
    for handler in handlers:
        handler.print_user(level, words)
    if not handlers:
        _write(sys.stderr, printable(words, "\n"))


def _write(stream: TextIO, text: str) -> None:
    # There is no other place to say that nobody can be told.
    with contextlib.suppress(OSError, ValueError):
        print(text, file=stream, flush=True)
