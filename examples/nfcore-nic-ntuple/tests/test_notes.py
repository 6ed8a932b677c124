# SPDX-License-Identifier: Apache-2.0
"""Notes survive a process that is killed, and files that cannot be read give no notes."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nfcore.api.flows import FlowMatch
from nfcore.api.rules import Rule, RuleBatch, SetMark
from nfcore_nic_ntuple.notes import NOTE, UNKNOWN, Notes


def row(number: int, cookie: int = 1) -> np.void:
    src, dst = ipaddress.IPv4Address(0xC6120000 + number), ipaddress.ip_address("198.18.10.1")
    return RuleBatch.of([Rule(FlowMatch(src, dst, 6, 4000, 80), SetMark(1), cookie)]).rows[0]


def contents(notes: Notes) -> dict[bytes, int]:
    return {notes.rule(slot).tobytes(): notes.location(slot) for slot in notes}


def test_the_next_process_reads_the_notes(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    notes = Notes(path)
    first, second = notes.add(row(1)), notes.add(row(2))
    notes.set_location(first, 9)
    notes.set_cookie(first, 77)
    assert contents(Notes(path)) == {row(1, 77).tobytes(): 9, row(2).tobytes(): UNKNOWN}
    notes.drop(second)
    assert contents(Notes(path)) == {row(1, 77).tobytes(): 9}


def test_notes_survive_a_kill(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2].split(':');"
        "from pathlib import Path; from test_notes import row; from nfcore_nic_ntuple.notes import Notes;"
        "notes = Notes(Path(sys.argv[1]));"
        "[notes.set_location(notes.add(row(number)), number) for number in range(1000)];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "notes"
    done = subprocess.run([sys.executable, "-c", script, str(path), ":".join(sys.path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert contents(Notes(path)) == {row(number).tobytes(): number for number in range(1000)}


def test_a_file_without_notes_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    notes = Notes(path)
    assert not path.exists()
    slot = notes.add(row(1))
    notes.close()
    assert path.exists()
    notes = Notes(path)
    (slot,) = notes
    notes.drop(slot)
    notes.close()
    notes.close()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"x", b"another version".ljust(10 * NOTE.itemsize), bytes(NOTE.itemsize)])
def test_a_file_that_is_not_understood_claims_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(content)
    notes = Notes(path)
    assert len(notes) == 0
    notes.add(row(1))
    assert len(Notes(path)) == 1


def test_a_row_that_was_not_finished_is_free(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    notes = Notes(path)
    notes.set_location(notes.add(row(1)), 1)
    raw = bytearray(path.read_bytes())
    raw[2 * NOTE.itemsize : 2 * NOTE.itemsize + 64] = row(2).tobytes()
    path.write_bytes(raw)
    assert contents(Notes(path)) == {row(1).tobytes(): 1}


def test_notes_that_cannot_be_kept_say_where(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        Notes(tmp_path / "file" / "notes").add(row(1))
    assert str(tmp_path / "file") in str(caught.value.filename)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a full file system needs root")
def test_a_full_file_system_is_an_error_not_a_crash(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path)], check=True)
    try:
        with pytest.raises(OSError, match="No space left"):
            Notes(tmp_path / "notes").add(row(1))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


class AgainstADictionary(RuleBasedStateMachine):
    """Any order of calls, with new processes in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "notes"
        self.notes = Notes(self.path)
        self.model: dict[int, tuple[int, int]] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(number=st.integers(0, 400), cookie=st.integers(1, 99))
    def add(self, number: int, cookie: int) -> None:
        if number not in self.model:
            self.notes.add(row(number, cookie))
            self.model[number] = (cookie, UNKNOWN)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), location=st.integers(0, 1000))
    def set_location(self, data: st.DataObject, location: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.model)))
        slot = self.notes.find(row(number))
        assert slot is not None
        self.notes.set_location(slot, location)
        self.model[number] = (self.model[number][0], location)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.model)))
        slot = self.notes.find(row(number))
        assert slot is not None
        self.notes.drop(slot)
        del self.model[number]

    @rule(count=st.integers(1, 300))
    def add_many(self, count: int) -> None:
        for number in range(1000, 1000 + count):
            self.add(number, 1)

    @rule()
    def restart(self) -> None:
        self.notes = Notes(self.path)

    @invariant()
    def the_same(self) -> None:
        expected = {row(number, cookie).tobytes(): location for number, (cookie, location) in self.model.items()}
        assert contents(self.notes) == expected


TestAgainstADictionary = AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
