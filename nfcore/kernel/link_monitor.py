# SPDX-License-Identifier: Apache-2.0
"""Reads the kernel's notifications about links and, on demand, their qdiscs for filters; never blocks.

Numbers and layouts: ``include/uapi/linux/{netlink,rtnetlink,if,filter}.h``; native byte order. The kernel notifies of
each change of a link's state, carrier, name, MTU, XDP program and features (``ethtool -K``), and of many resets of a
driver.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .netlink import HEADER, LINK, RTM_NEWLINK, SOL_NETLINK, attributes
from .objects import Closing

_RTM_DELLINK = 17
_QDISC_KINDS = (36, 37)
"""RTM_NEWQDISC, RTM_DELQDISC."""
_QDISC = 0xFFFF_0000
"""Handle of the qdisc for filters, clsact or ingress."""
_JOIN, _LEAVE, _TC = 1, 2, 4
"""NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP, RTNLGRP_TC."""
_ATTACH_FILTER = 26
"""SO_ATTACH_FILTER."""
_RTMGRP_LINK = 1
"""Bit of the group RTNLGRP_LINK in a netlink address."""
_HEADER_KIND = 4
"""Offset of the type."""
_IFLA_IFNAME = 3
_SIOCGIFFLAGS = 0x8913
_REQUEST = struct.Struct("=16sH22x")
"""``struct ifreq`` with a name and flags: 40 bytes."""
_UP_AND_RUNNING = 0x1 | 0x40
"""IFF_UP, and IFF_RUNNING: the operational state is up, or unknown to the driver."""
_DATAGRAM_SIZE = 1 << 16
_MOST_DATAGRAMS = 10_000
"""To read in one call: links that change all the time must not block the caller."""


@dataclass(frozen=True)
class LinkChange:
    """A link that has changed, as it is now."""

    name: str
    up: bool
    """Administratively up and able to pass packets."""
    gone: bool
    """Removed, or moved to another network namespace."""
    qdisc: bool = False
    """It is only its qdisc for filters that was added or removed."""


class LinkMonitor(Closing):
    """Notifications about some links of the calling thread's network namespace. OSError: no netlink socket."""

    def __init__(self, ifindexes: Iterable[int], *, buffer: int | None = None) -> None:
        """Listen from now on. `buffer`: bytes of the socket's receive buffer; None: the system's default."""
        self._names = {ifindex: _name(ifindex) for ifindex in ifindexes}
        self._qdiscs = False
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            if buffer is not None:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            _take_only(self._socket, (RTM_NEWLINK, _RTM_DELLINK, *_QDISC_KINDS))
            self._socket.bind((0, _RTMGRP_LINK))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there is something to :meth:`poll`."""
        return self._socket.fileno()

    def watch_qdiscs(self, wanted: bool) -> None:
        """Also listen to changes of qdiscs for filters, or no longer.

        Not always: while anybody listens, the kernel describes each filter that is added, and has a driver read the
        filter's counters for that.
        """
        if wanted != self._qdiscs:
            self._socket.setsockopt(SOL_NETLINK, _JOIN if wanted else _LEAVE, _TC)
            self._qdiscs = wanted

    def poll(self) -> dict[int, LinkChange]:
        """Return ifindex → watched link that the kernel has notified of since the last call. Never blocks.

        Every notification counts, whatever has changed. When the receive buffer has overflowed, the result has all
        watched links as they are now.
        """
        changes: dict[int, LinkChange] = {}
        lost = False
        for _ in range(_MOST_DATAGRAMS):
            try:
                datagram, (sender, _groups) = self._socket.recvfrom(_DATAGRAM_SIZE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            if sender == 0:  # the kernel; any process may write to this socket
                for ifindex, change in self._parse(datagram):
                    changes[ifindex] = changes.get(ifindex, change) if change.qdisc else change
        return self._query_all() if lost else changes

    def _parse(self, datagram: bytes) -> Iterator[tuple[int, LinkChange]]:
        offset = 0
        while offset + HEADER.size + LINK.size <= len(datagram):
            length, kind, _, _, _ = HEADER.unpack_from(datagram, offset)
            if length < HEADER.size:
                return
            family, _, ifindex, flags, _ = LINK.unpack_from(datagram, offset + HEADER.size)
            # struct tcmsg has the ifindex at the same place, then the handle.
            if kind in _QDISC_KINDS and flags == _QDISC and ifindex in self._names:
                yield ifindex, LinkChange(self._names[ifindex], is_up(self._names[ifindex]), gone=False, qdisc=True)
            # Messages of other families are about, say, ports of a bridge: there "deleted" does not mean the link.
            if kind in (RTM_NEWLINK, _RTM_DELLINK) and family == socket.AF_UNSPEC and ifindex in self._names:
                payload = datagram[offset + HEADER.size + LINK.size : offset + length]
                yield ifindex, self._change(ifindex, flags, payload, gone=kind == _RTM_DELLINK)
            offset += length + -length % 4

    def _change(self, ifindex: int, flags: int, payload: bytes, *, gone: bool) -> LinkChange:
        name = dict(attributes(payload)).get(_IFLA_IFNAME)
        if name:
            self._names[ifindex] = name.rstrip(b"\0").decode(errors="replace")
        return LinkChange(self._names[ifindex], not gone and flags & _UP_AND_RUNNING == _UP_AND_RUNNING, gone)

    def _query_all(self) -> dict[int, LinkChange]:
        """Read the state of all watched links, by system calls that do not wait for the RTNL lock."""
        changes = {}
        for ifindex, last_name in self._names.items():
            name = _name(ifindex)
            changes[ifindex] = LinkChange(name or last_name, bool(name) and is_up(name), not name)
        self._names.update((ifindex, change.name) for ifindex, change in changes.items())
        return changes


def _take_only(listener: socket.socket, kinds: Sequence[int]) -> None:
    """Let the kernel drop messages of other kinds, such as those about filters, which may be very many."""
    # Of classic BPF: load the 16 bits of the kind, jump to the last line if it is equal, drop, take.
    lines = [(0x28, 0, 0, _HEADER_KIND)]
    for number, kind in enumerate(kinds):
        lines.append((0x15, len(kinds) - number, 0, socket.htons(kind)))
    lines += [(0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF_FFFF)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", len(lines), ctypes.addressof(program)))


def is_up(name: str) -> bool:
    """Whether there is a link of this name that is up and able to pass packets. Does not wait for the RTNL lock."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _REQUEST.pack(name.encode(), 0))
        except OSError:
            return False
    return _REQUEST.unpack(answer)[1] & _UP_AND_RUNNING == _UP_AND_RUNNING  # type: ignore[no-any-return]


def _name(ifindex: int) -> str:
    """The link's name; empty when no link has this index."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""
