# SPDX-License-Identifier: Apache-2.0
"""Keeps compiled programs on disk, so that a second start needs no compiler.

The key of an entry is a digest of the request: source, function, flags, headers. An entry is valid as long as nothing
that the compiler read has changed: the content of the source and of every header, the list of headers in the searched
folders, and the compiler's own libraries::

    FOLDER/KEY      line 1: SHA-256 of the rest      line 2: JSON, see _Entry

Entries have :func:`placeholders` for the descriptors of maps, which differ at every start; :func:`relocate` puts the
descriptors in. An entry is code for the kernel, so the folder and its files are used only if they belong to this user
and no other user can open them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import stat
import struct
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..folders import make_folder
from .headers import default_cache_dir

_LOG = logging.getLogger(__name__)

_FORMAT = 1
"""To be raised when the format of entries, or the way of compiling, changes without a change to the worker."""
_MOST_ENTRIES = 256
_MOST_BYTES = 16 << 20
"""Of an entry."""
_PLACEHOLDER_BASE = 0x5EED0000
# Time stamps of files come from a clock that advances once per tick, every 10 ms at 100 Hz.
_CLOCK_SLACK_NS = 50_000_000

# include/uapi/linux/bpf.h: struct bpf_insn is opcode, two registers of 4 bits, offset, immediate value.
_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1


@dataclass(frozen=True)
class Compiled:
    """A compiled program, with placeholders for maps, and the files that it was made from."""

    instructions: bytes
    """``struct bpf_insn[]``."""
    license: str
    files: tuple[Path, ...]
    """The source and every header that the compiler read."""
    libraries: tuple[Path, ...]
    """The shared libraries of the compiler."""
    searched: tuple[Path, ...]
    """Folders in which the compiler searched for headers, at any depth."""


@dataclass(frozen=True)
class _Entry:
    """A compiled program on disk."""

    instructions: str
    """Hexadecimal."""
    license: str
    files: dict[str, str]
    """Path → SHA-256 of the content."""
    libraries: dict[str, str]
    """Path → size and time of the last change; the files are too large to read at each start."""
    searched: dict[str, str]
    """Folder → SHA-256 of the names of the headers in it."""


def placeholders(names: Iterable[str]) -> dict[str, int]:
    """Map → the number that stands for its descriptor in compiled code."""
    return {name: _PLACEHOLDER_BASE + index for index, name in enumerate(sorted(names))}


def relocate(instructions: bytes, descriptors: Mapping[int, int]) -> bytes:
    """Replace each placeholder in ``instructions`` by its descriptor.

    Raises KeyError for a reference to any other map.
    """
    code = bytearray(instructions)
    for position in range(0, len(code), _INSTRUCTION.size):
        opcode, registers, offset, immediate = _INSTRUCTION.unpack_from(code, position)
        # The source register is the upper half of the byte: x86-64 and arm64 are little-endian.
        if opcode == _LOAD_IMM64 and registers >> 4 == _PSEUDO_MAP_FD:
            _INSTRUCTION.pack_into(code, position, opcode, registers, offset, descriptors[immediate])
    return bytes(code)


def cache_key(*request: Any) -> str:
    """The name of an entry: a digest of the request."""
    return hashlib.sha256(json.dumps([_FORMAT, platform.machine(), *request]).encode()).hexdigest()


class ProgramCache:
    """The entries of one folder. Never raises: without a usable folder it finds nothing and keeps nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder`` defaults to ``programs`` in :func:`.headers.default_cache_dir`; it is created when needed."""
        self.folder = folder or default_cache_dir() / "programs"

    def find(self, key: str) -> Compiled | None:
        """The program of this key; None when there is none, or when a file that it was made from has changed."""
        if not self._usable():
            return None
        try:
            entry = _parse(_read(self.folder / key))
            fresh = entry is not None and _fingerprint(entry) == (entry.files, entry.libraries, entry.searched)
        except OSError:
            return None
        if entry is None or not fresh:
            return None
        _mark_as_used(self.folder / key)
        return Compiled(
            bytes.fromhex(entry.instructions),
            entry.license,
            tuple(map(Path, entry.files)),
            tuple(map(Path, entry.libraries)),
            tuple(map(Path, entry.searched)),
        )

    def keep(self, key: str, compiled: Compiled, started_ns: int) -> bool:
        """Keep a program whose compilation began at ``started_ns`` (``time.time_ns()``); return whether it was kept.

        It is not kept when a file may have changed since then: the compiler may have read the old or the new content.
        """
        try:
            if any(_changed_ns(path) > started_ns - _CLOCK_SLACK_NS for path in compiled.files):
                return False
            make_folder(self.folder, 0o700)
            if not self._usable():
                return False
            _write(self.folder, key, _entry(compiled))
            self._prune()
        except OSError as error:
            _LOG.debug("cannot keep a compiled program in %s: %s", self.folder, error)
            return False
        return True

    def _usable(self) -> bool:
        try:
            status = self.folder.lstat()
        except OSError:
            return False
        if stat.S_ISDIR(status.st_mode) and _is_private(status):
            return True
        _LOG.warning("%s is not used: it must be a folder of user %d with mode 0700", self.folder, os.geteuid())
        return False

    def _prune(self) -> None:
        entries = sorted(self.folder.iterdir(), key=_changed_ns)
        for path in entries[:-_MOST_ENTRIES]:
            path.unlink(missing_ok=True)


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _read(path: Path) -> bytes:
    """The content of a file that only this user can open; PermissionError for any other file."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not _is_private(status):
            raise PermissionError(f"{path} is not private")
        return file.read(_MOST_BYTES)


def _parse(content: bytes) -> _Entry | None:
    checksum, _, text = content.partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        return None
    return _Entry(**json.loads(text))


def _write(folder: Path, key: str, entry: _Entry) -> None:
    """Write an entry atomically: a reader sees the old one or the new one."""
    text = json.dumps(asdict(entry)).encode()
    # mkstemp creates the file with mode 0600.
    number, name = tempfile.mkstemp(prefix=".new-", dir=folder)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        Path(name).rename(folder / key)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _mark_as_used(path: Path) -> None:
    try:
        os.utime(path)
    except OSError as error:
        _LOG.debug("cannot touch %s: %s", path, error)


def _entry(compiled: Compiled) -> _Entry:
    without_digests = _Entry(
        compiled.instructions.hex(),
        compiled.license,
        dict.fromkeys(map(str, compiled.files), ""),
        dict.fromkeys(map(str, compiled.libraries), ""),
        dict.fromkeys(map(str, compiled.searched), ""),
    )
    files, libraries, searched = _fingerprint(without_digests)
    return replace(without_digests, files=files, libraries=libraries, searched=searched)


def _fingerprint(entry: _Entry) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """The digests of the entry's files, libraries and folders as they are now. OSError when one is gone."""
    return (
        {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in entry.files},
        {path: _stamp(Path(path)) for path in entry.libraries},
        {path: _names(Path(path)) for path in entry.searched},
    )


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _names(folder: Path) -> str:
    """A digest of the names of headers below ``folder``: a new header may hide one that was read."""
    names: Sequence[str] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.h"))
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _changed_ns(path: Path) -> int:
    status = path.stat()
    # Anyone may set mtime to any value; ctime cannot be set.
    return max(status.st_mtime_ns, status.st_ctime_ns)
