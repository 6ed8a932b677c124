# SPDX-License-Identifier: Apache-2.0
"""Where things are in a checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
"""Published packets, rings and netlink messages that tests compare with."""
PROGRAMS = ROOT / "tests" / "kernel" / "programs"
"""Small BPF programs of the tests."""
