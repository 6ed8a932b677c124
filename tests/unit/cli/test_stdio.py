# SPDX-License-Identifier: Apache-2.0
"""Output of commands: to a full or closed output, in any character set, with any text."""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.control.server import ControlServer
from nfcore.text import json_text, printable
from tests.paths import ROOT

NFCORE = Path(sys.executable).with_name("nfcore")
EXAMPLE = ROOT / "examples/demo.toml"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"NFCORE": str(NFCORE), "EXAMPLE": str(EXAMPLE)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("command", ["--help", "plugins", "check $EXAMPLE --resolved"])
@pytest.mark.parametrize(
    ("where", "reason"), [(">/dev/full", "cannot be written: No space left on device"), (">&-", "is closed")]
)
def test_an_output_that_cannot_be_written_is_reported(command: str, where: str, reason: str) -> None:
    done = shell(f"$NFCORE {command} {where}")
    assert (done.returncode, done.stderr) == (1, f"error: standard output: {reason}\n")


def test_a_closed_standard_error_ends_nothing() -> None:
    assert "no mistakes found" in shell("$NFCORE check $EXAMPLE 2>&-").stdout
    done = shell("$NFCORE check /nonexistent.toml 2>&- <&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    assert shell("$NFCORE check /nonexistent.toml 2>/dev/full").returncode == 2


def test_a_closed_standard_input_is_no_terminal() -> None:
    done = shell("$NFCORE top --socket /x <&-")
    assert done.returncode == 1 and "needs a terminal to draw on" in done.stderr


def test_a_non_blocking_output_is_waited_for() -> None:
    read, write = os.pipe()
    room = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write, False)
    os.write(write, b"-" * room)  # full until somebody reads
    with subprocess.Popen([NFCORE, "plugins", "--json"], stdout=write, stderr=subprocess.PIPE) as running:
        os.close(write)
        time.sleep(3.0)
        with open(read, "rb") as reader:  # noqa: PTH123 - a pipe
            assert json.loads(reader.read()[room:])["plugins"]
        assert running.stderr is not None and running.stderr.read() == b""
    assert running.returncode == 0


def test_no_descriptor_is_left_free_for_a_socket() -> None:
    script = "from nfcore.cli.stdio import prepare_streams; prepare_streams(); import os; os._exit(os.open('/', 0))"
    assert shell(f'{sys.executable} -c "{script}" <&- >&- 2>&-').returncode >= 3


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "C"],
)
def test_characters_that_the_encoding_lacks_are_replaced_one_for_one(environment: dict[str, str]) -> None:
    script = "from nfcore.cli.stdio import prepare_streams; prepare_streams();"
    words = r"a \u2192 \u2588\u2587 \u2013 \xfc \ud800"
    done = shell(f'''{sys.executable} -c "{script} print('{words}')"''', **environment)
    assert (done.returncode, done.stdout) == (0, "a > ## - ? \\ud800\n")
    done = shell("$NFCORE plugins", **environment)
    assert done.returncode == 0 and done.stdout.isascii()


@given(st.text(st.characters(codec=None)))
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    assert text.isprintable() == (shown == text)


def test_escapes() -> None:
    assert printable("a\x1b[2J\nb\udc80\u202e") == r"a\x1b[2J\nb\udc80\u202e"
    assert printable("a\nb\x07", "\n") == "a\nb\\x07"


def test_json_is_valid_for_every_reader() -> None:
    given_values = {"values": [math.nan, math.inf, -math.inf, 1.5, 2**70, None, True], "name": "\udc80"}
    read = json.loads(json_text(given_values), parse_constant=pytest.fail)
    assert read == {"values": ["NaN", "+Inf", "-Inf", 1.5, 2**70, None, True], "name": "\udc80"}


def stats(*arguments: str, folder: Path) -> str:
    """What `nfcore stats` prints for a daemon whose metrics have unusual values and texts."""
    strange: list[Any] = [math.nan, math.inf, -math.inf, None, "NaN", 10**4000, True]
    samples: list[Any] = [{"labels": {"n": str(n)}, "value": value} for n, value in enumerate(strange)]
    samples += [{"labels": {"n": "a"}, "sum": math.nan, "count": 3}, {"labels": {"n": "b"}, "sum": 1e308, "count": 0}]
    samples += [{"labels": {"n": "c"}, "sum": 10**400, "count": 1}]
    samples.append({"labels": {"n": "d", "words": "\x1b[2J\udc80\n\x07"}, "value": 1})
    metric = {"name": "nfcore_odd", "type": "gauge", "unit": "\x1b", "labels": ["n"], "help": "", "samples": samples}

    async def ask() -> str:
        server = ControlServer(folder / "nf.sock", {"stats": lambda parameters: {"metrics": [metric]}})
        await server.open()
        command = [NFCORE, "stats", "--socket", folder / "nf.sock", *arguments]
        running = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, error = await running.communicate()
        await server.close()
        assert (running.returncode, error) == (0, b"")
        return out.decode()

    return asyncio.run(ask())


def test_metrics_of_any_value_are_shown(tmp_path: Path) -> None:
    metrics = json.loads(stats("--json", folder=tmp_path), parse_constant=pytest.fail)
    values = [sample.get("value") for sample in metrics["metrics"][0]["samples"]]
    assert values[:5] == ["NaN", "+Inf", "-Inf", None, "NaN"]
    shown = stats(folder=tmp_path)
    assert "nan" in shown and "inf" in shown and r"words=\x1b[2J\udc80\n\x07" in shown
    assert shown.replace("\n", "").isprintable()
    assert len(stats("--match", "odd words=", folder=tmp_path).splitlines()) == 5
