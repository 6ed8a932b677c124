# SPDX-License-Identifier: Apache-2.0
"""The state file: values that a run leaves for the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfcore.api.state_file import StateFile


def test_the_next_run_reads_the_values(tmp_path: Path) -> None:
    path = tmp_path / "run" / "demo.state"
    state = StateFile(path)
    assert state.get_number("program") is None
    state.set("program", 77)
    state.set("map", 2**40)
    state.set("program", 78)
    again = StateFile(path)
    assert (again.get_number("program"), again.get_number("map")) == (78, 2**40)
    assert [entry.name for entry in path.parent.iterdir()] == ["demo.state"]


def test_an_empty_state_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "demo.state"
    state = StateFile(path)
    state.set("program", 77)
    state.remove("program")
    state.remove("program")
    assert not path.exists()
    assert StateFile(path).get_number("program") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"null", b'{"a": "x"}', b'{"a": null}', b'{"a": 1e999}', b"\xff", b'{"a": [1]}']
)
def test_a_damaged_file_is_an_empty_state(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "demo.state"
    path.write_bytes(content)
    state = StateFile(path)
    assert state.get_number("a") is None
    state.set("a", 1)
    assert StateFile(path).get_number("a") == 1


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = StateFile()
    state.set("a", 1)
    assert state.get_number("a") == 1
    state.remove("a")
    assert list(tmp_path.iterdir()) == []


def test_texts_and_numbers_are_distinguished(tmp_path: Path) -> None:
    path = tmp_path / "demo.state"
    state = StateFile(path)
    state.set("numbers", '{"a": 1}')
    state.set("program", 77)
    for known in (state, StateFile(path)):
        assert (known.get_text("numbers"), known.get_number("numbers")) == ('{"a": 1}', None)
        assert (known.get_number("program"), known.get_text("program")) == (77, None)
        assert known.get_text("nothing") is None
    state.remove("numbers")
    assert StateFile(path).get_text("numbers") is None


def test_a_file_with_anything_else_is_an_empty_state(tmp_path: Path) -> None:
    path = tmp_path / "demo.state"
    for content in ('{"b": 1, "a": true}', '{"b": 1, "a": 1.5}', '{"b": 1, "a": {}}'):
        path.write_text(content)
        assert StateFile(path).get_number("b") is None


def test_a_failed_write_is_logged_once_and_removes_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "demo.state"
    state = StateFile(path)
    state.set("a", 1)
    (tmp_path / "demo.state.new").mkdir()
    state.set("b", 2)
    state.remove("a")
    assert (state.get_number("b"), state.get_number("a")) == (2, None)
    assert StateFile(path).get_number("a") is None
    assert len([record for record in caplog.records if str(path) in record.getMessage()]) == 1
