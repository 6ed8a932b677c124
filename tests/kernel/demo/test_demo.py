# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: what it proves, what it prints, and that nothing is left however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from demo.lab import NETNS_FOLDER
from tests.paths import ROOT

from .running import DEMO, stop_at

RUN = Path("/run/nfcore")

pytestmark = pytest.mark.slow


def leftovers() -> set[str]:
    found = {str(path) for path in NETNS_FOLDER.glob("nfdemo-*")}
    found |= {str(path) for path in (RUN / "demo.sock", RUN / "bpf/softnic-demo") if path.exists()}
    return found | {str(path) for path in Path("/run").glob("nfcore-demo*")}


@pytest.mark.parametrize("strategy", ["dest-id", "flow-id"])
def test_everything_is_proven(strategy: str, tmp_path: Path) -> None:
    was_there, picture = RUN.exists(), tmp_path / "top.svg"
    done = subprocess.run(
        [*DEMO, "--json", "--requests", "2400", "--strategy", strategy, "--picture", str(picture)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["ok"] is True
    assert summary["strategy"] == strategy
    assert summary["requests"]["sent"] >= 2400
    assert summary["requests"]["lost"] == 0
    assert set(summary["reals"]) == {"real1", "real2", "real3"}
    assert summary["fast_path_share"] >= 0.8
    assert all(check["passed"] for check in summary["checks"])
    assert leftovers() == set()
    assert RUN.exists() == was_there
    assert f"{strategy}&#160;marks" in picture.read_text() and "198.18.10.1:80/tcp" in picture.read_text()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_nothing(sent: signal.Signals) -> None:
    stop_at("kept-alive", ["--requests", "20000"], sent)
    assert leftovers() == set()


def test_a_killed_demo_is_cleaned_up_by_the_next() -> None:
    was_there = RUN.exists()
    demo = subprocess.Popen([*DEMO, "--requests", "20000"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "short connections" in line:
            break
    demo.kill()
    demo.wait()
    demo.stdout.close()
    assert leftovers()
    again = subprocess.run([*DEMO, "--requests", "500"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert leftovers() == set()
    assert RUN.exists() == was_there


def test_a_dead_daemon_is_a_failure_with_its_words() -> None:
    demo = subprocess.Popen(
        [*DEMO, "--requests", "20000"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "kept-alive" in line:
            break
    # Else the daemon found there would be somebody else's.
    assert demo.poll() is None
    pids = subprocess.run(["ip", "netns", "pids", "nfdemo-lb"], capture_output=True, text=True, check=True)
    for pid in pids.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "nfcore run ended with status -9" in errors
    assert "Traceback" not in errors
    assert leftovers() == set()


def test_one_demo_at_a_time() -> None:
    first = subprocess.Popen([*DEMO, "--requests", "20000"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    first.stdout.readline()
    second = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True, check=False)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert second.returncode == 1
    assert "another demo is running" in second.stderr
    assert first.returncode == 128 + signal.SIGTERM
    assert leftovers() == set()
