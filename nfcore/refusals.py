# SPDX-License-Identifier: Apache-2.0
"""What the kernel refuses, in words: the meaning of an error number at a place, and what to do about its cause.

An error number has many causes: "Permission denied" may mean a folder's mode, "Operation not permitted" a missing
capability or a container. So the place is looked at when the error has happened, and the advice fits what is found.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SMALLEST_ROOM = 16
"""MiB that the advice for a full tmpfs gives it at least."""
_GET_FLAGS = 0x8008_6601
"""``FS_IOC_GETFLAGS`` on 64-bit machines."""
_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20
_WHOLE_RANGE = ["0", "0", "4294967295"]
"""Of ``/proc/self/uid_map`` outside of user namespaces."""


class Capability(IntEnum):
    """Capabilities that nfcore needs; the numbers of ``include/uapi/linux/capability.h``."""

    DAC_OVERRIDE = 1
    NET_ADMIN = 12
    SYS_ADMIN = 21
    PERFMON = 38
    BPF = 39

    def __str__(self) -> str:
        return f"CAP_{self.name}"


PURPOSES = {
    Capability.BPF: "creates maps and loads programs",
    Capability.NET_ADMIN: "attaches programs to interfaces",
    Capability.PERFMON: "lets programs calculate with the addresses of packets",
}
"""Capability → what it is for, of those without which no network function runs."""
TO_LOAD = tuple(PURPOSES)
"""What loading and attaching a program takes. Nothing else is needed as long as bpf file systems are mounted."""


def missing_capabilities(needed: Iterable[Capability]) -> list[Capability]:
    """Tell which capabilities this thread lacks. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON."""
    held = int(_status("CapEff") or "0", 16)
    if held >> Capability.SYS_ADMIN & 1:
        held |= 1 << Capability.BPF | 1 << Capability.PERFMON
    return [capability for capability in needed if not held >> capability & 1]


def describe_lack(lacking: Sequence[Capability]) -> str:
    """Say what to do about missing capabilities."""
    *first, last = (f"{capability} ({PURPOSES.get(capability, 'administers the machine')})" for capability in lacking)
    names = f"{', '.join(first)} and {last}" if first else last
    if os.geteuid() != 0:
        return f"needs root, or {names}: use sudo"
    # A root without them is confined: by a unit, a container, or setpriv.
    grant = "CapabilityBoundingSet= in the unit, --cap-add of the container"
    return f"needs {names}, which this root lacks: grant it where it is confined ({grant})"


def explain(error: OSError, path: Path | None = None, *, needs: Iterable[Capability] = ()) -> str:
    """Say why the kernel refused: its words, the cause, and what to do.

    `path`: where; default: the file that the error names. `needs`: capabilities that the call takes.
    """
    words = error.strerror or str(error)
    named = error.filename
    if path is None and isinstance(named, str) and named.startswith("/"):
        path = Path(named)
    cause = cause_of(error.errno or 0, path, needs)
    return f"{words}: {cause}" if cause else words


def cause_of(number: int, path: Path | None = None, needs: Iterable[Capability] = ()) -> str:
    """Give the cause of an error number at `path` and what to do; empty when nothing more is known than its words."""
    if number in (errno.EPERM, errno.EACCES) and (lacking := missing_capabilities(needs)):
        return describe_lack(lacking)
    at_place, of_process = _AT_PLACE.get(number), _OF_PROCESS.get(number)
    cause = at_place(path) if at_place is not None and path is not None else ""
    return cause or (of_process() if of_process is not None else "")


@dataclass(frozen=True)
class _Mount:
    """A line of ``/proc/self/mountinfo``."""

    point: Path
    kind: str
    options: tuple[str, ...]
    """Of the mount."""
    all_options: tuple[str, ...]
    """Of the file system, which several mounts may share."""

    def __str__(self) -> str:
        return f"the file system at {self.point} ({self.kind})"


def _mount_of(path: Path) -> _Mount:
    """The mount that has a file, or would have it."""
    place = Path(os.path.realpath(_existing(path)))
    found = _Mount(Path("/"), "unknown", (), ())
    with suppress(OSError, ValueError, IndexError):
        # The last line of a mount point is the mount that hides the others.
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            words, _, rest = line.partition(" - ")
            point = Path(_unescape(words.split()[4]))
            if place.is_relative_to(point) and len(point.parts) >= len(found.point.parts):
                kind, *_, options = rest.split()
                found = _Mount(point, kind, tuple(words.split()[5].split(",")), tuple(options.split(",")))
    return found


def _unescape(text: str) -> str:
    for code, char in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, char)
    return text


def _over_quota(path: Path) -> str:
    return f"user {os.geteuid()} has used up its quota of {_mount_of(path)}: remove files, or raise the quota"


def _absent(path: Path) -> str:
    absent = next((each for each in _way_to(path) if not os.path.lexists(each)), path)
    return "" if absent == path.absolute() else f"there is no folder {absent}"


def _in_the_way(path: Path) -> str:
    blocking = next((each for each in _way_to(path) if not stat.S_ISDIR(_mode(each) or stat.S_IFDIR)), None)
    return "" if blocking is None else f"{blocking} is no folder: remove it, or choose another place"


def _circle(path: Path) -> str:
    circle = next((each for each in _way_to(path) if _goes_in_circles(each)), path)
    return f"the symbolic link {circle} leads back to itself: remove it"


def _full(path: Path) -> str:
    mount = _mount_of(path)
    room = os.statvfs(mount.point)
    files = room.f_files > 0 and room.f_ffree == 0
    what = f"{mount} has no room for {'another file' if files else 'more data'}: remove files there"
    if mount.kind != "tmpfs":
        return what
    size = max(SMALLEST_ROOM, 2 * room.f_blocks * room.f_frsize >> 20)
    option = f"nr_inodes={max(1024, 2 * room.f_files)}" if files else f"size={size}m"
    return f"{what}, or enlarge it: mount -o remount,{option} {mount.point}"


def _read_only(path: Path) -> str:
    mount = _mount_of(path)
    if "ro" not in (*mount.options, *mount.all_options):
        return f"{mount} is read-only"
    whole = "ro" in mount.all_options
    command = f"mount -o remount,{'' if whole else 'bind,'}rw {mount.point}"
    unit = f", or ReadWritePaths={_existing(path)} in the unit" if "INVOCATION_ID" in os.environ else ""
    return f"{mount} is mounted read-only: {command}{unit}"


def _forbidden(path: Path) -> str:
    """Find what denies the access: a folder that cannot be searched, the one that cannot be changed, or the file."""
    *folders, last = _way_to(path)
    blocking, right, command = last, "use", "chmod o+r"
    if os.access(last, os.R_OK, effective_ids=True):
        command = f"chown {os.geteuid()}"
    if not os.path.lexists(last) and folders:
        blocking, right = _existing(path), "create files in"
        command = f"chown {os.geteuid()}"
    for folder in folders:
        if _mode(folder) and not os.access(folder, os.X_OK, effective_ids=True):
            blocking, right, command = folder, "enter", "chmod o+x"
            break
    try:
        status = blocking.stat()
    except OSError:
        return ""
    mode, kind = stat.S_IMODE(status.st_mode), "the folder " if stat.S_ISDIR(status.st_mode) else ""
    who = f"user {os.geteuid()}"
    if os.geteuid() == 0 and missing_capabilities([Capability.DAC_OVERRIDE]):
        who = f"root without {Capability.DAC_OVERRIDE}"
    owner = f"of user {status.st_uid} and group {status.st_gid}, mode {mode:04o}"
    return f"{who} may not {right} {kind}{blocking} ({owner}): {command} {blocking}"


def _protected(path: Path) -> str:
    for place in (path, _existing(path)):
        flags = _file_flags(place)
        if flags & (_IMMUTABLE | _APPEND_ONLY):
            letter = "i" if flags & _IMMUTABLE else "a"
            kind = "immutable" if flags & _IMMUTABLE else "append-only"
            return f"{place} is {kind}: chattr -{letter} {place}"
    return ""


def _file_flags(path: Path) -> int:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            (flags,) = struct.unpack("=Q", fcntl.ioctl(fd, _GET_FLAGS, bytes(8)))
            return int(flags)
        finally:
            os.close(fd)
    return 0


def _out_of_descriptors() -> str:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"this process may have {limit:,} open: raise that with ulimit -n, or LimitNOFILE= in the unit"


def _machine_out_of_descriptors() -> str:
    return "the machine may have no more open: raise that with sysctl fs.file-max"


def _out_of_memory() -> str:
    return "free memory, or raise the limit of this process: ulimit -l, ulimit -v, or MemoryMax= in the unit"


def _confinement() -> str:
    """Say what may confine a process that has the capabilities."""
    with suppress(OSError):
        if Path("/proc/self/uid_map").read_text(encoding="ascii").split() != _WHOLE_RANGE:
            return "in a user namespace (a rootless container) root has not the rights of the machine's root"
    with suppress(OSError):
        lockdown = Path("/sys/kernel/security/lockdown").read_text(encoding="ascii")
        if "[none]" not in lockdown:
            return f"the kernel is locked down ({lockdown.strip()}): see man kernel_lockdown"
    if _status("Seccomp") == "2":
        return "a seccomp filter, such as a container's, forbids it: let the container use it"
    return ""


def _status(key: str) -> str:
    """Read a line of this thread's ``/proc`` status; empty without one."""
    with suppress(OSError):
        for line in Path("/proc/thread-self/status").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return value.strip()
    return ""


def _way_to(path: Path) -> Iterator[Path]:
    """The folders that lead to a path, from the root, and the path itself."""
    whole = path.absolute()
    yield from reversed(whole.parents)
    yield whole


def _existing(path: Path) -> Path:
    """The nearest that exists: the path or a folder above it."""
    return next((each for each in reversed(list(_way_to(path))) if _mode(each)), Path("/"))


def _mode(path: Path) -> int:
    """Kind and permissions of what is at a path; 0 when nothing is, or it cannot be reached."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _goes_in_circles(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP and path.is_symlink()
    return False


_AT_PLACE = {
    errno.ENOSPC: _full,
    errno.EDQUOT: _over_quota,
    errno.EROFS: _read_only,
    errno.EACCES: _forbidden,
    errno.EPERM: _protected,
    errno.ENOENT: _absent,
    errno.ENOTDIR: _in_the_way,
    errno.EEXIST: _in_the_way,
    errno.ELOOP: _circle,
}
"""Error number → finds its cause at a path; empty: there is none."""
_OF_PROCESS = {
    errno.EPERM: _confinement,
    errno.EMFILE: _out_of_descriptors,
    errno.ENFILE: _machine_out_of_descriptors,
    errno.ENOMEM: _out_of_memory,
}
"""Error number → finds its cause in what this process may do."""
