# SPDX-License-Identifier: Apache-2.0
"""`nfcore top` on a real terminal, before a real daemon with real flows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.site import REALS, VIP, VIPS, Site, command_line, eventually, ip, nfcore, succeed, vip_toml
from tests.kernel.traffic import Rounds, flow_frames

from .screen import Screen

pytestmark = pytest.mark.usefixtures("_one_cpu")
OTHER = "198.18.10.2"
KEYS = {"up": "\x1b[A", "down": "\x1b[B", "escape": "\x1b", "enter": "\r", "tab": "\t"}


def top(site: Site, *options: str, interval: str = "0.3") -> list[str]:
    return command_line("top", "--socket", str(site.socket), "--interval", interval, *options)


@contextmanager
def traffic(rounds: Rounds) -> Iterator[None]:
    """Let frames flow meanwhile."""
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            rounds.run()
            time.sleep(0.02)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def config(site: Site) -> Path:
    return site.config(vips=VIPS + vip_toml(*REALS, address=OTHER))


@pytest.fixture
def busy(site: Site, config: Path) -> Iterator[Site]:
    """A site with a daemon, eight flows in hardware, and traffic."""
    with site.running(config), Rounds(flow_frames(8)) as rounds:
        rounds.offload(site)
        with traffic(rounds):
            yield site


def test_the_view_and_its_keys(busy: Site) -> None:
    with Screen(top(busy)) as screen:
        text = screen.shows("nfcore top", "100.0 %", "rules 8 of 60,000", "198.18.1.2:4000")
        assert len(screen.lines) == 24 and all(len(line) <= 80 for line in screen.lines)
        assert "dest-id marks" in text and f"{VIP}:80/tcp" in text and "q quit" in text
        assert screen.lines.index(next(line for line in screen.lines if line.startswith(VIP))) < next(
            number for number, line in enumerate(screen.lines) if line.startswith(OTHER)
        )  # the busiest first
        screen.press("h")
        screen.shows("open the selected VIP", gone=["FLOW"])
        screen.press("x")
        screen.shows("FLOW")
        screen.press("/" + OTHER + KEYS["enter"])
        screen.shows(f"filter: {OTHER}", gone=[f"{VIP}:80"])
        screen.press(KEYS["escape"])
        screen.shows(VIP, gone=["filter:"])
        screen.press(KEYS["enter"])
        text = screen.shows(f"VIP {VIP}:80/tcp", *REALS, "REAL (of all its VIPs)", gone=["2001:db8:20::11"])
        screen.press("s")
        screen.shows("packets▼")
        screen.press("p")
        screen.shows("PAUSED")
        screen.press("p" + KEYS["escape"])
        screen.shows("2001:db8:10::1", gone=["PAUSED"])
        screen.press(KEYS["down"] + KEYS["tab"] + KEYS["tab"] + "q")
        assert screen.wait() == 0
        assert screen.is_restored()


def test_the_window_changes_its_size(busy: Site) -> None:
    with Screen(top(busy)) as screen:
        screen.shows("q quit", "FLOW")
        screen.resize(120, 40)
        screen.shows("q quit")
        assert eventually(lambda: (screen.shows("q quit"), "q quit" in screen.lines[39])[1])
        for columns, lines in ((30, 8), (5, 2), (1, 1)):
            screen.resize(columns, lines)
            screen._look(0.5)
        screen.resize(80, 24)
        screen.shows("nfcore top", "FLOW", "q quit")


def test_a_daemon_that_goes_and_comes_back(site: Site, config: Path) -> None:
    with Screen(top(site)) as screen:
        screen.shows("no daemon answers at", "start one: nfcore run CONFIG", "trying again")
        with site.running(config):
            screen.shows("rules 0 of 60,000", gone=["no daemon"])
        screen.shows("no daemon answers at", gone=["rules 0"])
        with site.running(config):
            screen.shows("rules 0 of 60,000", gone=["no daemon"])
            daemon = site.daemons.started[-1]
            daemon.send_signal(signal.SIGSTOP)  # it hangs: keys are heard all the same
            screen.press("h")
            screen.shows("open the selected VIP")
            daemon.send_signal(signal.SIGCONT)
            screen.press("qq")
            assert screen.wait() == 0
        assert "Traceback" not in screen.raw.decode(errors="replace")


ENDS = [
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGALRM, signal.SIGABRT),
]


@pytest.mark.slow
def test_the_terminal_is_restored_whatever_ends_it(site: Site, config: Path) -> None:
    with site.running(config):
        for number in ENDS:
            with Screen(top(site)) as screen:
                screen.shows("q quit")
                os.killpg(screen.process.pid, number)
                assert screen.wait() == (0 if number == signal.SIGINT else 128 + number)
                assert screen.is_restored(), number


def test_a_terminal_of_few_characters(site: Site, config: Path) -> None:
    with site.running(config):
        with Screen(top(site), PYTHONIOENCODING="ascii") as screen:
            text = screen.shows("q quit", "VIP", f"{VIP}:80/tcp")
            assert text.isascii() and "packets/sv" in text
            screen.press("q")
            assert screen.wait() == 0
        with Screen(top(site), TERM="dumb") as screen:
            assert screen.wait() == 2
            assert b"\x1b" not in screen.raw
            assert "TERM: is 'dumb', a terminal that cannot be drawn on; use --once or --json" in "".join(screen.lines)


def test_a_program_that_is_gone_is_told(site: Site, config: Path) -> None:
    with site.running(config), Screen(top(site)) as screen:
        screen.shows("q quit", gone=["! eth1"])
        ip("link", "set", "eth1", "xdp", "off")
        screen.shows("! eth1: the program is no longer attached")
        screen.press("q")
        assert screen.wait() == 0


def test_stopped_and_continued(site: Site, config: Path) -> None:
    with site.running(config), Screen(top(site)) as screen:
        screen.shows("q quit")
        screen.process.send_signal(signal.SIGTSTP)
        assert eventually(lambda: (screen._look(0.1), screen.is_restored())[1])
        screen.process.send_signal(signal.SIGCONT)
        screen._screen.reset()
        screen.shows("nfcore top", "q quit")
        screen.press("q")
        assert screen.wait() == 0
        assert screen.is_restored()


def test_once(busy: Site, tmp_path: Path) -> None:
    done = nfcore("top", "--once", "--socket", str(busy.socket), "--interval", "0.5")
    assert done.returncode == 0, done.stderr
    assert "fast path 100.0 %" in done.stdout and f"{VIP}:80/tcp" in done.stdout and "q quit" not in done.stdout
    picture = tmp_path / "top.svg"
    done = nfcore("top", "--once", "--socket", str(busy.socket), "--svg", str(picture))
    assert (done.returncode, done.stdout) == (0, "")
    drawn = picture.read_text()
    assert drawn.startswith("<svg") and "nfcore" in drawn and "font-face" not in drawn


def test_json(busy: Site) -> None:
    done = nfcore("top", "--once", "--json", "--socket", str(busy.socket), "--interval", "0.5")
    board = json.loads(done.stdout)
    assert board["fast_share"] == 1.0 and board["rules"] == 8 and board["seconds"] > 0
    (mine,) = [row for row in board["vips"] if row["name"] == f"{VIP}:80/tcp"]
    assert mine["packets"] > 0 and abs(mine["share"] - 1) < 1e-6
    assert abs(sum(row["packets"] for row in board["reals"]) - mine["packets"]) < 1.0 + mine["packets"] * 0.5
    command = top(busy, "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        # A line may say that a busy daemon has not answered in time.
        found = (json.loads(line) for line in running.stdout)
        lines = [*islice((line for line in found if "error" not in line), 3)]
        running.send_signal(signal.SIGINT)
        assert running.wait(20) in (0, 130)
        assert running.stderr.read() == ""
    assert all(line["rules"] == 8 for line in lines)


def test_a_pipe_that_is_closed(busy: Site) -> None:
    command = " ".join(top(busy, "--json"))
    done = subprocess.run(
        # The first line may say that a busy daemon has not answered in time.
        ["bash", "-c", f"{command} | grep -m 1 rules"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["rules"] == 8 and done.stderr == ""


@pytest.mark.slow
def test_a_flow_that_stands_still(site: Site) -> None:
    """Its rate is 0, and its packets are those of a rule that is gone, too."""
    with site.running(site.config(idle_timeout="8s")), Rounds(flow_frames(2)) as rounds:
        rounds.offload(site)

        def flows() -> list[dict[str, Any]]:
            shown: list[dict[str, Any]] = site.request("top")["flows"]
            return shown

        assert eventually(lambda: (rounds.run(), all(row["rate"] > 0 for row in flows()))[1])
        assert eventually(lambda: all(row["rate"] == 0 for row in flows()))
        board = json.loads(succeed("top", "--once", "--json", "--socket", str(site.socket), "--interval", "0.2"))
        assert [row["rate"] for row in board["flows"]] == [0, 0]
        site.request("offload", on=False)
        assert eventually(lambda: all(row["state"] == "refused" for row in flows()))
        shown = succeed("top", "--once", "--socket", str(site.socket), "--interval", "0.2")
        (line, *_) = [line for line in shown.splitlines() if line.startswith("198.18.1.2:40000")]
        assert line.split()[-3:-1] != ["0", "0"] and int(line.split()[-2]) > 0


@pytest.mark.slow
def test_without_figures(site: Site, config: Path) -> None:
    config.write_text(config.read_text().replace(', "stats"', ""))
    with site.running(config):
        for command in (["top", "--once"], ["stats"], ["stats", "--json"]):
            done = nfcore(*command, "--socket", str(site.socket))
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == f'error: the daemon at {site.socket} has no metrics: add "stats" to [nf] plugins\n'


@pytest.mark.slow
def test_figures_that_are_chosen(site: Site, config: Path) -> None:
    with site.running(config):
        told = json.loads(succeed("stats", "--json", "--match", f"vip_packets {OTHER}", "--socket", str(site.socket)))
        assert [(each["name"], len(each["samples"])) for each in told["metrics"]] == [("nfcore_vip_packets_total", 1)]
        shown = succeed("stats", "--match", "real_packets", "--socket", str(site.socket))
        assert "nfcore_real_packets_total" in shown and "nfcore_vip" not in shown
        told = json.loads(succeed("stats", "--json", "--match", "melted", "--socket", str(site.socket)))
        assert told == {"metrics": []}


@pytest.mark.slow
def test_an_output_that_takes_nothing(busy: Site) -> None:
    for command in ("top --once", "events -f", "flows"):
        for where, words in ((">/dev/full", "cannot be written: No space left on device"), (">&-", "is closed")):
            call = f"{sys.executable} -m nfcore.cli {command} --socket {busy.socket} {where}"
            done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=False, timeout=60)
            assert (done.returncode, done.stderr) == (1, f"error: standard output: {words}\n"), command
        call = f"PYTHONIOENCODING=ascii {sys.executable} -m nfcore.cli {command} --socket {busy.socket} | head -5"
        if command != "events -f":
            done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=False, timeout=60)
            assert done.stdout and done.stdout.isascii() and done.stderr == "", command


def test_a_picture_that_cannot_be_written(site: Site) -> None:
    done = nfcore("top", "--once", "--svg", "/nonexistent/a.svg", "--socket", str(site.socket))
    assert (done.returncode, done.stdout) == (2, "")
    words = "nfcore top: --svg: cannot write /nonexistent/a.svg: should be a file in an existing folder"
    assert done.stderr == f"error: {words}\n"


def test_without_a_terminal_or_a_daemon(site: Site) -> None:
    done = nfcore("top", "--socket", str(site.socket))
    assert (done.returncode, done.stdout) == (1, "")
    assert "needs a terminal to draw on; elsewhere use --once or --json" in done.stderr
    done = nfcore("top", "--once", "--socket", str(site.socket))
    assert done.returncode == 1 and "start one: nfcore run CONFIG" in done.stderr
