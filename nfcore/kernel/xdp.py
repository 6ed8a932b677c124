# SPDX-License-Identifier: Apache-2.0
"""Attaches XDP programs to interfaces, replaces them without losing a packet, detaches them.

An interface has one XDP program at a time. These functions replace or detach a program only if the caller gives its
id; the kernel checks it atomically (XDP_FLAGS_REPLACE). Interfaces are those of the calling thread's network namespace.
"""

from __future__ import annotations

import errno
import logging
import os
import struct

from ..errors import HostError
from ..refusals import Capability, explain
from .netlink import RTM_SETLINK, attribute, link_request, nested
from .programs import Program
from .syscall import Command, fd_by_id
from .xdp_query import AttachedXdp, XdpMode, attached_xdp, interface_name
from .xdp_removal import occupied_message

_LOG = logging.getLogger(__name__)

# include/uapi/linux/if_link.h
_IFLA_XDP = 43
_XDP_FD, _XDP_FLAGS, _XDP_EXPECTED_FD = 1, 3, 8
_UPDATE_IF_NOEXIST, _SKB_MODE, _DRV_MODE, _REPLACE = 1, 2, 4, 16


NOT_THE_DRIVER = (errno.EEXIST, errno.EBUSY, errno.EPERM, errno.ENODEV)
"""Refusals that another mode would meet as well."""


class XdpRefusedError(HostError):
    """The driver cannot run a program in this mode."""


def attach_xdp(ifindex: int, program: Program, *, mode: XdpMode, replace: int | None = None) -> XdpMode:
    """Attach ``program`` to the interface; return the mode in which it runs, NATIVE or GENERIC.

    ``replace`` is the id of a program that may be attached already: it is replaced atomically, in its mode. AUTO tries
    native first and logs the driver's reason when it falls back to generic. Raises HostError when another program is
    attached, or with the kernel's reason when it refuses.
    """
    name = interface_name(ifindex)
    attached = attached_xdp(ifindex)
    if attached is not None:
        if attached.id != replace:
            raise HostError(occupied_message(name, attached))
        if mode not in (XdpMode.AUTO, attached.mode):
            raise HostError(
                f"interface {name} runs program {attached.id} in {attached.mode} mode, which cannot become "
                f"{mode} without a gap: detach it first, with nfcore cleanup CONFIG"
            )
        _replace(ifindex, name, program, attached)
        return attached.mode
    if mode is not XdpMode.AUTO:
        _attach_new(ifindex, name, program, mode)
        return mode
    return _attach_best(ifindex, name, program)


def detach_xdp(ifindex: int, *, expected: Program | int | None) -> bool:
    """Detach the program from the interface if it is ``expected``, a program or its id (None: any).

    Returns whether a program was detached: False when none or another one is attached. Raises HostError when the
    kernel refuses. A caller that holds the program gives it instead of its id: then this needs no right to open it.
    """
    attached = attached_xdp(ifindex)
    held = expected if isinstance(expected, Program) else None
    if attached is None or (held.id if held is not None else expected) not in (None, attached.id):
        return False
    try:
        _set_program(ifindex, -1, attached.mode, expected=held or attached.id)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.EEXIST:
            return False
        name = interface_name(ifindex)
        raise HostError(f"cannot detach program {attached.id} from {name}: {_reason(error)}") from error
    return True


def _attach_best(ifindex: int, name: str, program: Program) -> XdpMode:
    try:
        _attach_new(ifindex, name, program, XdpMode.NATIVE)
    except HostError as native:
        cause = native.__cause__
        if isinstance(cause, OSError) and cause.errno in NOT_THE_DRIVER:
            raise  # generic mode would fail for the same reason
        try:
            _attach_new(ifindex, name, program, XdpMode.GENERIC)
        except HostError as generic:
            raise HostError(f"{native}; {generic}") from generic
        _LOG.warning("%s; it runs in generic mode, which is slower", native)
        return XdpMode.GENERIC
    return XdpMode.NATIVE


def _attach_new(ifindex: int, name: str, program: Program, mode: XdpMode) -> None:
    try:
        _set_program(ifindex, program.fd, mode)
    except OSError as error:
        attached = attached_xdp(ifindex)
        if error.errno in (errno.EBUSY, errno.EEXIST) and attached is not None:
            raise HostError(occupied_message(name, attached)) from error
        kind = HostError if error.errno in NOT_THE_DRIVER else XdpRefusedError
        what = f"cannot attach {program.full_name} to interface {name} in {mode} mode"
        raise kind(f"{what}: {_reason(error)}") from error


def _replace(ifindex: int, name: str, program: Program, attached: AttachedXdp) -> None:
    try:
        _set_program(ifindex, program.fd, attached.mode, expected=attached.id)
    except OSError as error:
        raise HostError(
            f"cannot replace program {attached.id} on interface {name} by {program.full_name}: {_reason(error)}"
        ) from error


def _set_program(ifindex: int, fd: int, mode: XdpMode, *, expected: Program | int | None = None) -> None:
    """Set the program, or remove it (``fd`` -1), if ``expected`` is attached (None: if nothing is). OSError.

    The kernel compares programs by descriptor. To open one by its id takes CAP_SYS_ADMIN, which attaching does not:
    without it the caller's comparison of ids, just before, has to do.
    """
    flags = _DRV_MODE if mode is XdpMode.NATIVE else _SKB_MODE
    if expected is None:
        flags |= _UPDATE_IF_NOEXIST
        _send(ifindex, fd, flags)
        return
    if isinstance(expected, Program):
        _send(ifindex, fd, flags | _REPLACE, attribute(_XDP_EXPECTED_FD, struct.pack("=i", expected.fd)))
        return
    try:
        expected_fd = fd_by_id(Command.PROG_GET_FD_BY_ID, expected)
    except PermissionError:
        _send(ifindex, fd, flags)
        return
    try:
        _send(ifindex, fd, flags | _REPLACE, attribute(_XDP_EXPECTED_FD, struct.pack("=i", expected_fd)))
    finally:
        os.close(expected_fd)


def _send(ifindex: int, fd: int, flags: int, *more: bytes) -> None:
    program = attribute(_XDP_FD, struct.pack("=i", fd))
    xdp = nested(_IFLA_XDP, program, attribute(_XDP_FLAGS, struct.pack("=I", flags)), *more)
    link_request(RTM_SETLINK, ifindex, xdp)


def _reason(error: OSError) -> str:
    return explain(error, needs=[Capability.NET_ADMIN])
