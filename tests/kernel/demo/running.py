# SPDX-License-Identifier: Apache-2.0
"""Runs the demo as a user does: a story to its end, or one that is stopped on its way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.paths import ROOT

DEMO = [sys.executable, "-m", "demo"]


def run_story(
    option: str, strategy: str, story: Sequence[str], *, requests: int, timeout: float
) -> tuple[dict[str, Any], str]:
    """Run one of the demo's stories; its summary, in which all went well, and its error output.

    requests: how many it sends at least. timeout: seconds.
    """
    done = subprocess.run(
        [*DEMO, option, "--json", "--strategy", strategy],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    assert summary["ok"] is True
    assert summary["strategy"] == strategy
    assert summary["requests"]["sent"] >= requests
    assert summary["requests"]["lost"] == 0
    assert [event["name"] for event in summary["events"]] == story
    assert all(event["passed"] and event["detail"] for event in summary["events"])
    assert all(check["passed"] for check in summary["checks"])
    assert {event["claim"] for event in summary["events"]} <= {check["claim"] for check in summary["checks"]}
    return summary, done.stderr


def stop_at(words: str, options: Sequence[str], sent: signal.Signals = signal.SIGINT) -> None:
    """Start the demo, send it the signal after a line with these words; it says that it removed everything."""
    demo = subprocess.Popen([*DEMO, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if words in line:
            break
    demo.send_signal(sent)
    rest, _ = demo.communicate(timeout=60)
    assert demo.returncode == 128 + sent
    assert "everything was removed" in rest
