# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, and that it runs from an environment of its own, far from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "tests/data"
NOT_PACKED = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "demo", "docs", "scripts"
)
DISTRIBUTIONS_PYTHON = Path("/usr/bin/python3")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, so that neither an old build folder nor a test run beside this one plays a part."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=NOT_PACKED)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir"]
    done = run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, folder / "source", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel: bcc from the distribution, the other dependencies from this one's."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    python = DISTRIBUTIONS_PYTHON if DISTRIBUTIONS_PYTHON.exists() else Path(sys.executable)
    done = run(python, "-m", "venv", "--system-site-packages", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(folder / "bin/pip", "install", "--no-deps", "--no-index", wheel, cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    (packages,) = folder.glob("lib/python3.*/site-packages")
    # .pth files of the folder that this line names are not followed: an editable nfcore there stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin/nfcore"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    return tmp_path


def test_one_name_is_installed(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"nfcore"}


def test_nothing_of_the_package_is_missing(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    for source, place in (("nfcore", "nfcore"), ("plugins", "nfcore/plugins"), ("bpf", "nfcore/bpf")):
        found = [
            path for path in (ROOT / source).rglob("*") if path.suffix in (".py", ".c", ".h", ".typed", ".json", ".yml")
        ]
        links = [ROOT / "nfcore/plugins", ROOT / "nfcore/bpf"]
        inside = [path for path in found if not any(path.is_relative_to(link) for link in links)]
        assert inside, source
        expected = {f"{place}/{path.relative_to(ROOT / source).as_posix()}" for path in inside}
        assert expected - packed == set()


def test_licences_travel_along(wheel: Path) -> None:
    packed = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/licenses/" in name}
    assert packed == {path.name for path in (ROOT / "LICENSES").iterdir()}


def test_the_code_comes_from_the_wheel(installed: Path, elsewhere: Path) -> None:
    script = "import nfcore, nfcore.plugins.katran_accel as p; print(nfcore.__file__); print(p.__file__)"
    done = run(installed.with_name("python"), "-c", script, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert Path(line).is_relative_to(installed.parents[1])


def test_check(installed: Path, elsewhere: Path) -> None:
    done = run(installed, "check", ROOT / "examples/demo.toml", cwd=elsewhere)
    assert (done.returncode, done.stderr) == (0, "")


def test_plugins(installed: Path, elsewhere: Path) -> None:
    done = run(installed, "plugins", "--json", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["plugins"]}
    assert {"katran_accel", "marking", "softnic", "stats"} <= rows.keys()
    assert [row["error"] for row in rows.values()] == [None] * len(rows)


def test_trace(installed: Path, elsewhere: Path) -> None:
    frame = json.loads((PUBLISHED / "published_frames.json").read_text())["frames"][0]
    done = run(installed, "trace", PUBLISHED / "published.toml", "--hex", frame["in"], "--json", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    (packet,) = json.loads(done.stdout)["packets"]
    assert (packet["verdict"], packet["output"]) == (frame["verdict"], frame["out"])
