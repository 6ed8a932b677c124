# SPDX-License-Identifier: Apache-2.0
"""Names for maps and programs in a bpf file system, where they outlive the process."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct
from pathlib import Path

from ..errors import HostError
from .syscall import Command, bpf, is_on_bpffs, mount_bpffs, unmount

log = logging.getLogger(__name__)
_SYSTEM_BPFFS = Path("/sys/fs/bpf")
_KERNELS_OWN = frozenset({"maps.debug", "progs.debug"})
"""Files that the kernel puts into the root of every bpf file system."""


def ensure_bpffs(path: Path) -> bool:
    """Make ``path`` a directory of a bpf file system, mounting one there unless it is on one already.

    Returns whether something was mounted: at ``path``, or at ``/sys/fs/bpf`` when ``path`` lies below
    it. Raises HostError when the kernel refuses.
    """
    mounted = False
    if path != _SYSTEM_BPFFS and _SYSTEM_BPFFS in path.parents and _SYSTEM_BPFFS.is_dir():
        # sysfs takes no directories: below it, the file system has to come first.
        mounted = _mount_unless_there(_SYSTEM_BPFFS)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot create the directory {path} for pins: {error.strerror}") from error
    if not is_on_bpffs(path) and any(path.iterdir()):
        raise HostError(f"{path} is no bpf file system and not empty: mounting one there would hide what it holds")
    return _mount_unless_there(path) or mounted


def remove_bpffs(path: Path) -> None:
    """Undo :func:`ensure_bpffs` for an empty folder: unmount what is mounted at ``path`` and remove it.

    A folder that still holds pins, or that is not there, is left alone. Raises HostError when the
    kernel refuses.
    """
    # The kernel puts maps.debug and progs.debug into a new bpf file system; no pin can have a dot.
    if not path.is_dir() or any("." not in entry.name for entry in path.iterdir()):
        return
    if path.is_mount() and path != _SYSTEM_BPFFS:
        try:
            unmount(path)
        except OSError as error:
            raise HostError(f"cannot unmount {path}: {error.strerror}") from error
    try:
        path.rmdir()
    except OSError as error:
        raise HostError(f"cannot remove the directory {path}: {error.strerror}") from error


def _mount_unless_there(path: Path) -> bool:
    try:
        if is_on_bpffs(path):
            return False
        mount_bpffs(path)
        if not _in_first_mount_namespace():
            log.warning(
                "%s is mounted in this mount namespace only and goes with it: enter a network namespace with "
                "nsenter --net=/run/netns/NAME, which leaves mounts alone, rather than with ip netns exec",
                path,
            )
    except OSError as error:
        raise HostError(
            f"cannot mount a bpf file system at {path}: {error.strerror} (needs root, CAP_SYS_ADMIN)"
        ) from error
    return True


def _in_first_mount_namespace() -> bool:
    try:
        return Path("/proc/self/ns/mnt").stat().st_ino == Path("/proc/1/ns/mnt").stat().st_ino
    except OSError:
        return True


def obj_pin(fd: int, path: Path) -> None:
    """Give the map or program behind ``fd`` the name ``path``, on a bpf file system.

    Raises HostError when the name is taken or not on such a file system.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        bpf(Command.OBJ_PIN, bytearray(struct.pack("=QII", ctypes.addressof(name), fd, 0)))
    except OSError as error:
        raise HostError(f"cannot pin at {path}: {_pin_trouble(error, path)}") from error


def obj_get(path: Path) -> int:
    """Open what is pinned at ``path``: a new file descriptor. Raises HostError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        return bpf(Command.OBJ_GET, bytearray(struct.pack("=QII", ctypes.addressof(name), 0, 0)))
    except OSError as error:
        raise HostError(f"cannot open the pin {path}: {_pin_trouble(error, path)}") from error


def _pin_trouble(error: OSError, path: Path) -> str:
    if error.errno == errno.EEXIST:
        return "something is pinned there already; remove it first"
    if error.errno == errno.ENOENT:
        return "no such file or directory"
    if error.errno == errno.EPERM and "." in path.name:
        return "a bpf file system takes no name with a dot"
    if error.errno == errno.EPERM and path.parent.is_dir() and not is_on_bpffs(path.parent):
        return f"{path.parent} is not on a bpf file system"
    return error.strerror or str(error)
