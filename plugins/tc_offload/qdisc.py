# SPDX-License-Identifier: Apache-2.0
"""The qdisc that rules are attached to: created only when there is none, removed only when no filter is left on it."""

from __future__ import annotations

import errno

import numpy as np

from nfcore.errors import HostError
from nfcore.refusals import Capability, cause_of

from .messages import encode_dump, tc_message
from .netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    RTM_DELQDISC,
    RTM_GETQDISC,
    RTM_NEWQDISC,
    NetlinkError,
    TcSocket,
)
from .shapes import EGRESS, INGRESS, Place
from .tcmsg.cls_flower import FilterMessage

_HANDLE = 0xFFFF_0000
_PARENT = 0xFFFF_FFF1
_QDISC = "clsact"
_IFINDEX_WORD, _HANDLE_WORD = 5, 6


def qdisc_kind(socket: TcSocket, ifindex: int) -> str | None:
    """Return the kind of a device's qdisc ffff: (`clsact` or `ingress`); None without one."""
    request = bytes(tc_message(RTM_GETQDISC, NLM_F_DUMP, Place(ifindex, 0, 0)).data)
    kind = None
    for run in socket.dump(request):
        words = np.ascontiguousarray(run.rows[:, :36]).view("<u4")
        wanted = (words[:, _IFINDEX_WORD] == ifindex) & (words[:, _HANDLE_WORD] == _HANDLE)
        for raw in run.rows[wanted]:
            message = FilterMessage(bytearray(raw.tobytes()))
            message.decode()
            kind = str(message.get_attr("TCA_KIND"))
    return kind


def ensure_qdisc(socket: TcSocket, place: Place, name: str) -> bool:
    """Create the qdisc of device `name` unless there is one that fits `place`; whether it was created.

    HostError when the kernel refuses, with its message, or when a qdisc of another kind is there.
    """
    try:
        kind = qdisc_kind(socket, place.ifindex)
        if kind is None:
            attrs = [["TCA_KIND", _QDISC]]
            flags = NLM_F_CREATE | NLM_F_EXCL
            message = tc_message(RTM_NEWQDISC, flags, Place(place.ifindex, _PARENT, 0), handle=_HANDLE, attrs=attrs)
            socket.request(bytes(message.data))
            return True
    except NetlinkError as error:
        if error.number == errno.EEXIST:
            return False
        cause = cause_of(error.number, needs=[Capability.NET_ADMIN])
        raise HostError(f"{name}: qdisc {_QDISC} cannot be added: {error}" + (f": {cause}" if cause else "")) from None
    if place.parent == EGRESS and kind != _QDISC:
        raise HostError(
            f"{name}: rules at egress need the qdisc {_QDISC}, but {kind!r} is in its place; "
            f"remove it: tc qdisc del dev {name} {kind}"
        )
    return False


def remove_qdisc(socket: TcSocket, ifindex: int) -> bool:
    """Remove the qdisc unless it has filters, of any program; whether it was removed."""
    try:
        if qdisc_kind(socket, ifindex) != _QDISC:
            return False
        for parent in (INGRESS, EGRESS):
            if any(len(run.rows) for run in socket.dump(encode_dump(Place(ifindex, parent, 0), 0, terse=False))):
                return False
        attrs = [["TCA_KIND", _QDISC]]
        message = tc_message(RTM_DELQDISC, 0, Place(ifindex, _PARENT, 0), handle=_HANDLE, attrs=attrs)
        socket.request(bytes(message.data))
    except NetlinkError:
        return False  # the device is gone, or another program has removed the qdisc
    return True
