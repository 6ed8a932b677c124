# SPDX-License-Identifier: Apache-2.0
"""The system calls behind maps and programs: bpf(2), perf_event_open(2), mount(2), statfs(2).

Numbers and attribute layouts are those of the kernel's ``include/uapi/linux/bpf.h``,
``include/uapi/linux/perf_event.h`` and the system call tables of x86-64 and arm64. Attributes are
byte arrays that the caller packs with :mod:`struct` in native byte order; the kernel extends a short one with zeros.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from enum import IntEnum
from functools import cache
from pathlib import Path

from ..errors import UnsupportedError

ENOTSUPP = 524
"""A kernel-internal error, "not supported", which bpf(2) returns for a map without a batch operation."""

_SYSCALLS = {
    # machine: (bpf, perf_event_open)
    "x86_64": (321, 298),
    "aarch64": (280, 241),
}
_LIBC = ctypes.CDLL(None, use_errno=True)


_CLONE_NEWNET = 0x4000_0000


class Command(IntEnum):
    """``enum bpf_cmd``, the commands used here."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_ATTACH = 8
    PROG_DETACH = 9
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31
    PROG_BIND_MAP = 35


@cache
def _numbers() -> tuple[int, int]:
    machine = platform.machine()
    try:
        return _SYSCALLS[machine]
    except KeyError:
        raise UnsupportedError(f"bpf(2) on {machine}", " or ".join(_SYSCALLS)) from None


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def bpf(command: Command, attr: bytearray) -> int:
    """Make the system call with ``attr``, which the kernel may write to.

    Returns the kernel's result, often a close-on-exec file descriptor; raises OSError.
    """
    number = _numbers()[0]
    pointer = (ctypes.c_char * len(attr)).from_buffer(attr)
    while True:
        result: int = _LIBC.syscall(number, int(command), pointer, len(attr))
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code), command.name)


def object_info(fd: int, size: int, request: bytes = b"") -> bytearray:
    """The first ``size`` bytes of ``struct bpf_map_info`` or ``bpf_prog_info`` of ``fd``.

    ``request``: its beginning as the kernel is to find it, with the lengths and addresses of buffers.
    """
    info = bytearray(request.ljust(size, b"\0"))
    address = ctypes.addressof((ctypes.c_char * size).from_buffer(info))
    bpf(Command.OBJ_GET_INFO_BY_FD, bytearray(struct.pack("=IIQ", fd, size, address)))
    return info


def fd_by_id(command: Command, identifier: int) -> int:
    """Open the map or program with this id (a new file descriptor); OSError ENOENT if there is none."""
    return bpf(command, bytearray(struct.pack("=III", identifier, 0, 0)))


def object_kind(fd: int) -> str:
    """Kind of the object behind ``fd``: ``"bpf-map"``, ``"bpf-prog"``, ``"bpf_link"`` or another."""
    return str(Path(f"/proc/self/fd/{fd}").readlink()).removeprefix("anon_inode:").strip("[]")


def perf_event_open(attr: bytes, cpu: int) -> int:
    """Open a perf event for all processes on ``cpu``; returns a close-on-exec descriptor; raises OSError."""
    close_on_exec = ctypes.c_ulong(8)
    result: int = _LIBC.syscall(_numbers()[1], attr, -1, cpu, -1, close_on_exec)
    return _checked(result, "perf_event_open")


def enter_network_namespace(namespace: int) -> None:
    """Move the calling thread into a network namespace, an open file. OSError."""
    _checked(_LIBC.setns(namespace, _CLONE_NEWNET), "setns")


def mount_bpffs(target: Path) -> None:
    """Mount a bpf file system at ``target`` that only root can enter; OSError when refused."""
    arguments = (b"bpf", os.fsencode(target), b"bpf", ctypes.c_ulong(0), b"mode=0700")
    _checked(_LIBC.mount(*arguments), "mount")


def unmount(target: Path) -> None:
    """Unmount what is mounted at ``target``; OSError when refused, EBUSY while it is in use."""
    _checked(_LIBC.umount2(os.fsencode(target), 0), "umount")


def is_on_bpffs(path: Path) -> bool:
    """Whether the existing ``path`` lies on a bpf file system (``f_type`` is BPF_FS_MAGIC)."""
    result = ctypes.create_string_buffer(256)
    _checked(_LIBC.statfs(os.fsencode(path), result), "statfs")
    # BPF_FS_MAGIC of include/uapi/linux/magic.h; f_type is the first word of struct statfs.
    return bool(struct.unpack_from("=q", result)[0] == 0xCAFE4A11)


def lift_locked_memory_limit() -> bool:
    """Remove this process's limit of locked memory, which in kernels before 5.11 also limits maps.

    Returns whether the limit was raised, so that a second try of a refused call makes sense.
    """
    unlimited = resource.RLIM_INFINITY
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == unlimited:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, unlimited))
    except (OSError, ValueError):
        return False
    return True
