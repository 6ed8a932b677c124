# SPDX-License-Identifier: Apache-2.0
"""The log: levels, text or JSON lines, priorities for the systemd journal, and a limit on repeated lines.

A line that repeats within :data:`INTERVAL` is counted instead of written; the count is written afterwards. The same
applies to the lines beyond :data:`BURST` that one place in the code logs in that time. Call sites need not care. What
an operator does is always written. Each message is one line, whatever it contains; only tracebacks have more.
"""

from __future__ import annotations

import contextlib
import io
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

from .errors import describe_error
from .text import printable

INTERVAL = 60.0
"""Seconds in which equal lines are written once."""
BURST = 20
"""Lines that one place in the code may write in that time."""
MAX_REMEMBERED = 1000
"""Different lines that are remembered."""

HOOK_TRACE = "nfcore.trace"
"""The logger of single hook calls, used when tracing is on."""
AUDIT = "nfcore.audit"
"""The logger of what an operator does: start, stop, reload, offload on or off."""
_UNFILTERED = {HOOK_TRACE, AUDIT}
"""Loggers whose lines are always written: a repeated command is a new command."""


class Level(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Format(StrEnum):
    """The format of a log line."""

    TEXT = "text"
    JSON = "json"


@dataclass
class _Repeat:
    """One key of a :class:`RepeatFilter` within one interval."""

    since: float
    admitted: int = 1
    suppressed: int = 0
    """Not reported by :meth:`RepeatFilter.take_overdue` yet."""
    example: object = None
    """The last that was suppressed."""


class RepeatFilter:
    """Limits how often the same thing is logged. Not thread-safe: its user holds a lock."""

    def __init__(self, interval: float, burst: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """Admit the same key `burst` times per interval."""
        self._interval, self._burst, self._clock = interval, burst, clock
        self._repeats: OrderedDict[Hashable, _Repeat] = OrderedDict()

    def admit(self, key: Hashable, example: object = None) -> int | None:
        """Give how often `key` was suppressed since it was last admitted; None: suppress it now, too."""
        now, known = self._clock(), self._repeats.get(key)
        if known is None or now - known.since >= self._interval:
            self._repeats[key] = _Repeat(now)
            self._repeats.move_to_end(key)
            if len(self._repeats) > MAX_REMEMBERED:
                self._repeats.popitem(last=False)
            return known.suppressed if known else 0
        if known.admitted < self._burst:
            known.admitted += 1
            return 0
        known.suppressed, known.example = known.suppressed + 1, example
        return None

    @property
    def pending(self) -> bool:
        """Whether there are suppressed things that no call has reported yet."""
        return any(known.suppressed for known in self._repeats.values())

    def take_overdue(self, *, everything: bool = False) -> list[tuple[object, int]]:
        """Give, once, the last example and the number of what was suppressed in intervals that are over (or in all)."""
        now, overdue = self._clock(), []
        for known in self._repeats.values():
            if known.suppressed and (everything or now - known.since >= self._interval):
                overdue.append((known.example, known.suppressed))
                known.suppressed, known.example = 0, None
        return overdue


def _with_count(message: str, times: int) -> str:
    """Add to a message how often it was suppressed."""
    return f"{message} ({times:,} more time{'s' * (times != 1)} since it was last logged)" if times else message


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream; a repeated line once per interval, with its count.

    A line that cannot be written is lost, such as when nobody reads the stream any more. That is no error.
    """

    def __init__(self, stream: TextIO, interval: float = INTERVAL, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self.form, self.journal = Format.TEXT, False
        self._interval = interval
        self._lines = RepeatFilter(interval, clock=clock)
        self._places = RepeatFilter(interval, BURST, clock)
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it. Debug records, hook traces and audit records are always written."""
        if record.levelno <= logging.DEBUG or record.name in _UNFILTERED:
            super().emit(record)
            return
        message = record.getMessage()
        times = self._lines.admit(getattr(record, "repeat_key", (record.name, record.levelno, message)), record)
        if times is None:
            self._start_timer()
        elif times:
            super().emit(_with_message(record, _with_count(message, times)))
        elif (others := self._places.admit((record.pathname, record.lineno), record)) is None:
            self._start_timer()
        else:
            if others:
                super().emit(_with_message(record, _similar(record, others)))
            super().emit(record)

    def print_user(self, level: int, message: str) -> None:
        """Write a message that is no log line. It looks like one where the log is JSON or goes to the journal."""
        self.acquire()
        try:
            if self.form is Format.JSON:
                super().emit(logging.LogRecord("nfcore", level, __file__, 0, message, None, None))
            else:
                text = printable(message, "\n")
                _write(self.stream, _with_priority(level, text) if self.journal else text)
        finally:
            self.release()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._interval, self.write_counts)
            self._timer.daemon = True
            self._timer.start()

    def write_counts(self, *, everything: bool = False) -> None:
        """Write the counts of the lines that were suppressed in intervals that are over (or in all)."""
        self.acquire()
        try:
            self._timer = None
            for record, times in self._lines.take_overdue(everything=everything):
                if isinstance(record, logging.LogRecord):
                    super().emit(_with_message(record, _with_count(record.getMessage(), times)))
            for record, times in self._places.take_overdue(everything=everything):
                if isinstance(record, logging.LogRecord):
                    super().emit(_with_message(record, _similar(record, times)))
            if self._lines.pending or self._places.pending:
                self._start_timer()
        finally:
            self.release()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Do nothing: there is no place to report it."""

    def close(self) -> None:
        """Write all counts, and stop."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self.write_counts(everything=True)
        super().close()


def _with_message(record: logging.LogRecord, message: str) -> logging.LogRecord:
    """Make a record like another, of the present time, with another message."""
    return logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, message, None, None)


def _similar(record: logging.LogRecord, times: int) -> str:
    lines = "similar line was" if times == 1 else "similar lines were"
    return f"{times:,} {lines} suppressed, the last: {record.getMessage()}"


class _Json(logging.Formatter):
    """Writes one JSON object per line."""

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
        # dumps escapes what is not ASCII, so that the stream's character set does not matter.
        return json.dumps(entry)


class _Text(logging.Formatter):
    """Writes lines for people. Foreign text in a message can neither end the line nor control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record. What was raised is told on its line; where, only in a log of level debug."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not shows_tracebacks():
            record = _with_message(record, f"{record.getMessage()}: {describe_error(error)}")
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return printable(super().formatException(ei), "\n")


_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def _with_priority(level: int, text: str) -> str:
    """Put the priority before each line, as systemd-journald and the kernel read it: ``<4>``."""
    priority = next((number for least, number in _PRIORITIES if level >= least), 7)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


class _Journal(logging.Formatter):
    """Adds the priority to the lines of another formatter."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return _with_priority(record.levelno, self._inner.format(record))


def goes_to_journal(stream: TextIO, journal_stream: str | None) -> bool:
    """Whether systemd connects a stream to the journal: its device and inode are in ``JOURNAL_STREAM``."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"


def make_handler(form: Format, stream: TextIO, *, journal: bool) -> LogHandler:
    """Make a handler. The journal adds timestamps itself."""
    text = "%(levelname)s %(name)s: %(message)s"
    inner = _Json() if form is Format.JSON else _Text(text if journal else f"%(asctime)s {text}")
    handler = LogHandler(stream)
    handler.form, handler.journal = form, journal
    handler.setFormatter(_Journal(inner) if journal else inner)
    return handler


def set_up_logging(level: Level, form: Format) -> None:
    """Log to standard error from now on. Further calls in the same process do nothing.

    Also what Python itself would write there: warnings, and exceptions that nobody has caught. In JSON, every line.
    """
    root = logging.getLogger()
    if any(isinstance(handler, LogHandler) for handler in root.handlers):
        return
    root.addHandler(
        make_handler(form, sys.stderr, journal=goes_to_journal(sys.stderr, os.environ.get("JOURNAL_STREAM")))
    )
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    sys.excepthook = lambda kind, error, where: report_unexpected("nfcore", error)
    threading.excepthook = lambda what: report_unexpected(
        f"thread {what.thread.name if what.thread else '?'}", what.exc_value or what.exc_type()
    )
    # Of a destructor: it follows from another error, which has been told.
    sys.unraisablehook = lambda what: logging.getLogger("nfcore").debug("in %r", what.object, exc_info=what.exc_value)
    if form is Format.JSON:
        sys.stderr = _LineLog(sys.stderr)


class _LineLog(io.TextIOBase):
    """Stands for standard error in a log of JSON: what others write there becomes one object per line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begun = stream, ""

    def write(self, text: str, /) -> int:
        """Log the lines that are complete."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                print_user(logging.ERROR, line)
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line is written when it is complete."""

    def writable(self) -> bool:
        """Tell that it can be written to."""
        return True

    def isatty(self) -> bool:
        """Tell whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Give the stream's descriptor."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return self._stream.encoding


def shows_tracebacks() -> bool:
    """Whether a text log has tracebacks: at level debug. One of JSON always has them, as a member of the object."""
    root = logging.getLogger()
    return root.isEnabledFor(logging.DEBUG) or not any(isinstance(handler, LogHandler) for handler in root.handlers)


def report_unexpected(what: str, error: BaseException) -> None:
    """Log an exception that nobody expected: the kernel's refusals with their cause, others as a fault of nfcore."""
    message = f"{what}: {describe_error(error)}"
    if not isinstance(error, OSError | MemoryError):
        message += ": this is a fault of nfcore or of a plugin"
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, LogHandler)]
    if handlers and (shows_tracebacks() or handlers[0].form is Format.JSON):
        logging.getLogger("nfcore").critical("error: %s", message, exc_info=error)
    else:
        print_user(logging.CRITICAL, f"error: {message}; nfcore --verbose COMMAND shows where it happened")


def print_user(level: int, message: str) -> None:
    """Write a message for the user to standard error, whatever its level, also if it repeats."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, LogHandler)]
    for handler in handlers:
        handler.print_user(level, message)
    if not handlers:
        _write(sys.stderr, printable(message, "\n"))


def _write(stream: TextIO, text: str) -> None:
    # Where standard error fails, there is no place to report it.
    with contextlib.suppress(OSError, ValueError):
        print(text, file=stream, flush=True)
