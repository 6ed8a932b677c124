# SPDX-License-Identifier: Apache-2.0
"""`nfcore tenant-marks`, as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from .strategy_run import toml

NFCORE = Path(sys.executable).with_name("nfcore")
EXAMPLE = Path(__file__).parents[1] / "example.toml"


def nfcore(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([NFCORE, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_marks_of_each_owner() -> None:
    done = nfcore("tenant-marks", EXAMPLE, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    default, blue, green = json.loads(done.stdout)["owners"]
    assert (default["owner"], default["first"], default["last"], default["vips"]) == ("default", 1, 4095, [])
    assert (blue["value"], blue["mask"], green["value"]) == (0x1000, 0xF000, 0x2000)
    assert green["vips"] == ["198.18.11.1:80/tcp", "[2001:db8:11::1]:80/tcp"]


def test_the_table() -> None:
    done = nfcore("tenant-marks", EXAMPLE)
    assert done.returncode == 0
    for word in ("blue", "0x1000 / 0xf000", "4096–8191", "all others"):
        assert word in done.stdout
    assert "Example" in nfcore("tenant-marks", "--help").stdout


def test_another_strategy_has_no_blocks(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(toml().replace('["tenant_marks"]', '["tenant_marks", "marking"]').replace('"tenant"', '"dest-id"'))
    done = nfcore("tenant-marks", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {path}: marking.strategy: is 'dest-id'; should be 'tenant'\n"
