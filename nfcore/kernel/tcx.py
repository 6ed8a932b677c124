# SPDX-License-Identifier: Apache-2.0
"""TC programs at an interface's egress by TCX (Linux 6.6): the kernel's list of programs for each interface.

It comes before the filters of `tc` and is independent of them: no qdisc and no module is needed. A program is attached
as an XDP program is: it stays when its process is killed. Layouts and numbers: ``include/uapi/linux/bpf.h``.
"""

from __future__ import annotations

import errno
import os
import struct

import numpy as np

from ..errors import HostError
from ..refusals import Capability, explain
from .codec import address
from .syscall import Command, bpf, fd_by_id
from .tc_programs import TcProgram
from .xdp_query import interface_name

_EGRESS = 47
"""BPF_TCX_EGRESS of ``enum bpf_attach_type``."""
_REPLACE = 1 << 2
"""BPF_F_REPLACE."""
_MOST_PROGRAMS = 64
"""That the kernel attaches to one hook."""


def tcx_programs(ifindex: int) -> list[int]:
    """Ids of the programs at the interface's egress, in their order. HostError."""
    try:
        return _query(ifindex)
    except OSError as error:
        raise _refusal(error, f"query the TC programs of {interface_name(ifindex)}") from error


def has_tcx(ifindex: int) -> bool:
    """Whether this kernel has TCX; `ifindex` is any interface. HostError: it does not say."""
    try:
        _query(ifindex)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise _refusal(error, f"query the TC programs of {interface_name(ifindex)}") from error
        return False
    return True


def _query(ifindex: int) -> list[int]:
    ids = np.zeros(_MOST_PROGRAMS, np.uint32)
    attr = bytearray(struct.pack("=IIIIQIIQQQQ", ifindex, _EGRESS, 0, 0, address(ids), len(ids), 0, 0, 0, 0, 0))
    bpf(Command.PROG_QUERY, attr)
    (count,) = struct.unpack_from("=I", attr, 24)
    return [int(number) for number in ids[:count]]


def attach_tcx(ifindex: int, program: TcProgram, *, replace: int | None = None) -> None:
    """Attach ``program`` to the interface's egress, behind the others, or in place of the one with id ``replace``.

    Replacing is atomic. Raises HostError with the kernel's reason.
    """
    what = f"attach {program.full_name} to the egress of {interface_name(ifindex)}"
    try:
        old = 0 if replace is None else fd_by_id(Command.PROG_GET_FD_BY_ID, replace)
        try:
            flags = 0 if replace is None else _REPLACE
            bpf(Command.PROG_ATTACH, bytearray(struct.pack("=IIIIIIQ", ifindex, program.fd, _EGRESS, flags, old, 0, 0)))
        finally:
            if replace is not None:
                os.close(old)
    except OSError as error:
        raise _refusal(error, what) from error


def detach_tcx(ifindex: int, program: TcProgram | int) -> bool:
    """Detach a program, or the one with this id, from the interface's egress; False if it is not there. HostError.

    To open a program by its id takes CAP_SYS_ADMIN, which attaching does not: who holds the program gives it.
    """
    number = program if isinstance(program, int) else program.id
    what = f"detach program {number} from the egress of {interface_name(ifindex)}"
    try:
        fd = fd_by_id(Command.PROG_GET_FD_BY_ID, program) if isinstance(program, int) else os.dup(program.fd)
        try:
            bpf(Command.PROG_DETACH, bytearray(struct.pack("=IIIIIIQ", ifindex, fd, _EGRESS, 0, 0, 0, 0)))
        finally:
            os.close(fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _refusal(error, what) from error
    return True


def _refusal(error: OSError, what: str) -> HostError:
    return HostError(f"cannot {what}: {explain(error, needs=[Capability.BPF, Capability.NET_ADMIN])}")
