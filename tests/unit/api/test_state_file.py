# SPDX-License-Identifier: Apache-2.0
"""The state file: values that a run leaves for the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfcore.api.state_file import StateFile


def test_the_next_run_reads_the_values(tmp_path: Path) -> None:
    path = tmp_path / "run" / "demo.state"
    state = StateFile(path)
    assert state.recall("program") is None
    state.remember("program", 77)
    state.remember("map", 2**40)
    state.remember("program", 78)
    again = StateFile(path)
    assert (again.recall("program"), again.recall("map")) == (78, 2**40)
    assert [entry.name for entry in path.parent.iterdir()] == ["demo.state"]


def test_an_empty_state_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "demo.state"
    state = StateFile(path)
    state.remember("program", 77)
    state.forget("program")
    state.forget("program")
    assert not path.exists()
    assert StateFile(path).recall("program") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"null", b'{"a": "x"}', b'{"a": null}', b'{"a": 1e999}', b"\xff", b'{"a": [1]}']
)
def test_a_damaged_file_is_an_empty_state(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "demo.state"
    path.write_bytes(content)
    state = StateFile(path)
    assert state.recall("a") is None
    state.remember("a", 1)
    assert StateFile(path).recall("a") == 1


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = StateFile()
    state.remember("a", 1)
    assert state.recall("a") == 1
    state.forget("a")
    assert list(tmp_path.iterdir()) == []


def test_texts_and_numbers_are_distinguished(tmp_path: Path) -> None:
    path = tmp_path / "demo.state"
    state = StateFile(path)
    state.remember("numbers", '{"a": 1}')
    state.remember("program", 77)
    for known in (state, StateFile(path)):
        assert (known.recall_text("numbers"), known.recall("numbers")) == ('{"a": 1}', None)
        assert (known.recall("program"), known.recall_text("program")) == (77, None)
        assert known.recall_text("nothing") is None
    state.forget("numbers")
    assert StateFile(path).recall_text("numbers") is None


def test_a_file_with_anything_else_is_an_empty_state(tmp_path: Path) -> None:
    path = tmp_path / "demo.state"
    for content in ('{"b": 1, "a": true}', '{"b": 1, "a": 1.5}', '{"b": 1, "a": {}}'):
        path.write_text(content)
        assert StateFile(path).recall("b") is None


def test_a_failed_write_is_logged_once_and_removes_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "demo.state"
    state = StateFile(path)
    state.remember("a", 1)
    (tmp_path / "demo.new").mkdir()
    state.remember("b", 2)
    state.forget("a")
    assert (state.recall("b"), state.recall("a")) == (2, None)
    assert StateFile(path).recall("a") is None
    assert len([record for record in caplog.records if str(path) in record.getMessage()]) == 1
