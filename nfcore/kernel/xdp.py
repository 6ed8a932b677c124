# SPDX-License-Identifier: Apache-2.0
"""XDP programs on interfaces: attached, replaced without losing a packet, detached with care.

An interface has one XDP program at a time. Nothing here takes another's place unless it was told which
program may go; the kernel checks that in the same moment, by XDP_FLAGS_REPLACE. Interfaces are those of
the calling thread's network namespace.
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
    """Where the program runs."""

    NATIVE = "native"
    """In the driver, before an skb exists."""
    GENERIC = "generic"
    """On the skb: any interface, slower."""
    AUTO = "auto"
    """As a request only: native, and generic where the driver refuses that."""


@dataclass(frozen=True)
class AttachedXdp:
    """The program that an interface has."""

    id: int
    mode: XdpMode
    """NATIVE also for a program offloaded to the NIC."""


def interface_index(name: str) -> int:
    """The index of the interface called ``name``. Raises HostError listing those that there are."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        there = ", ".join(other for _, other in socket.if_nameindex()) or "none"
        raise HostError(f"no interface named {name} in this network namespace (there are: {there})") from None


def interface_name(ifindex: int) -> str:
    """The name of an interface, for messages; ``#7`` if there is none with index 7."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"#{ifindex}"


def attached_xdp(ifindex: int) -> AttachedXdp | None:
    """What is attached to the interface; the native program if there is a generic one besides."""
    skip = attribute(_EXTENDED_MASK, struct.pack("=I", _SKIP_STATISTICS))
    try:
        link = link_request(RTM_GETLINK, ifindex, skip)
    except NetlinkError as error:
        raise HostError(f"cannot query interface {interface_name(ifindex)}: {error.strerror}") from error
    xdp = dict(parse_attributes(link.get(_IFLA_XDP, b"")))
    attached = xdp.get(_XDP_ATTACHED, b"\0")[0]
    choices = {
        _ATTACHED_NATIVE: (_XDP_DRV_PROG_ID, XdpMode.NATIVE),
        _ATTACHED_GENERIC: (_XDP_SKB_PROG_ID, XdpMode.GENERIC),
        _ATTACHED_OFFLOADED: (_XDP_HW_PROG_ID, XdpMode.NATIVE),
        _ATTACHED_MULTI: (_XDP_DRV_PROG_ID, XdpMode.NATIVE),
    }
    if attached not in choices:
        return None
    kind, mode = choices[attached]
    program_id = xdp.get(kind) or xdp.get(_XDP_PROG_ID)
    return AttachedXdp(struct.unpack("=I", program_id)[0], mode) if program_id else None


def attach_xdp(ifindex: int, program: Program, *, mode: XdpMode, replace: int | None = None) -> XdpMode:
    """Attach ``program`` to the interface; returns the mode it runs in, NATIVE or GENERIC.

    ``replace`` is the id of a program that may be attached already: it is replaced atomically, in its
    mode. AUTO tries native first and logs the driver's reason when it falls back to generic. Raises
    HostError when another program is attached or the kernel refuses, with the kernel's reason.
    """
    name = interface_name(ifindex)
    there = attached_xdp(ifindex)
    if there is not None:
        if there.id != replace:
            raise HostError(occupied(name, there))
        if mode not in (XdpMode.AUTO, there.mode):
            raise HostError(
                f"interface {name} runs program {there.id} in {there.mode} mode, which cannot become "
                f"{mode} without a gap: detach it first (ip link set dev {name} xdp off)"
            )
        _replace(ifindex, name, program, there)
        return there.mode
    if mode is not XdpMode.AUTO:
        _attach_new(ifindex, name, program, mode)
        return mode
    return _attach_best(ifindex, name, program)


def detach_xdp(ifindex: int, *, expected: int | None) -> bool:
    """Take the program off the interface, if it is the one with the id ``expected`` (None: any).

    Returns whether something was detached: False when nothing or another program is attached. Raises
    HostError when the kernel refuses.
    """
    there = attached_xdp(ifindex)
    if there is None or expected not in (None, there.id):
        return False
    try:
        _set_program(ifindex, -1, there.mode, expected=there.id)
    except FileNotFoundError:
        return False
    except NetlinkError as error:
        if error.errno == errno.EEXIST:
            return False
        name = interface_name(ifindex)
        raise HostError(f"cannot detach program {there.id} from {name}: {error.strerror}") from error
    return True


def _attach_best(ifindex: int, name: str, program: Program) -> XdpMode:
    try:
        _attach_new(ifindex, name, program, XdpMode.NATIVE)
    except HostError as native:
        cause = native.__cause__
        if isinstance(cause, OSError) and cause.errno in (
            errno.EEXIST,
            errno.EBUSY,
            errno.EPERM,
            errno.ENODEV,
        ):
            raise
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
        there = attached_xdp(ifindex)
        if error.errno in (errno.EBUSY, errno.EEXIST) and there is not None:
            raise HostError(occupied(name, there)) from error
        raise HostError(f"cannot attach {program.name} to interface {name} in {mode} mode: {error.strerror}") from error


def _replace(ifindex: int, name: str, program: Program, there: AttachedXdp) -> None:
    try:
        _set_program(ifindex, program.fd, there.mode, expected=there.id)
    except OSError as error:
        raise HostError(
            f"cannot replace program {there.id} on interface {name} by {program.name}: {error.strerror}"
        ) from error


def _set_program(ifindex: int, fd: int, mode: XdpMode, *, expected: int | None = None) -> None:
    """Set or (``fd`` -1) remove the program, where ``expected`` is attached or nothing at all."""
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


def occupied(name: str, there: AttachedXdp) -> str:
    """Say that interface ``name`` has a program already, which one, and what to do."""
    try:
        with Program.from_id(there.id) as program:
            called = f" ({program.name})"
    except HostError:
        called = ""
    return (
        f"interface {name} already has the XDP program {there.id}{called} in {there.mode} mode: "
        f"stop what put it there, or remove it with: ip link set dev {name} xdp off"
    )
