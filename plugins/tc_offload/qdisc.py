# SPDX-License-Identifier: Apache-2.0
"""The qdisc that rules are attached to: created when there is none, removed when it is ours and nobody else uses it.

A qdisc has no cookie. So ours has an empty chain with a number of our own, which costs no packet anything and goes with
the qdisc: one that another program has put in its place has none.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

import numpy as np

from nfcore.errors import HostError
from nfcore.refusals import Capability, cause_of

from .filters import FilterReader
from .messages import encode_dump, tc_message
from .netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    RTM_DELCHAIN,
    RTM_DELQDISC,
    RTM_GETCHAIN,
    RTM_GETQDISC,
    RTM_NEWCHAIN,
    RTM_NEWQDISC,
    NetlinkError,
    Run,
    TcSocket,
)
from .shapes import EGRESS, INGRESS, Place
from .tcmsg.cls_flower import FilterMessage

_HANDLE = 0xFFFF_0000
_PARENT = 0xFFFF_FFF1
_QDISC = "clsact"
_IFINDEX_WORD, _HANDLE_WORD = 5, 6
_MARK = 0x0E_6663
"""Number of the chain that makes a qdisc ours."""
_DUMP_ATTEMPTS = 5


@dataclass(frozen=True)
class Qdisc:
    """The qdisc ffff: of a device."""

    kind: str
    """`clsact` or `ingress`."""
    shared: frozenset[int]
    """Which of INGRESS and EGRESS are blocks that it shares: they take no rules by the device's name."""


def find_qdisc(socket: TcSocket, ifindex: int) -> Qdisc | None:
    """Find a device's qdisc ffff:. NetlinkError."""
    found = None
    for message in _dump(socket, RTM_GETQDISC, ifindex, 0):
        shared = {"TCA_INGRESS_BLOCK": INGRESS, "TCA_EGRESS_BLOCK": EGRESS}
        blocks = frozenset(parent for name, parent in shared.items() if message.get_attr(name))
        found = Qdisc(str(message.get_attr("TCA_KIND")), blocks)
    return found


def ensure_qdisc(socket: TcSocket, place: Place, name: str) -> bool:
    """Create the qdisc of device `name` unless there is one that fits `place`; whether it was created.

    HostError when the kernel refuses, with its message, or when a qdisc of another kind is there.
    """
    try:
        there = find_qdisc(socket, place.ifindex)
        if there is None:
            attrs = [["TCA_KIND", _QDISC]]
            flags = NLM_F_CREATE | NLM_F_EXCL
            message = tc_message(RTM_NEWQDISC, flags, Place(place.ifindex, _PARENT, 0), handle=_HANDLE, attrs=attrs)
            socket.request(bytes(message.data))
            try:
                _change_mark(socket, RTM_NEWCHAIN, place.ifindex)
            except NetlinkError:
                _delete(socket, place.ifindex)  # without the mark it would stay for ever
                raise
            return True
    except NetlinkError as error:
        if error.number == errno.EEXIST:
            return False
        cause = cause_of(error.number, needs=[Capability.NET_ADMIN])
        raise HostError(f"{name}: qdisc {_QDISC} cannot be added: {error}" + (f": {cause}" if cause else "")) from None
    if place.parent == EGRESS and there.kind != _QDISC:
        raise HostError(
            f"{name}: rules at egress need the qdisc {_QDISC}, but {there.kind!r} is in its place; "
            f"remove it: tc qdisc del dev {name} {there.kind}"
        )
    return False


def obstacle(socket: TcSocket, place: Place, name: str) -> str:
    """Say what is in the way of all rules and may go away, the lack of a qdisc, too; empty when nothing is."""
    try:
        there = find_qdisc(socket, place.ifindex)
    except NetlinkError:
        return ""
    return f"{name}: another program has removed the qdisc" if there is None else _shared_block(there, place, name)


def is_shared(socket: TcSocket, place: Place) -> bool:
    """Whether rules meet another program's shared block."""
    try:
        there = find_qdisc(socket, place.ifindex)
    except NetlinkError:
        return False
    return there is not None and place.parent in there.shared


def _shared_block(there: Qdisc, place: Place, name: str) -> str:
    if place.parent not in there.shared:
        return ""
    block = "ingress_block" if place.parent == INGRESS else "egress_block"
    return f"{name}: another program's shared block is in the way ({block} in: tc qdisc show dev {name})"


def is_ours(socket: TcSocket, ifindex: int) -> bool:
    """Whether a device's qdisc is one that nfcore has created. NetlinkError."""
    return _MARK in _chains(socket, ifindex, INGRESS)


def remove_qdisc(socket: TcSocket, ifindex: int, *, give_up: bool = True) -> bool:
    """Remove the qdisc if it is ours and empty; whether it was removed.

    While rules of ours are there, of whatever run, it stays ours. give_up: one that other programs use, with filters or
    chains, is not ours any more.
    """
    try:
        there = find_qdisc(socket, ifindex)
        if there is None or there.kind != _QDISC or not is_ours(socket, ifindex):
            return False
        foreign, own = _users(socket, ifindex)
        if foreign and give_up and not own:
            _change_mark(socket, RTM_DELCHAIN, ifindex)
        if foreign or own:
            return False
        _delete(socket, ifindex)
    except NetlinkError:
        return False  # the device is gone, or another program has removed the qdisc
    return True


def _users(socket: TcSocket, ifindex: int) -> tuple[bool, bool]:
    """Whether other programs have filters or chains there, and whether nfcore has rules."""
    foreign = own = False
    for parent in (INGRESS, EGRESS):
        rules = FilterReader()
        count = ours = 0
        for run in socket.dump(encode_dump(Place(ifindex, parent, 0), 0, terse=False)):
            count += len(run.rows)
            ours += int(np.count_nonzero(rules.read([run]).ours))
        # With a rule of ours there is chain 0.
        foreign |= ours < count or bool(_chains(socket, ifindex, parent) - ({_MARK, 0} if ours else {_MARK}))
        own |= ours > 0
    return foreign, own


def _delete(socket: TcSocket, ifindex: int) -> None:
    message = tc_message(RTM_DELQDISC, 0, Place(ifindex, _PARENT, 0), handle=_HANDLE, attrs=[["TCA_KIND", _QDISC]])
    socket.request(bytes(message.data))


def _change_mark(socket: TcSocket, kind: int, ifindex: int) -> None:
    flags = NLM_F_CREATE | NLM_F_EXCL if kind == RTM_NEWCHAIN else 0
    socket.request(bytes(tc_message(kind, flags, Place(ifindex, INGRESS, 0), attrs=[["TCA_CHAIN", _MARK]]).data))


def _chains(socket: TcSocket, ifindex: int, parent: int) -> set[int]:
    """Numbers of the chains of a device in one direction; none without a qdisc."""
    return {int(message.get_attr("TCA_CHAIN") or 0) for message in _dump(socket, RTM_GETCHAIN, ifindex, parent)}


def _dump(socket: TcSocket, kind: int, ifindex: int, parent: int) -> list[FilterMessage]:
    """The qdisc ffff: of a device, or its chains. NetlinkError."""
    request = bytes(tc_message(kind, NLM_F_DUMP, Place(ifindex, parent, 0)).data)
    for attempt in range(_DUMP_ATTEMPTS):
        try:
            return [_decoded(raw) for run in socket.dump(request) for raw in _of_device(run, kind, ifindex)]
        except NetlinkError as error:
            # Another program changes qdiscs, of any device.
            if error.number not in (errno.EINTR, errno.ENOBUFS) or attempt == _DUMP_ATTEMPTS - 1:
                raise
    return []


def _of_device(run: Run, kind: int, ifindex: int) -> list[bytes]:
    words = np.ascontiguousarray(run.rows[:, :36]).view("<u4")
    wanted = words[:, _IFINDEX_WORD] == ifindex
    if kind == RTM_GETQDISC:
        wanted &= words[:, _HANDLE_WORD] == _HANDLE
    return [row.tobytes() for row in run.rows[wanted]]


def _decoded(raw: bytes) -> FilterMessage:
    message = FilterMessage(bytearray(raw))
    message.decode()
    return message
