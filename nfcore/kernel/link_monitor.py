# SPDX-License-Identifier: Apache-2.0
"""What happens to links behind our back: the kernel's announcements, read without ever waiting.

Numbers and layouts: ``include/uapi/linux/{netlink,rtnetlink,if}.h``; native byte order. The kernel announces each
change of a link's state, carrier, name, MTU, XDP program and features (``ethtool -K``), and many resets of a driver.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from .netlink import attributes

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTMGRP_LINK = 1
"""Bit of RTNLGRP_LINK in the address of a socket."""
_HEADER = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence number, port."""
_LINK = struct.Struct("=BxHiII")
"""``struct ifinfomsg``: family, device type, index, flags, change mask."""
_IFLA_IFNAME = 3
_SIOCGIFFLAGS = 0x8913
_REQUEST = struct.Struct("=16sH22x")
"""``struct ifreq`` with a name and flags: 40 bytes."""
_UP_AND_RUNNING = 0x1 | 0x40
"""IFF_UP, and IFF_RUNNING: its operational state is up (or the driver tells none)."""
_DATAGRAM = 1 << 16
_MOST = 10_000
"""Announcements to read in one call: links that change without end must not keep the caller."""


@dataclass(frozen=True)
class LinkChange:
    """A link about which there was news, as it is now."""

    name: str
    up: bool
    """Administratively up and able to pass packets."""
    gone: bool
    """Removed, or moved to another network namespace."""


class LinkMonitor:
    """Announcements about some links of the calling thread's network namespace. OSError when there is no socket."""

    def __init__(self, ifindexes: Iterable[int], *, buffer: int | None = None) -> None:
        """Listen from now on. buffer: bytes of the socket's receive buffer; None: the system's default."""
        self._names = {ifindex: _name(ifindex) for ifindex in ifindexes}
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            if buffer is not None:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self._socket.bind((0, _RTMGRP_LINK))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Give the descriptor, readable when there is something to :meth:`poll`."""
        return self._socket.fileno()

    def poll(self) -> dict[int, LinkChange]:
        """Give ifindex → the watched link about which something was announced since the last call; never waits.

        Every announcement counts, whatever it is about: what it means for the caller, the caller knows. When the
        kernel had no room for all of them, each watched link is told, as it is now.
        """
        news: dict[int, LinkChange] = {}
        lost = False
        for _ in range(_MOST):
            try:
                datagram, (sender, _groups) = self._socket.recvfrom(_DATAGRAM)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            if sender == 0:  # anybody may write to this socket; announcements are the kernel's
                news.update(self._read(datagram))
        return self._as_they_are() if lost else news

    def _read(self, datagram: bytes) -> Iterator[tuple[int, LinkChange]]:
        offset = 0
        while offset + _HEADER.size + _LINK.size <= len(datagram):
            length, kind, _, _, _ = _HEADER.unpack_from(datagram, offset)
            if length < _HEADER.size:
                return
            family, _, ifindex, flags, _ = _LINK.unpack_from(datagram, offset + _HEADER.size)
            # Other families tell what became of a bridge's port, say: such a link "deleted" is still there.
            if kind in (_RTM_NEWLINK, _RTM_DELLINK) and family == socket.AF_UNSPEC and ifindex in self._names:
                payload = datagram[offset + _HEADER.size + _LINK.size : offset + length]
                yield ifindex, self._change(ifindex, flags, payload, gone=kind == _RTM_DELLINK)
            offset += length + -length % 4

    def _change(self, ifindex: int, flags: int, payload: bytes, *, gone: bool) -> LinkChange:
        name = dict(attributes(payload)).get(_IFLA_IFNAME)
        if name:
            self._names[ifindex] = name.rstrip(b"\0").decode(errors="replace")
        return LinkChange(self._names[ifindex], not gone and flags & _UP_AND_RUNNING == _UP_AND_RUNNING, gone)

    def _as_they_are(self) -> dict[int, LinkChange]:
        """Ask for all of them, by calls that do not wait for the lock under which drivers are changed."""
        news = {}
        for ifindex, before in self._names.items():
            name = _name(ifindex)
            news[ifindex] = LinkChange(name or before, bool(name) and self._is_up(name), not name)
        self._names.update((ifindex, change.name) for ifindex, change in news.items())
        return news

    def _is_up(self, name: str) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _REQUEST.pack(name.encode(), 0))
            except OSError:
                return False
        return _REQUEST.unpack(answer)[1] & _UP_AND_RUNNING == _UP_AND_RUNNING  # type: ignore[no-any-return]


def _name(ifindex: int) -> str:
    """The link's name, empty when there is none of that index."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""
