# SPDX-License-Identifier: Apache-2.0
"""Prometheus' own opinion of metrics and alert rules: promtool, as scripts/promtool.sh gets it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT

SCRIPT = ROOT / "scripts/promtool.sh"


def promtool(*arguments: str | Path, given: bytes = b"") -> str:
    """Run it; what it said. AssertionError when it found a fault; the test is skipped where there is no promtool."""
    there = subprocess.run([SCRIPT, "--version"], capture_output=True, check=False)
    if there.returncode:
        pytest.skip(f"needs promtool: {there.stderr.decode().strip()}")
    done = subprocess.run([SCRIPT, *arguments], input=given, capture_output=True, check=False, timeout=60)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said
