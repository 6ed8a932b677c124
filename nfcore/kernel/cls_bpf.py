# SPDX-License-Identifier: Apache-2.0
"""A TC program at an interface's egress as a filter of the classifier `bpf`, for kernels before 6.6.

The filter has a priority and a handle of its own, so there is one such program at an interface for each priority. It
needs a clsact qdisc, which is made where there is none. That stays when the filter is removed: another tool may use it
meanwhile. The kernel needs CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF, or their modules.

Layouts and numbers: ``include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h``.
"""

from __future__ import annotations

import errno
import socket
import struct

from ..errors import HostError
from ..refusals import Capability, explain
from .netlink import ACK, CREATE, Channel, NetlinkError, attribute, attributes, nested
from .tc_programs import TcProgram
from .xdp_query import interface_name

_NEEDS = (Capability.NET_ADMIN,)
_NEW_QDISC, _NEW_FILTER, _DELETE_FILTER, _GET_FILTER = 36, 44, 45, 46
_EXCL = 0x200
_TC = struct.Struct("=BxxxiIII")
"""``struct tcmsg``: family, interface, handle, parent, info (of a filter: priority and protocol)."""
_CLSACT, _CLSACT_HANDLE, _EGRESS = 0xFFFF_FFF1, 0xFFFF_0000, 0xFFFF_FFF3
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION = 1
_ALL_PROTOCOLS = 0x0003
_HANDLE = 1


def filter_program(ifindex: int, prio: int) -> int | None:
    """Id of the program of the filter with this priority; None when there is none. HostError."""
    try:
        answer = _ask(_GET_FILTER, 0, _filter(ifindex, prio))
    except OSError as error:
        # EINVAL: the interface has no clsact qdisc.
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise HostError(
            f"cannot query the filters of {interface_name(ifindex)}: {explain(error, needs=_NEEDS)}"
        ) from error
    options = dict(attributes(dict(attributes(answer[_TC.size :])).get(_OPTIONS, b"")))
    identifier = options.get(_BPF_ID)
    # A filter of another classifier, too, takes the place.
    return struct.unpack("=I", identifier)[0] if identifier else 0


def attach_filter(ifindex: int, program: TcProgram, prio: int, *, replace: int | None = None) -> None:
    """Attach ``program`` by a filter with this priority, or in place of the program with id ``replace`` there.

    Replacing is atomic. Raises HostError when the priority is taken, or with the kernel's reason.
    """
    name = interface_name(ifindex)
    there = filter_program(ifindex, prio)
    if there not in (None, replace):
        held = f"program {there}" if there else "a filter that is no program's"
        raise HostError(f"the egress of {name} has {held} with priority {prio} already: remove it first")
    options = nested(
        _OPTIONS,
        attribute(_BPF_FD, struct.pack("=I", program.fd)),
        attribute(_BPF_NAME, program.name.encode() + b"\0"),
        attribute(_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION)),
    )
    body = _filter(ifindex, prio, _HANDLE) + attribute(_KIND, b"bpf\0") + options
    try:
        _ensure_clsact(ifindex)
        _ask(_NEW_FILTER, CREATE | (0 if there else _EXCL), body)
    except OSError as error:
        raise HostError(
            f"cannot attach {program.full_name} to the egress of {name} by a filter: {explain(error, needs=_NEEDS)}"
        ) from error


def detach_filter(ifindex: int, program_id: int, prio: int) -> bool:
    """Remove the filter with this priority if its program has this id; whether it was removed. HostError."""
    if filter_program(ifindex, prio) != program_id:
        return False
    try:
        _ask(_DELETE_FILTER, 0, _filter(ifindex, prio, _HANDLE) + attribute(_KIND, b"bpf\0"))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        name = interface_name(ifindex)
        raise HostError(
            f"cannot detach program {program_id} from the egress of {name}: {explain(error, needs=_NEEDS)}"
        ) from error
    return True


def _ensure_clsact(ifindex: int) -> None:
    body = _TC.pack(socket.AF_UNSPEC, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, b"clsact\0")
    try:
        _ask(_NEW_QDISC, CREATE | _EXCL, body)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise


def _ask(message: int, flags: int, body: bytes) -> bytes:
    with Channel() as channel:
        return channel.ask(message, ACK | flags, body)


def _filter(ifindex: int, prio: int, handle: int = _HANDLE) -> bytes:
    info = prio << 16 | socket.htons(_ALL_PROTOCOLS)
    return _TC.pack(socket.AF_UNSPEC, ifindex, handle, _EGRESS, info)
