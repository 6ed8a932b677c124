# SPDX-License-Identifier: Apache-2.0
"""Attaches XDP programs to interfaces, replaces them without losing a packet, detaches them.

An interface has one XDP program at a time. These functions replace or detach a program only if the caller gives its
id; the kernel checks it atomically (XDP_FLAGS_REPLACE). Interfaces are those of the calling thread's network namespace.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from dataclasses import dataclass
from enum import StrEnum

from ..errors import HostError
from .netlink import RTM_GETLINK, RTM_SETLINK, NetlinkError, attribute, link_request, nested
from .netlink import attributes as parse_attributes
from .programs import Program
from .syscall import Command, fd_by_id

_LOG = logging.getLogger(__name__)

# include/uapi/linux/if_link.h
_IFLA_XDP = 43
_XDP_FD, _XDP_ATTACHED, _XDP_FLAGS, _XDP_PROG_ID = 1, 2, 3, 4
_XDP_DRV_PROG_ID, _XDP_SKB_PROG_ID, _XDP_HW_PROG_ID, _XDP_EXPECTED_FD = 5, 6, 7, 8
_ATTACHED_NATIVE, _ATTACHED_GENERIC, _ATTACHED_OFFLOADED, _ATTACHED_MULTI = 1, 2, 3, 4
_UPDATE_IF_NOEXIST, _SKB_MODE, _DRV_MODE, _REPLACE = 1, 2, 4, 16
_EXTENDED_MASK = 29
_SKIP_STATISTICS = 1 << 3


class XdpMode(StrEnum):
    """Where a program runs."""

    NATIVE = "native"
    """In the driver, before an skb exists."""
    GENERIC = "generic"
    """On the skb: works on any interface, but slower."""
    AUTO = "auto"
    """In requests only: native, or generic if the driver refuses native."""


@dataclass(frozen=True)
class AttachedXdp:
    """The program that is attached to an interface."""

    id: int
    mode: XdpMode
    """NATIVE also for a program offloaded to the NIC."""


def interface_index(name: str) -> int:
    """The index of the interface ``name``. Raises HostError listing the existing interfaces."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        existing = ", ".join(other for _, other in socket.if_nameindex()) or "none"
        raise HostError(f"no interface named {name} in this network namespace (there are: {existing})") from None


def interface_name(ifindex: int) -> str:
    """The name of an interface, for messages; ``#7`` if no interface has index 7."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"#{ifindex}"


def attached_xdp(ifindex: int) -> AttachedXdp | None:
    """The attached program, or None; if there are a native and a generic one, the native one."""
    skip = attribute(_EXTENDED_MASK, struct.pack("=I", _SKIP_STATISTICS))
    try:
        link = link_request(RTM_GETLINK, ifindex, skip)
    except NetlinkError as error:
        raise HostError(f"cannot query interface {interface_name(ifindex)}: {error.strerror}") from error
    xdp = dict(parse_attributes(link.get(_IFLA_XDP, b"")))
    state = xdp.get(_XDP_ATTACHED, b"\0")[0]
    choices = {
        _ATTACHED_NATIVE: (_XDP_DRV_PROG_ID, XdpMode.NATIVE),
        _ATTACHED_GENERIC: (_XDP_SKB_PROG_ID, XdpMode.GENERIC),
        _ATTACHED_OFFLOADED: (_XDP_HW_PROG_ID, XdpMode.NATIVE),
        _ATTACHED_MULTI: (_XDP_DRV_PROG_ID, XdpMode.NATIVE),
    }
    if state not in choices:
        return None
    kind, mode = choices[state]
    program_id = xdp.get(kind) or xdp.get(_XDP_PROG_ID)
    return AttachedXdp(struct.unpack("=I", program_id)[0], mode) if program_id else None


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
                f"{mode} without a gap: detach it first (ip link set dev {name} xdp off)"
            )
        _replace(ifindex, name, program, attached)
        return attached.mode
    if mode is not XdpMode.AUTO:
        _attach_new(ifindex, name, program, mode)
        return mode
    return _attach_best(ifindex, name, program)


def detach_xdp(ifindex: int, *, expected: int | None) -> bool:
    """Detach the program from the interface if its id is ``expected`` (None: any).

    Returns whether a program was detached: False when none or another one is attached. Raises HostError when the
    kernel refuses.
    """
    attached = attached_xdp(ifindex)
    if attached is None or expected not in (None, attached.id):
        return False
    try:
        _set_program(ifindex, -1, attached.mode, expected=attached.id)
    except FileNotFoundError:
        return False
    except NetlinkError as error:
        if error.errno == errno.EEXIST:
            return False
        name = interface_name(ifindex)
        raise HostError(f"cannot detach program {attached.id} from {name}: {error.strerror}") from error
    return True


def _attach_best(ifindex: int, name: str, program: Program) -> XdpMode:
    try:
        _attach_new(ifindex, name, program, XdpMode.NATIVE)
    except HostError as native:
        cause = native.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.EEXIST, errno.EBUSY, errno.EPERM, errno.ENODEV):
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
    except NetlinkError as error:
        attached = attached_xdp(ifindex)
        if error.errno in (errno.EBUSY, errno.EEXIST) and attached is not None:
            raise HostError(occupied_message(name, attached)) from error
        raise HostError(f"cannot attach {program.name} to interface {name} in {mode} mode: {error.strerror}") from error


def _replace(ifindex: int, name: str, program: Program, attached: AttachedXdp) -> None:
    try:
        _set_program(ifindex, program.fd, attached.mode, expected=attached.id)
    except OSError as error:
        raise HostError(
            f"cannot replace program {attached.id} on interface {name} by {program.name}: {error.strerror}"
        ) from error


def _set_program(ifindex: int, fd: int, mode: XdpMode, *, expected: int | None = None) -> None:
    """Set the program, or remove it (``fd`` -1), if ``expected`` is attached (None: if nothing is)."""
    flags = _DRV_MODE if mode is XdpMode.NATIVE else _SKB_MODE
    if expected is None:
        flags |= _UPDATE_IF_NOEXIST
        _send(ifindex, fd, flags)
        return
    expected_fd = fd_by_id(Command.PROG_GET_FD_BY_ID, expected)
    try:
        _send(ifindex, fd, flags | _REPLACE, attribute(_XDP_EXPECTED_FD, struct.pack("=i", expected_fd)))
    finally:
        os.close(expected_fd)


def _send(ifindex: int, fd: int, flags: int, *more: bytes) -> None:
    program = attribute(_XDP_FD, struct.pack("=i", fd))
    xdp = nested(_IFLA_XDP, program, attribute(_XDP_FLAGS, struct.pack("=I", flags)), *more)
    link_request(RTM_SETLINK, ifindex, xdp)


def occupied_message(name: str, attached: AttachedXdp) -> str:
    """The message that interface ``name`` already has a program, which one, and what to do."""
    try:
        with Program.from_id(attached.id) as program:
            program_name = f" ({program.name})"
    except HostError:
        program_name = ""
    held = f"the XDP program {attached.id}{program_name} in {attached.mode} mode"
    return f"interface {name} already has {held}: {foreign_program_advice(name)}"


def foreign_program_advice(interface: str) -> str:
    """Give the advice for an interface that has a foreign program."""
    return f"stop what put it there, or remove it with: ip link set dev {interface} xdp off"
