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
BPFFS = FOLDER / "bpf"
_NOTE = Path("/run/nfcore-demo.json")


@dataclass(frozen=True)
class Before:
    """How the host was: whether `FOLDER` existed and whether a file system was mounted on `BPFFS`."""

    folder: bool
    mounted: bool


class Traces:
    """Context: alone on this machine, and the host as it was at the end.

    `socket` and `pins` are the paths that the demo's own TOML names. Raises HostError if another demo runs.
    """

    def __init__(self, control_socket: Path, pins: Path) -> None:
        self.socket = control_socket
        self.pins = pins
        self.before = Before(folder=False, mounted=False)
        # An abstract name vanishes with its owner, however that ends: no stale lock file.
        self._lock = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        try:
            self._lock.bind("\0nfcore-demo")
        except OSError as error:
            self._lock.close()
            raise HostError(
                "another demo is running on this machine: stop it first (Ctrl-C in its terminal)"
            ) from error
        if _NOTE.exists():
            self.before = Before(**json.loads(_NOTE.read_text()))
        else:
            self.before = Before(folder=FOLDER.is_dir(), mounted=BPFFS.is_mount())
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
        """Remove the demo's socket and pins, and the mount and folders if they were not there before.

        The mount goes only when nothing is pinned in it: somebody else may have begun to use it meanwhile.
        """
        with contextlib.suppress(OSError):
            self.socket.unlink(missing_ok=True)
        shutil.rmtree(self.pins, ignore_errors=True)
        if not self.before.mounted and BPFFS.is_mount() and not any(BPFFS.iterdir()):
            subprocess.run(["umount", str(BPFFS)], check=False, capture_output=True)
        if not self.before.folder:
            for folder in (BPFFS, FOLDER):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def left(self) -> list[str]:
        """What is on the host now and was not there before, as paths; empty after a clean end."""
        found = [str(path) for path in (self.socket, self.pins, _NOTE) if path.exists()]
        if not self.before.mounted and BPFFS.is_mount():
            found.append(f"{BPFFS} (mounted)")
        if not self.before.folder and FOLDER.exists():
            found.append(str(FOLDER))
        return found
