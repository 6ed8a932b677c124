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
from ..refusals import Capability, cause_of, describe_lack, explain, missing_capabilities
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
        raise HostError(f"cannot create the directory {path} for pins: {explain(error, path)}") from error
    check_bpffs(path)
    return _mount_if_missing(path) or mounted


def check_bpffs(path: Path) -> None:
    """HostError when :func:`ensure_bpffs` would refuse. Changes nothing."""
    place = path
    while not os.path.lexists(place):
        place = place.parent
    try:
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        fits = is_on_bpffs(place)
        if place == path and not fits and any(path.iterdir()):
            raise HostError(f"{path} is no bpf file system and not empty: mounting one there would hide what it holds")
        if not os.access(place, os.W_OK):
            read_only = os.statvfs(place).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number))
    except OSError as error:
        raise HostError(f"cannot pin in {path}: {explain(error, path)}") from error
    below = path != _SYSTEM_BPFFS and _SYSTEM_BPFFS in path.parents and _SYSTEM_BPFFS.is_dir()
    mount = _SYSTEM_BPFFS if below else path
    lacking = missing_capabilities([Capability.SYS_ADMIN])
    if lacking and not fits and not (mount.is_dir() and is_on_bpffs(mount)):
        raise HostError(_no_mount(mount, describe_lack(lacking)))


def _no_mount(path: Path, reason: str) -> str:
    folder = "" if path.is_dir() else f"mkdir -p {path} && "
    return f"cannot mount a bpf file system at {path}: {reason}; or mount it before: {folder}mount -t bpf bpf {path}"


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
        except PermissionError:
            # It was mounted by somebody with more rights than this process has, so it is not nfcore's to remove.
            log.debug("%s stays mounted: this process may not unmount it", path)
            return
        except OSError as error:
            raise HostError(f"cannot unmount {path}: {explain(error, path)}") from error
    try:
        path.rmdir()
    except OSError as error:
        raise HostError(f"cannot remove the directory {path}: {explain(error, path)}") from error


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
        raise HostError(_no_mount(path, explain(error, path, needs=[Capability.SYS_ADMIN]))) from error
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
        return cause_of(errno.ENOENT, path) or "no such file or directory"
    if error.errno == errno.EPERM and "." in path.name:
        return "a bpf file system takes no name with a dot"
    if error.errno == errno.EPERM and path.parent.is_dir() and not is_on_bpffs(path.parent):
        return f"{path.parent} is not on a bpf file system"
    needs = [] if error.errno == errno.EACCES else [Capability.BPF]
    return explain(error, path, needs=needs)
