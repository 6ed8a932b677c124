# SPDX-License-Identifier: Apache-2.0
"""What the demo creates on the host outside its namespaces, and how that is removed.

These are the daemon's socket, the emulated NIC's pins and the BPF file system below ``/run/nfcore``. The demo first
saves in a file (`_STATE`) what was there before, so that the next demo can clean up after one that was killed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from nfcore.errors import HostError

FOLDER = Path("/run/nfcore")
SCRATCH = FOLDER / "demo"
"""Files of one run."""
BALANCER_PINS = FOLDER / "bpf" / "katran-demo"
"""Pins of the balancer in the chaos, where it outlives its daemon."""
_STATE = Path("/run/nfcore-demo.json")


@dataclass(frozen=True)
class Before:
    """State of the host before the demo: which folders above the demo's files existed, and which were mounts."""

    paths: list[str]
    mounts: list[str]


class HostState:
    """Context: only one demo runs on this machine, and in the end the host is as it was before.

    `control_socket` and `pins` are the paths in the demo's TOML; what is there belongs to the demo.
    Raises HostError if another demo runs.
    """

    def __init__(self, control_socket: Path, pins: Path) -> None:
        notes = control_socket.with_name(control_socket.name + ".state")
        self.own = (control_socket, notes, pins, SCRATCH, BALANCER_PINS)
        self._folders = sorted(
            {folder for path in self.own for folder in path.parents if folder.is_relative_to(FOLDER)},
            key=lambda folder: len(folder.parts),
            reverse=True,
        )
        self.before = Before([], [])
        # An abstract socket name vanishes with its process, however that ends: no stale lock file.
        self._lock = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        try:
            self._lock.bind("\0nfcore-demo")
        except OSError as error:
            self._lock.close()
            raise HostError("another demo is running on this machine: end it first (Ctrl-C there)") from error
        if _STATE.exists():
            self.before = Before(**json.loads(_STATE.read_text()))
        else:
            self.before = Before(
                [str(folder) for folder in self._folders if folder.is_dir()],
                [str(folder) for folder in self._folders if folder.is_mount()],
            )
            _STATE.write_text(json.dumps(asdict(self.before)))
        self.sweep()
        return self

    def __exit__(self, *exception: object) -> None:
        self.sweep()
        _STATE.unlink(missing_ok=True)
        self._lock.close()

    def sweep(self) -> None:
        """Remove the demo's socket, state file and pins, and mounts and folders that were not there before.

        A mount or folder that has other content stays: another program uses it now.
        """
        for path in self.own:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                _unmount(path)
                _remove(path)
            else:
                path.unlink(missing_ok=True)
        for folder in self._folders:
            if str(folder) not in self.before.mounts:
                _unmount(folder)
            if str(folder) not in self.before.paths:
                _remove(folder)

    def left(self) -> list[str]:
        """Return the paths of the demo that are still on the host; empty after a clean end."""
        new = [folder for folder in self._folders if str(folder) not in self.before.paths]
        mounts = [folder for folder in self._folders if str(folder) not in self.before.mounts]
        # A folder or mount with content of another program does not count: the demo must not remove it.
        return [
            *(str(path) for path in (*self.own, _STATE) if path.exists()),
            *(str(folder) for folder in new if folder.is_dir() and not any(folder.iterdir())),
            *(f"{folder} (mounted)" for folder in mounts if folder.is_mount() and _nothing_pinned(folder)),
        ]


def _nothing_pinned(mount: Path) -> bool:
    # The kernel itself puts two files, *.debug, into every BPF file system.
    return all(entry.suffix == ".debug" for entry in mount.iterdir())


def _unmount(folder: Path) -> None:
    if folder.is_mount() and _nothing_pinned(folder):
        subprocess.run(["umount", str(folder)], check=False, capture_output=True)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
