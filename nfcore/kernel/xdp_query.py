# SPDX-License-Identifier: Apache-2.0
"""Reads which XDP programs are attached to an interface. Interfaces are those of the thread's network namespace."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import StrEnum

from ..errors import HostError
from ..refusals import explain
from .netlink import RTM_GETLINK, attribute, link_request
from .netlink import attributes as parse_attributes

# include/uapi/linux/if_link.h
_IFLA_XDP = 43
_XDP_ATTACHED, _XDP_PROG_ID = 2, 4
_XDP_DRV_PROG_ID, _XDP_SKB_PROG_ID, _XDP_HW_PROG_ID = 5, 6, 7
_ATTACHED_NATIVE, _ATTACHED_GENERIC, _ATTACHED_OFFLOADED, _ATTACHED_MULTI = 1, 2, 3, 4
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


def interface_exists(ifindex: int) -> bool:
    """Whether there is an interface with this index. HostError: it cannot be found out."""
    try:
        # if_indextoname() has no error of its own for a process without a descriptor left.
        return ifindex in {index for index, _ in socket.if_nameindex()}
    except OSError as error:
        raise HostError(f"cannot list the interfaces: {explain(error)}") from error


def attached_xdp(ifindex: int) -> AttachedXdp | None:
    """The attached program, or None; if there are a native and a generic one, the native one."""
    xdp = _read_xdp(ifindex)
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


def attached_programs(ifindex: int) -> dict[str, int]:
    """All attached programs: the word for the mode in ``ip link`` (xdp, xdpgeneric, xdpoffload) → id. HostError."""
    xdp = _read_xdp(ifindex)
    words = {"xdp": _XDP_DRV_PROG_ID, "xdpgeneric": _XDP_SKB_PROG_ID, "xdpoffload": _XDP_HW_PROG_ID}
    return {word: struct.unpack("=I", xdp[kind])[0] for word, kind in words.items() if kind in xdp}


def _read_xdp(ifindex: int) -> dict[int, bytes]:
    skip = attribute(_EXTENDED_MASK, struct.pack("=I", _SKIP_STATISTICS))
    try:
        link = link_request(RTM_GETLINK, ifindex, skip)
    except OSError as error:
        raise HostError(f"cannot query interface {interface_name(ifindex)}: {explain(error)}") from error
    return dict(parse_attributes(link.get(_IFLA_XDP, b"")))
