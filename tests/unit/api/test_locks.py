# SPDX-License-Identifier: Apache-2.0
"""Locks: held by one process; released when the context is left or the process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nfcore.api.locks import Locks
from nfcore.errors import HostError

HOLD = """
import sys, time
from pathlib import Path
from nfcore.api.locks import Locks
with Locks(Path(sys.argv[1])) as locks:
    locks.acquire("thing", "the thing")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_refused_while_another_process_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with Locks(folder) as locks:
            with pytest.raises(HostError, match=rf"the thing is in use by another nfcore, process {holder.pid}"):
                locks.acquire("thing", "the thing")
            locks.acquire("other", "another thing")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with Locks(folder) as locks:  # released by the death of the process; its file is removed
        locks.acquire("yet another", "yet another thing")
        assert [path.name for path in folder.iterdir()] == ["yet another"]
        locks.acquire("thing", "the thing")
        assert (folder / "thing").read_text() == f"{os.getpid()}\n"
    assert not folder.exists()


def test_the_same_lock_twice_is_one_lock(tmp_path: Path) -> None:
    with Locks(tmp_path / "locks") as locks:
        locks.acquire("thing", "the thing")
        locks.acquire("thing", "the thing")
        locks.folder(tmp_path)
        locks.interface("lo", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot lock the thing"):
        Locks(tmp_path / "file" / "locks").acquire("thing", "the thing")
