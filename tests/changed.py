# SPDX-License-Identifier: Apache-2.0
"""Prints the folders of tests/kernel that test the last change: what is not committed, or else the last commit."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from .paths import ROOT

TESTED_BY = {
    "nfcore/bench": "bench",
    "nfcore/cli": "cli",
    "nfcore/config": "daemon",
    "nfcore/control": "daemon",
    "nfcore/daemon": "daemon",
    "nfcore/devices": "daemon",
    "nfcore/engine": "daemon",
    "nfcore/hooks": "daemon",
    "nfcore/kernel": "kernel",
    "nfcore/scaffold": "packaging",
    "nfcore/testing": "softnic",
    "plugins/katran_accel": "katran_accel",
    "plugins/marking": "daemon",
    "plugins/softnic": "softnic",
    "plugins/stats": "stats",
    "bpf/balancer": "katran_accel",
    "bpf/bench": "bench",
    "bpf/lib": "carriers",
    "bpf/softnic.c": "softnic",
    "demo": "demo",
    "examples": "packaging",
    "tests/katran_model": "katran_accel",
}
"""Folder or file → folder of tests/kernel. The guest tier tests plugins/tc_offload."""


def kernel_tests(changed: Iterable[str]) -> set[str]:
    """Give the folders that test the changed files; those of changed tests, too."""
    found = {folder for path in changed for part, folder in TESTED_BY.items() if f"{path}/".startswith(f"{part}/")}
    found |= {path.split("/")[2] for path in changed if path.startswith("tests/kernel/") and path.count("/") > 2}
    return {f"tests/kernel/{folder}" for folder in found}


def changed_files() -> list[str]:
    """Give the files that differ from the last commit; without any, those that it changed."""
    waiting = [*_git("diff", "--name-only", "HEAD"), *_git("ls-files", "--others", "--exclude-standard")]
    return waiting or _git("diff-tree", "-r", "--no-commit-id", "--name-only", "HEAD")


def _git(*arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


if __name__ == "__main__":
    print(*sorted(kernel_tests(changed_files())))
