# SPDX-License-Identifier: Apache-2.0
"""The log handler: what it writes, and in which form."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.hooks.manager import trace_log
from nfcore.logs import AUDIT, BURST, MAX_REMEMBERED, Format, LogHandler, RepeatFilter, goes_to_journal, make_handler


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A logger with a LogHandler, its clock, and the lines that it has written."""

    def __init__(self) -> None:
        self.stream, self.clock = io.StringIO(), Clock()
        self.handler = LogHandler(self.stream, 1000.0, self.clock)
        self.logger = logging.Logger("nfcore.test")
        self.logger.addHandler(self.handler)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_a_repeated_line_is_written_once_and_then_counted() -> None:
    log = Log()
    for _ in range(1000):
        log.logger.warning("%s: the backend failed", "eth1")
    assert log.lines == ["eth1: the backend failed"]
    log.clock.now += 1000
    log.logger.warning("%s: the backend failed", "eth1")
    assert log.lines[1:] == ["eth1: the backend failed (999 more times since it was last logged)"]


def test_one_more_time_is_one() -> None:
    log = Log()
    for _ in range(2):
        log.logger.error("broken")
    log.handler.write_counts(everything=True)
    assert log.lines == ["broken", "broken (1 more time since it was last logged)"]


def test_the_count_is_written_also_when_nothing_more_is_logged() -> None:
    log = Log()
    for _ in range(3):
        log.logger.error("broken")
    log.handler.write_counts()
    assert log.lines == ["broken"]  # the interval is not over
    log.clock.now += 1000
    log.handler.write_counts()
    log.handler.write_counts()
    assert log.lines == ["broken", "broken (2 more times since it was last logged)"]


def test_a_place_that_logs_different_lines_is_limited() -> None:
    log = Log()
    for number in range(1000):
        log.logger.warning("flow %d failed", number)
    assert log.lines == [f"flow {number} failed" for number in range(BURST)]
    log.logger.warning("something else")
    log.handler.close()
    assert log.lines[BURST:] == [
        "something else",
        f"{1000 - BURST} similar lines were suppressed, the last: flow 999 failed",
    ]


def test_levels_are_counted_apart_and_debug_has_no_limit() -> None:
    log = Log()
    for _ in range(3):
        log.logger.info("same")
        log.logger.error("same")
        log.logger.debug("same")
    assert log.lines == ["same", "same", "same", "same", "same"]


def test_hook_traces_have_no_limit() -> None:
    log = Log()
    log.logger.name = trace_log.name
    for _ in range(100):
        log.logger.info("flow: on_new_flow(5 batch) → None in 0.1 ms")
    assert len(log.lines) == 100


def test_audit_lines_have_no_limit() -> None:
    log = Log()
    log.logger.name = AUDIT
    for _ in range(90):
        log.logger.info("offloading is switched on")
    assert len(log.lines) == 90


def test_a_timer_writes_the_count() -> None:
    script = (
        "import logging, sys, time; from nfcore.logs import LogHandler;"
        "handler = LogHandler(sys.stderr, 0.2); log = logging.getLogger('nfcore'); log.addHandler(handler);"
        "[log.warning('again') for _ in range(5)]; time.sleep(5)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "again\n"
        assert running.stderr.readline() == "again (4 more times since it was last logged)\n"
        running.kill()


def test_counts_are_written_at_the_end_of_the_process() -> None:
    script = (
        "import logging; from nfcore.logs import *; set_up_logging(Level.INFO, Format.JSON);"
        "[logging.getLogger('nfcore').warning('again') for _ in range(5)]"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert messages == ["again", "again (4 more times since it was last logged)"]


@given(logged=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 3)), max_size=60), burst=st.integers(1, 3))
def test_no_line_is_lost_without_a_count(logged: list[tuple[int, float]], burst: int) -> None:
    clock = Clock()
    repeats = RepeatFilter(5.0, burst, clock)
    written = counted = 0
    for key, pause in logged:
        clock.now += pause
        times = repeats.admit(key, key)
        written += times is not None
        counted += times or 0
    counted += sum(times for _, times in repeats.take_overdue(everything=True))
    assert written + counted == len(logged)
    assert not repeats.pending


def test_the_number_of_remembered_keys_is_limited() -> None:
    repeats = RepeatFilter(5.0, clock=Clock())
    for number in range(2 * MAX_REMEMBERED):
        assert repeats.admit(number) == 0
    assert repeats.admit(0) == 0 and repeats.admit(2 * MAX_REMEMBERED - 1) is None


def test_foreign_text_stays_on_one_line_and_cannot_control_the_terminal() -> None:
    handler = make_handler(Format.TEXT, io.StringIO(), journal=False)
    text = handler.format(record(logging.ERROR, "plugin acme: \x1b[2J\x1b]0;owned\x07\nERROR forged: line"))
    assert text.endswith(r"plugin acme: \x1b[2J\x1b]0;owned\x07\nERROR forged: line")


def record(level: int, message: str, error: BaseException | None = None) -> logging.LogRecord:
    about = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("nfcore.engine", level, __file__, 1, message, None, about)


def test_a_line_of_text() -> None:
    handler = make_handler(Format.TEXT, io.StringIO(), journal=False)
    text = handler.format(record(logging.WARNING, "message"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING nfcore\.engine: message", text)


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_the_journal_gets_priorities_and_no_timestamps(level: int, priority: int) -> None:
    handler = make_handler(Format.TEXT, io.StringIO(), journal=True)
    name = logging.getLevelName(level)
    assert handler.format(record(level, "a\nb")) == f"<{priority}>{name} nfcore.engine: a\\nb"
    try:
        raise LookupError("x\x1b[2J")
    except LookupError as error:
        lines = handler.format(record(level, "message", error)).split("\n")
    assert len(lines) > 3 and all(line.startswith(f"<{priority}>") for line in lines)
    assert lines[-1] == rf"<{priority}>LookupError: x\x1b[2J"


@pytest.mark.parametrize("journal", [False, True])
def test_a_line_of_json(journal: bool) -> None:
    handler = make_handler(Format.JSON, io.StringIO(), journal=journal)
    try:
        raise LookupError("lost → found")
    except LookupError as error:
        text = handler.format(record(logging.ERROR, "two\nlines", error))
    assert text.startswith("<3>{") == journal and "\n" not in text
    entry = json.loads(text.removeprefix("<3>"))
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "nfcore.engine", "two\nlines")
    assert "LookupError: lost → found" in entry["traceback"]
    assert entry["time"].endswith("Z")


def test_a_stream_of_the_journal_is_recognised(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        there = os.fstat(stream.fileno())
        assert goes_to_journal(stream, f"{there.st_dev}:{there.st_ino}")
        assert not goes_to_journal(stream, f"{there.st_dev}:{there.st_ino + 1}")
        assert not goes_to_journal(stream, None)
    assert not goes_to_journal(io.StringIO(), "1:2")


@pytest.mark.parametrize("form", list(Format))
def test_a_service_writes_for_the_journal(tmp_path: Path, form: Format) -> None:
    with (tmp_path / "log").open("w+") as stream:
        there = os.fstat(stream.fileno())
        script = f"import logging; from nfcore.logs import *; set_up_logging(Level.WARNING, Format.{form.name});"
        script += "logging.getLogger('nfcore').warning('one'); logging.getLogger('nfcore').info('two');"
        script += "print_user(logging.INFO, 'ready: three'); print_user(logging.ERROR, 'error: four\\nfive')"
        environment = os.environ | {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}
        subprocess.run([sys.executable, "-c", script], stderr=stream, env=environment, check=True)
        stream.seek(0)
        lines = stream.read().splitlines()
    if form is Format.TEXT:
        assert lines == ["<4>WARNING nfcore: one", "<6>ready: three", "<3>error: four", "<3>five"]
    else:
        messages = [(line[:3], json.loads(line[3:])["message"]) for line in lines]
        assert messages == [("<4>", "one"), ("<6>", "ready: three"), ("<3>", "error: four\nfive")]


def test_a_closed_standard_error_is_no_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    script = "import logging; from nfcore.logs import *; set_up_logging(Level.INFO, Format.TEXT);"
    script += "[logging.getLogger('nfcore').error('message %d', n) for n in range(5)]; print('alive')"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=write, text=True, check=False)
    os.close(write)
    assert done.stdout == "alive\n"


def test_lines_with_one_repeat_key_are_repeats_of_the_first() -> None:
    log = Log()
    for number in range(5):
        log.logger.error("plugin acme: no answer in %d s", number, extra={"repeat_key": "no answer"})
    log.clock.now += 1000
    log.handler.write_counts()
    assert log.lines == [
        "plugin acme: no answer in 0 s",
        "plugin acme: no answer in 4 s (4 more times since it was last logged)",
    ]
