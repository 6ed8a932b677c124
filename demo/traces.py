# SPDX-License-Identifier: Apache-2.0
"""What the demo leaves on the host outside its namespaces, and how it is taken back.

The daemon's socket, the emulated NIC's pins and the BPF file system below ``/run/nfcore`` are the only such
things. What was there before is written down first (`_NOTE`), so that even a demo that was killed without
a chance to clean up can be cleaned up after by the next one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nfcore.errors import HostError

FOLDER = Path("/run/nfcore")
SCRATCH = FOLDER / "demo"
"""For files of one run."""
BALANCER_PINS = FOLDER / "bpf" / "katran-demo"
"""Where a balancer that is to survive its daemon is pinned."""
_NOTE = Path("/run/nfcore-demo.json")


@dataclass(frozen=True)
class Before:
    """How the host was: which folders above the demo's own files existed, and which of them were mounts."""

    paths: list[str]
    mounts: list[str]


class Traces:
    """Context: alone on this machine, and the host as it was at the end.

    `control_socket` and `pins` are the paths that the demo's own TOML names; what is there is the demo's.
    Raises HostError if another demo runs.
    """

    def __init__(self, control_socket: Path, pins: Path) -> None:
        self.own = (control_socket, control_socket.with_suffix(".state"), pins, SCRATCH, BALANCER_PINS)
        self._folders = sorted(
            {folder for path in self.own for folder in path.parents if folder.is_relative_to(FOLDER)},
            key=lambda folder: len(folder.parts),
            reverse=True,
        )
        self.before = Before([], [])
        # An abstract name vanishes with its owner, however that ends: no stale lock file.
        self._lock = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        try:
            self._lock.bind("\0nfcore-demo")
        except OSError as error:
            self._lock.close()
            raise HostError("another demo is running on this machine: end it first (Ctrl-C there)") from error
        if _NOTE.exists():
            self.before = Before(**json.loads(_NOTE.read_text()))
        else:
            self.before = Before(
                [str(folder) for folder in self._folders if folder.is_dir()],
                [str(folder) for folder in self._folders if folder.is_mount()],
            )
            _NOTE.write_text(json.dumps(asdict(self.before)))
        self.sweep()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.sweep()
        _NOTE.unlink(missing_ok=True)
        self._lock.close()

    def sweep(self) -> None:
        """Remove the demo's socket, notes and pins, and mounts and folders that were not there before.

        A mount or folder in which there is something else stays: somebody began to use it meanwhile.
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
        """What of the demo's is on the host still, as paths; empty after a clean end."""
        new = [folder for folder in self._folders if str(folder) not in self.before.paths]
        mounts = [folder for folder in self._folders if str(folder) not in self.before.mounts]
        # What holds something of somebody else's by now is no longer the demo's to remove.
        return [
            *(str(path) for path in (*self.own, _NOTE) if path.exists()),
            *(str(folder) for folder in new if folder.is_dir() and not any(folder.iterdir())),
            *(f"{folder} (mounted)" for folder in mounts if folder.is_mount() and _nothing_pinned(folder)),
        ]


def _nothing_pinned(mount: Path) -> bool:
    # The kernel itself keeps two files in every BPF file system.
    return all(entry.suffix == ".debug" for entry in mount.iterdir())


def _unmount(folder: Path) -> None:
    if folder.is_mount() and _nothing_pinned(folder):
        subprocess.run(["umount", str(folder)], check=False, capture_output=True)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
