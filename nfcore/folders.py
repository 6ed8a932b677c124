# SPDX-License-Identifier: Apache-2.0
"""Makes folders and files with the modes that they need, whatever the user's umask is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

FOR_ALL = 0o755
"""Mode of a folder through which others find what they may use, such as the daemon's socket."""
PRIVATE = 0o600
"""Mode of a file for its user alone."""


def make_folder(path: Path, mode: int = FOR_ALL) -> None:
    """Make a folder with a mode unless it is there, and its missing parents for all to enter. OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        wanted = mode if folder == path else FOR_ALL
        try:
            folder.mkdir(wanted)
        except FileExistsError:
            if folder.is_dir():
                continue  # somebody else has just made it
            raise
        folder.chmod(wanted)


def write_file(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Write a file anew, with a mode. OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(content)


def closed_to_group(path: Path, group: int) -> Iterator[Path]:
    """Yield the folders above a path that members of a group cannot enter; it must exist."""
    for folder in path.parents:
        status = folder.stat()
        if not status.st_mode & (0o010 if status.st_gid == group else 0o001):
            yield folder
