# SPDX-License-Identifier: Apache-2.0
"""`nfcore new-plugin`: allowed names; all files are written, or none."""

from __future__ import annotations

import ast
import json
import tomllib
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.errors import ConfigError, HostError
from nfcore.scaffold import LONGEST_NAME, Kind, Skeleton, make_skeleton, write_skeleton
from tests.unit.cli.test_main import nfcore

KINDS = list(Kind)
PLACEHOLDERS = ("my_name", "my-name", "MyName", "my_description", "my_licence", "my_nfcore")
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,9}(_[a-z0-9]{1,7}){0,2}", fullmatch=True)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def rendered(kind: Kind, name: str = "acme_x") -> Mapping[str, str]:
    return {str(path): text for path, text in Skeleton(name, kind).render().items()}


# Names


@given(NAMES)
def test_the_other_names_come_from_the_name(name: str) -> None:
    skeleton = Skeleton(name, Kind.BACKEND)
    assert skeleton.module.isidentifier()
    assert skeleton.module == skeleton.distribution.replace("-", "_") == f"nfcore_{name}"


@given(NAMES, st.sampled_from(KINDS))
def test_no_placeholder_is_left(name: str, kind: Kind) -> None:
    for path, text in rendered(kind, name).items():
        assert not [word for word in PLACEHOLDERS if word in path + text and word not in name], path
        if path.endswith(".py"):
            ast.parse(text)
        if path.endswith(".toml"):
            tomllib.loads(text)


def test_dashes_are_underscores() -> None:
    assert make_skeleton("acme-nic", Kind.NF) == Skeleton("acme_nic", Kind.NF)


BAD = [
    "",
    "Acme",
    "1nic",
    "_nic",
    "nic_",
    "a__b",
    "a.b",
    "a/b",
    "../x",
    "nic\n",
    "näc",
    "x" * (LONGEST_NAME + 1),
    "a b",
]


@pytest.mark.parametrize("name", BAD)
def test_invalid_names(name: str) -> None:
    with pytest.raises(ConfigError, match=r"NAME: .* should be at most 32 lower-case letters"):
        make_skeleton(name, Kind.BACKEND)


TAKEN = {"nf": "a table of the core", "marking": "a table of the core", "null": "reserved for the core"}


@pytest.mark.parametrize(("name", "reason"), [*TAKEN.items(), ("softnic", "an installed plugin, of nfcore")])
@pytest.mark.parametrize("force", [False, True])
def test_names_in_use(name: str, reason: str, force: bool) -> None:
    with pytest.raises(ConfigError, match=f"NAME: '{name}' is {reason}"):
        make_skeleton(name, Kind.BACKEND, force=force)


def test_names_of_nfcores_plugins_are_in_use() -> None:
    for point in entry_points(group="nfcore.plugins"):
        with pytest.raises(ConfigError):
            make_skeleton(point.name, Kind.BACKEND)


# Files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("empty", [True, False])
def test_all_files_are_written(tmp_path: Path, kind: Kind, empty: bool) -> None:
    folder = tmp_path / "here"
    if empty:
        folder.mkdir()
    written = write_skeleton(Skeleton("acme_x", kind), folder)
    assert contents(folder) == rendered(kind)
    assert sorted(written) == sorted(path for path in folder.rglob("*") if path.is_file())
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert folder.stat().st_mode & 0o055


@pytest.mark.parametrize("kind", KINDS)
def test_sources_name_their_licence_and_folders_explain_themselves(kind: Kind) -> None:
    files = rendered(kind)
    assert files["README.md"].startswith("# nfcore-acme-x\n")
    for path, text in files.items():
        licence = "GPL-2.0-only" if path.endswith(".c") else "Apache-2.0"
        assert path.endswith((".md", ".typed")) or licence in text.splitlines()[0], path


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ConfigError, match=f"--into: {tmp_path} is not empty; --force replaces"):
        write_skeleton(Skeleton("acme_x", Kind.BACKEND), tmp_path)
    assert contents(tmp_path) == {"notes": "mine"}


def test_force_replaces_only_files_of_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "README.md").write_text("old")
    write_skeleton(Skeleton("acme_x", Kind.BACKEND), tmp_path, force=True)
    assert contents(tmp_path) == {"notes": "mine", **rendered(Kind.BACKEND)}
    write_skeleton(Skeleton("acme_x", Kind.STRATEGY), tmp_path, force=True)
    assert contents(tmp_path) == {"notes": "mine", **rendered(Kind.BACKEND), **rendered(Kind.STRATEGY)}


@pytest.mark.parametrize("in_the_way", ["src", "README.md/x"])
def test_a_file_in_the_way_is_an_error(tmp_path: Path, in_the_way: str) -> None:
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("mine")
    with pytest.raises(ConfigError, match="is in the way of"):
        write_skeleton(Skeleton("acme_x", Kind.BACKEND), tmp_path, force=True)
    assert contents(tmp_path) == {in_the_way: "mine"}


@pytest.mark.parametrize("fails_at", range(12))
def test_a_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("notes", "README.md", "pyproject.toml"):
        (folder / name).write_text(f"old {name}")
    before, calls, replace = contents(folder), [0], Path.replace

    def full_disk(source: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] == fails_at + 1:
            raise OSError(28, "No space left on device", str(target))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(HostError, match="cannot be written: No space left on device"):
        write_skeleton(Skeleton("acme_x", Kind.BACKEND), folder, force=True)
    assert contents(folder) == before
    assert sorted(path.name for path in folder.rglob("*")) == sorted(before)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_file_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file; should be a new or an empty folder"):
        write_skeleton(Skeleton("acme_x", Kind.BACKEND), tmp_path / "file", force=True)
    with pytest.raises(ConfigError, match="is no folder: make it first"):
        write_skeleton(Skeleton("acme_x", Kind.BACKEND), tmp_path / "nowhere/here")
    assert contents(tmp_path) == {"file": "mine"}


# The command


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_prints_what_it_wrote(tmp_path: Path, kind: Kind) -> None:
    done = nfcore("new-plugin", "acme-x", "--kind", kind, "--into", tmp_path / "x", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert sorted(printed.pop("files")) == sorted(contents(tmp_path / "x"))
    names = {"name": "acme_x", "kind": kind, "distribution": "nfcore-acme-x", "module": "nfcore_acme_x"}
    assert printed == {**names, "folder": str(tmp_path / "x")}


def test_the_command_prints_the_next_steps(tmp_path: Path) -> None:
    done = nfcore("new-plugin", "acme_x", "--kind", "nf", "--into", tmp_path / "x")
    assert done.returncode == 0
    assert f"{tmp_path / 'x' / 'README.md'}\n" in done.stdout
    assert f"Next: cd {tmp_path / 'x'} && pip install" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["acme_x"], ["acme_x", "--kind", "nic"], ["NF", "--kind", "nf"], ["--kind", "nf"]]
)
def test_wrong_calls(tmp_path: Path, arguments: list[str]) -> None:
    done = nfcore("new-plugin", *arguments, "--into", tmp_path / "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    done = nfcore("new-plugin", "acme_x", "--kind", "nf", "--into", "/proc/acme")
    assert done.returncode == 1
    assert done.stderr.startswith("error: /proc/acme cannot be written: ")
