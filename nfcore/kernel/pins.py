# SPDX-License-Identifier: Apache-2.0
"""Pins maps and programs on a bpf file system, where they outlive the process."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct
from pathlib import Path

from ..errors import HostError
from ..folders import make_folder
from .syscall import Command, bpf, is_on_bpffs, mount_bpffs, unmount

log = logging.getLogger(__name__)
_SYSTEM_BPFFS = Path("/sys/fs/bpf")


def ensure_bpffs(path: Path) -> bool:
    """Make ``path`` a directory on a bpf file system; mount one there if it is on none.

    Returns whether something was mounted: at ``path``, or at ``/sys/fs/bpf`` when ``path`` lies below it. Raises
    HostError when the kernel refuses.
    """
    mounted = False
    if path != _SYSTEM_BPFFS and _SYSTEM_BPFFS in path.parents and _SYSTEM_BPFFS.is_dir():
        # No directory can be made in sysfs, so mount the file system first.
        mounted = _mount_if_missing(_SYSTEM_BPFFS)
    try:
        make_folder(path, 0o700)
    except OSError as error:
        raise HostError(f"cannot create the directory {path} for pins: {error.strerror}") from error
    if not is_on_bpffs(path) and any(path.iterdir()):
        raise HostError(f"{path} is no bpf file system and not empty: mounting one there would hide what it holds")
    return _mount_if_missing(path) or mounted


def remove_bpffs(path: Path) -> None:
    """Undo :func:`ensure_bpffs` for an empty folder: unmount the file system at ``path`` and remove the folder.

    Does nothing when the folder still has pins or does not exist. Raises HostError when the kernel refuses.
    """
    # The kernel puts maps.debug and progs.debug into a new bpf file system. Names of pins cannot have a dot.
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


def _mount_if_missing(path: Path) -> bool:
    try:
        if is_on_bpffs(path):
            return False
        mount_bpffs(path)
        if not _in_first_mount_namespace():
            log.warning(
                "%s is mounted in this mount namespace only and disappears with it: enter a network namespace with "
                "nsenter --net=/run/netns/NAME, which keeps the mount namespace, instead of ip netns exec",
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
    """Pin the map or program ``fd`` at ``path``. Raises HostError when something is there, or no bpf file system."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        bpf(Command.OBJ_PIN, bytearray(struct.pack("=QII", ctypes.addressof(name), fd, 0)))
    except OSError as error:
        raise HostError(f"cannot pin at {path}: {_pin_reason(error, path)}") from error


def obj_get(path: Path) -> int:
    """Open what is pinned at ``path``; return a new file descriptor. Raises HostError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        return bpf(Command.OBJ_GET, bytearray(struct.pack("=QII", ctypes.addressof(name), 0, 0)))
    except OSError as error:
        raise HostError(f"cannot open the pin {path}: {_pin_reason(error, path)}") from error


def _pin_reason(error: OSError, path: Path) -> str:
    if error.errno == errno.EEXIST:
        return "something is pinned there already; remove it first"
    if error.errno == errno.ENOENT:
        return "no such file or directory"
    if error.errno == errno.EPERM and "." in path.name:
        return "a bpf file system takes no name with a dot"
    if error.errno == errno.EPERM and path.parent.is_dir() and not is_on_bpffs(path.parent):
        return f"{path.parent} is not on a bpf file system"
    return error.strerror or str(error)
