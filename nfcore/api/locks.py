# SPDX-License-Identifier: Apache-2.0
"""Locks on interfaces, and on what else a plugin names, that a process holds while it lives.

Two daemons with different sockets in their TOMLs do not notice each other; their locks keep them apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import Self

from ..errors import HostError, in_use
from ..folders import make_folder
from ..refusals import explain

FOLDER = Path("/run/nfcore/locks")
ATTEMPTS = 50
RETRY_PAUSE = 0.01
"""Seconds between two attempts. A process that was killed may hold its locks for some tenths of a second."""


class Locks:
    """The locks of this process. They are released when the context is left or the process dies."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._held: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for path, fd in self._held.items():
            path.unlink(missing_ok=True)
            os.close(fd)
        self._held.clear()
        with contextlib.suppress(OSError):  # it has locks of other processes, or was never made
            self._folder.rmdir()

    def interface(self, name: str, ifindex: int) -> None:
        """Lock an interface of this network namespace; HostError when another process holds it."""
        namespace = Path("/proc/self/ns/net").stat().st_ino
        self.acquire(f"net-{namespace}-{ifindex}", f"interface {name}")

    def folder(self, path: Path) -> None:
        """Lock a folder, such as one with pins; HostError when another process holds it."""
        self.path(path, "folder")

    def path(self, path: Path, kind: str) -> None:
        """Lock a path, whether there is something or not; HostError when another process holds it."""
        digest = hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=8).hexdigest()
        self.acquire(f"{kind}-{digest}", f"{kind} {path}")

    def acquire(self, key: str, what: str) -> None:
        """Lock anything by `key`, a file name; `what` names it in messages. HostError when another process holds it."""
        path = self._folder / key
        if path in self._held:
            return
        self._remove_abandoned()
        try:
            fd = self._lock(path)
        except OSError as error:
            raise HostError(f"cannot lock {what} by {path}: {explain(error, path)}") from None
        if fd is None:
            owner = path.read_text(errors="replace").strip() if path.exists() else ""
            raise in_use(what, owner or "?")
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            path.unlink(missing_ok=True)
            os.close(fd)
            raise HostError(f"cannot lock {what} by {path}: {explain(error, path)}") from None
        self._held[path] = fd

    def _lock(self, path: Path) -> int | None:
        """Open and lock the file at `path`: its descriptor, or None while another process holds it."""
        for attempt in range(ATTEMPTS):
            make_folder(self._folder)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                if attempt == ATTEMPTS - 1:
                    raise
                continue  # another process that leaves may have removed the folder in between
            if _locked(fd) and _is_at(fd, path):
                return fd
            os.close(fd)
            # Another process holds it, or looks whether it is abandoned, or has just removed it.
            time.sleep(RETRY_PAUSE)
        return None

    def _remove_abandoned(self) -> None:
        """Remove the files of processes that were killed."""
        foreign: list[Path] = []
        with contextlib.suppress(OSError):
            foreign = [path for path in self._folder.iterdir() if path not in self._held]
        for path in foreign:
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if _locked(fd) and _is_at(fd, path):
                        path.unlink()
                finally:
                    os.close(fd)


class NoLocks(Locks):
    """For who only looks at what another process may use: locks nothing, and is never refused."""

    def acquire(self, key: str, what: str) -> None:
        """Do nothing."""


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`: a lock on a removed file locks nothing."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), status)
