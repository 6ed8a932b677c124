# SPDX-License-Identifier: Apache-2.0
"""Notices that links, addresses, neighbours, routes or rules may have changed; never blocks.

It says that something has changed, not what: who wants to know asks the kernel (`routes`, `links`). So nothing depends
on a notification that got lost. Numbers: ``include/uapi/linux/rtnetlink.h``.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Collection

from .netlink import HEADER, SOL_NETLINK
from .objects import Closing

_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18
"""Links, neighbours, and of both families addresses, routes and rules: RTNLGRP_LINK, …, RTNLGRP_IPV6_RULE."""
_ADD_MEMBERSHIP, _NEXTHOPS = 1, 32
"""RTNLGRP_NEXTHOP does not fit into the bits of an address."""
_NEIGHBOURS = (28, 29)
"""RTM_NEWNEIGH, RTM_DELNEIGH."""
_IFINDEX = slice(HEADER.size + 4, HEADER.size + 8)
"""In ``struct ndmsg``, behind the header."""
_BEGINNING = 64
"""Bytes of a notification that are looked at: the header and the ifindex of a neighbour."""
_MOST_DATAGRAMS = 10_000
"""To read in one call."""


class NetworkMonitor(Closing):
    """Notifications of the calling thread's network namespace. OSError: no netlink socket."""

    def __init__(self, ifindexes: Collection[int], *, buffer: int | None = None) -> None:
        """Listen from now on; to neighbours of these interfaces only.

        buffer: bytes of the socket's receive buffer; None: the system's default.
        """
        self._ifindexes = frozenset(ifindexes)
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            if buffer is not None:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self._socket.bind((0, _GROUPS))
        except OSError:
            self._socket.close()
            raise
        with contextlib.suppress(OSError):  # no next-hop objects before Linux 5.3
            self._socket.setsockopt(SOL_NETLINK, _ADD_MEMBERSHIP, _NEXTHOPS)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there is something to :meth:`poll`."""
        return self._socket.fileno()

    def poll(self) -> bool:
        """Take all notifications; whether something may have changed since the last call. Never blocks."""
        changed = False
        for _ in range(_MOST_DATAGRAMS):
            try:
                datagram, (sender, _groups) = self._socket.recvfrom(_BEGINNING)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True  # some were lost
                continue
            changed |= sender == 0 and self._concerns(datagram)  # 0: the kernel; any process may write to this socket
        return changed

    def _concerns(self, datagram: bytes) -> bool:
        if len(datagram) < _IFINDEX.stop:
            return False
        kind = HEADER.unpack_from(datagram)[1]
        return kind not in _NEIGHBOURS or int.from_bytes(datagram[_IFINDEX], sys.byteorder) in self._ifindexes
