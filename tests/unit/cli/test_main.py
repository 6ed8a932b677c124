# SPDX-License-Identifier: Apache-2.0
"""The command line as a process: output and exit status."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nfcore import __version__
from nfcore.api.hookspecs import ROLES
from tests.paths import ROOT

NFCORE = Path(sys.executable).with_name("nfcore")
NOBODY = "65534"
DEMO = "examples/demo.toml"
FRAME = "00" * 60

COMMANDS = [
    ["run"],
    ["check"],
    ["plugins"],
    ["stats"],
    ["top"],
    ["events"],
    ["flows"],
    ["explain"],
    ["offload"],
    ["reload"],
    ["bench"],
    ["cleanup"],
    ["trace"],
    ["new-plugin"],
    ["softnic", "create"],
    ["softnic", "remove"],
]


def call(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the checkout, which must not print a traceback."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def nfcore(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return call([str(NFCORE), *map(str, arguments)])


# Help


def test_help_lists_every_command() -> None:
    done = nfcore("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"  {command[0]} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_a_command_has_an_example(command: list[str]) -> None:
    done = nfcore(*command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert f"nfcore {' '.join(command)}" in done.stdout.partition("Example")[2]


def test_without_arguments_there_is_help() -> None:
    done = nfcore()
    assert "Usage: nfcore" in done.stdout + done.stderr


def test_version() -> None:
    assert nfcore("--version").stdout == f"nfcore {__version__}\n"


# Exit statuses


def test_a_good_configuration() -> None:
    done = nfcore("check", DEMO)
    assert (done.returncode, done.stdout) == (0, f"{DEMO}: no mistakes found\n")


def test_resolved_can_be_checked_again(tmp_path: Path) -> None:
    first = nfcore("check", DEMO, "--resolved", "--set", "marking.strategy=flow-id")
    path = tmp_path / "resolved.toml"
    path.write_text(first.stdout)
    second = nfcore("check", path, "--resolved")
    assert tomllib.loads(second.stdout) == tomllib.loads(first.stdout)
    assert tomllib.loads(first.stdout)["marking"]["strategy"] == "flow-id"
    assert json.loads(nfcore("check", path, "--json").stdout) == tomllib.loads(first.stdout)


def test_all_mistakes_are_printed() -> None:
    done = nfcore("check", DEMO, "--set", "offload.min_packets=0", "--set", "marking.strategy=dest-ip")
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert any("offload.min_packets: is 0; input should be greater than" in line for line in lines)
    assert any("marking.strategy: 'dest-ip' is no marking strategy" in line for line in lines)


BAD_CALLS = [
    ["no-such-command"],
    ["check"],
    ["check", DEMO, "--no-such-option"],
    ["check", "/nonexistent.toml"],
    ["check", "examples"],
    ["check", DEMO, "--set", "offload"],
    ["check", DEMO, "--set", "offload.idle_timeout=soon"],
    ["run", "/nonexistent.toml"],
    ["cleanup", "/nonexistent.toml"],
    ["stats", "/nonexistent.toml"],
    ["top", "/nonexistent.toml"],
    ["top", "--svg", "x.svg"],
    ["events", "/nonexistent.toml"],
    ["events", "--kind", "melted"],
    ["--log-level", "loud", "check", DEMO],
    ["trace", "/nonexistent.toml", "--hex", FRAME],
    ["trace", DEMO],
    ["trace", DEMO, "--hex", "xyz"],
    ["trace", DEMO, "--hex", f"{FRAME} mark=09x"],
    ["trace", DEMO, "--file", "/nonexistent.txt"],
    ["trace", DEMO, "--file", "examples"],
    ["softnic", "create"],
    ["softnic", "create", "--wire", "a", "--port", "b", "--pin", "/x", "--rules", "0"],
]


@pytest.mark.parametrize("arguments", BAD_CALLS, ids=" ".join)
def test_a_wrong_call_or_configuration_is_status_2(arguments: list[str]) -> None:
    done = nfcore(*arguments)
    assert done.returncode == 2
    assert done.stderr.strip()
    assert done.stdout == ""


@pytest.mark.parametrize(
    "command",
    [
        ["stats"],
        ["flows"],
        ["events"],
        ["events", "--follow"],
        ["top", "--once"],
        ["explain", "198.18.1.2:4000 > 198.18.10.1:80/tcp"],
        ["offload", "off"],
        ["reload"],
    ],
    ids=" ".join,
)
def test_no_daemon_is_status_1(command: list[str], tmp_path: Path) -> None:
    done = nfcore(*command, "--socket", tmp_path / "x.sock")
    assert done.returncode == 1
    assert done.stderr == f"error: no daemon answers at {tmp_path}/x.sock; start one: nfcore run CONFIG\n"


def test_errors_are_json_where_the_log_is(tmp_path: Path) -> None:
    done = nfcore("--log-format", "json", "stats", "--socket", tmp_path / "x.sock")
    assert done.returncode == 1
    entry = json.loads(done.stderr)
    assert entry["level"] == "error" and "no daemon answers at" in entry["message"]


def test_a_missing_interface_is_status_1(tmp_path: Path) -> None:
    path = tmp_path / "demo.toml"
    text = (ROOT / DEMO).read_text().replace('"eth1"', '"nosuchif0"').replace("eth1 =", "nosuchif0 =")
    path.write_text(text.replace("/run/nfcore/demo.sock", str(tmp_path / "x.sock")))
    done = nfcore("run", path)
    assert done.returncode == 1
    if os.geteuid() == 0:
        assert (
            "interfaces[0].name: there is no interface 'nosuchif0' in this network namespace (there are: "
            in done.stderr
        )
    else:
        assert done.stderr == "error: nfcore run loads BPF programs and needs root: use sudo\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo.toml"]


def test_a_closed_pipe_gives_no_traceback() -> None:
    done = call(["sh", "-c", f"{NFCORE} check {DEMO} --resolved | true"])
    assert "BrokenPipe" not in done.stderr


# Plugins


def test_plugins_as_json() -> None:
    done = nfcore("plugins", "--json")
    assert done.returncode == 0
    rows = {row["name"]: row for row in json.loads(done.stdout)["plugins"]}
    assert {"katran_accel", "marking", "softnic", "stats"} <= rows.keys()
    assert rows["marking"]["source"] == "nfcore.plugins.marking:MarkingPlugin"
    assert {row["version"] for name, row in rows.items() if row["distribution"] == "nfcore"} == {__version__}
    assert "install_offload" in rows["softnic"]["hooks"]
    assert [row["error"] for row in rows.values()] == [None] * len(rows)


def test_plugins_as_a_table() -> None:
    done = nfcore("plugins")
    assert done.returncode == 0
    for word in ("katran_accel", "softnic", "allocate_mark", __version__):
        assert word in done.stdout


def test_plugins_show_the_order_of_calls(tmp_path: Path) -> None:
    config = tmp_path / "lb.toml"
    config.write_text(
        '[nf]\nplugins = ["marking", "tc_offload", "softnic", "katran_accel"]\n'
        '[[interfaces]]\nname = "eth1"\nchain = ["katran_accel"]\noffload = ["softnic", "tc_offload", "none"]\n'
        '[[katran_accel.vips]]\naddress = "198.18.10.1"\nport = 80\nprotocol = "tcp"\n'
        'reals = [{ address = "198.18.20.11" }]\n'
    )
    done = nfcore("plugins", "--verbose", "--json", str(config))
    assert done.returncode == 0, done.stderr
    order = {row["hook"]: row["order"] for row in json.loads(done.stdout)["hooks"]}
    assert list(order) == list(ROLES)
    assert order["install_offload"] == ["eth1: softnic, tc_offload, none"]
    assert order["publish_marks"] == ["eth1: katran_accel"]
    assert order["setup"] == ["marking", "tc_offload", "softnic", "katran_accel"]
    assert order["teardown"] == ["katran_accel", "softnic", "tc_offload", "marking"]
    assert order["on_new_flow"][-1].startswith("admission")
    shown = nfcore("plugins", "-v", str(config)).stdout
    assert "the device's backends, in the order of interfaces[].offload" in shown
    assert "every plugin, in the order of [nf] plugins" in shown


# Without bcc, without root

WITHOUT_BCC = [["--help"], ["trace", "--help"], ["plugins", "--json"], ["check", DEMO], ["stats", "--socket", "/x"]]


@pytest.mark.parametrize("arguments", WITHOUT_BCC, ids=" ".join)
def test_what_works_without_bcc(arguments: list[str]) -> None:
    script = "import sys; sys.modules['bcc'] = None; sys.argv[0] = 'nfcore'; from nfcore.cli.main import main; main()"
    done = call([sys.executable, "-c", script, *arguments])
    assert (done.returncode, done.stdout) == as_usual(*arguments)


@functools.cache
def as_usual(*arguments: str) -> tuple[int, str]:
    """Exit status and output of a command when nothing is missing."""
    done = nfcore(*arguments)
    return done.returncode, done.stdout


def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    if os.geteuid() != 0:
        return nfcore(*arguments)
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv is not installed: cannot become another user")
    prefix = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if subprocess.run([*prefix, "test", "-x", str(NFCORE)], check=False).returncode:
        pytest.skip(f"user {NOBODY} cannot reach {NFCORE}")
    return call([*prefix, str(NFCORE), *arguments], HOME="/nonexistent", PYTHONDONTWRITEBYTECODE="1")


@pytest.mark.parametrize("arguments", WITHOUT_BCC, ids=" ".join)
def test_what_works_for_any_user(arguments: list[str]) -> None:
    done = as_nobody(*arguments)
    assert (done.returncode, done.stdout) == as_usual(*arguments)


@pytest.mark.parametrize("arguments", [["run", DEMO], ["cleanup", DEMO], ["trace", DEMO, "--hex", FRAME]], ids=" ".join)
def test_what_needs_root_says_so(arguments: list[str]) -> None:
    done = as_nobody(*arguments)
    assert done.returncode == 1
    assert done.stderr == f"error: nfcore {arguments[0]} loads BPF programs and needs root: use sudo\n"
