# SPDX-License-Identifier: Apache-2.0
"""Wheels, built without network, and fresh environments with them: nfcore as somebody else has it installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

LITTER = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
NOT_PACKED = {"tests", "demo", "docs", "examples", "scripts"}
"""Folders beside a distribution's packages; within these, such as among templates, the names mean something else."""
DISTRIBUTIONS_PYTHON = Path("/usr/bin/python3")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with nothing of this environment's Python."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def build_wheel(source: Path, folder: Path) -> Path:
    """Build from a copy, so that neither an old build folder nor a test run beside this one plays a part."""

    def ignored(where: str, names: list[str]) -> set[str]:
        beside = NOT_PACKED if Path(where) == source else set()
        return LITTER(where, names) | beside

    shutil.copytree(source, folder / "source", symlinks=True, ignore=ignored)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir"]
    done = run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, folder / "source", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def make_environment(folder: Path, *wheels: Path) -> Path:
    """A fresh environment with wheels, bcc from the distribution and the other dependencies from this one; its bin/."""
    python = DISTRIBUTIONS_PYTHON if DISTRIBUTIONS_PYTHON.exists() else Path(sys.executable)
    done = run(python, "-m", "venv", "--system-site-packages", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(folder / "bin/pip", "install", "--no-deps", "--no-index", *wheels, cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    (packages,) = folder.glob("lib/python3.*/site-packages")
    # .pth files of the folder that this line names are not followed: an editable nfcore there stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"
