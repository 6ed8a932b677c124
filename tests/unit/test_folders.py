# SPDX-License-Identifier: Apache-2.0
"""Folders and files have the modes that they need, whatever the umask is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfcore.folders import closed_to_group, make_folder, write_file

MASKS = [0, 0o022, 0o027, 0o077, 0o277]


@pytest.fixture(params=MASKS, ids=[f"{mask:03o}" for mask in MASKS], autouse=True)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_folders_and_files_have_their_modes(tmp_path: Path) -> None:
    make_folder(tmp_path / "run" / "nfcore" / "pins", 0o700)
    assert [mode(tmp_path / each) for each in ("run", "run/nfcore", "run/nfcore/pins")] == [0o755, 0o755, 0o700]
    make_folder(tmp_path / "run" / "nfcore" / "locks")
    assert mode(tmp_path / "run/nfcore/locks") == 0o755
    for wanted in (0o600, 0o644):
        write_file(tmp_path / "file", b"text", wanted)
        assert (mode(tmp_path / "file"), (tmp_path / "file").read_bytes()) == (wanted, b"text")


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o711)
    make_folder(tmp_path / "there")
    make_folder(tmp_path / "there" / "below")
    assert (mode(tmp_path / "there"), mode(tmp_path / "there/below")) == (0o711, 0o755)
    write_file(tmp_path / "file", b"")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


def test_folders_that_a_group_cannot_enter_are_found(tmp_path: Path) -> None:
    make_folder(tmp_path / "open" / "closed" / "groups", 0o750)
    (tmp_path / "open/closed").chmod(0o700)
    closed = set(closed_to_group(tmp_path / "open/closed/groups/nf.sock", os.getgid()))
    assert {tmp_path / "open/closed"} == {folder for folder in closed if folder.is_relative_to(tmp_path / "open")}
    closed = set(closed_to_group(tmp_path / "open/closed/groups/nf.sock", 65_534))
    assert {tmp_path / "open/closed", tmp_path / "open/closed/groups"} == {
        folder for folder in closed if folder.is_relative_to(tmp_path / "open")
    }
