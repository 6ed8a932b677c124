# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, and that it runs from an environment of its own, far from the checkout."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.paths import ROOT

from .environments import make_environment, run

PUBLISHED = ROOT / "tests/data"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("installed") / "venv", wheel) / "nfcore"


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
    frame = json.loads((PUBLISHED / "published_suites.json").read_text())["suites"][0]["cases"][0]
    done = run(installed, "trace", PUBLISHED / "published.toml", "--hex", frame["in"], "--json", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    (packet,) = json.loads(done.stdout)["packets"]
    assert (packet["verdict"], packet["output"]) == (frame["verdict"], frame["out"])
