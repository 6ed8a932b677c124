# SPDX-License-Identifier: Apache-2.0
"""A sender of prepared frames at one interface, bounded in time and number."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..errors import HostError

AT_ONCE = 64
"""Frames of a system call: fewer than a veth's ring has room for."""
MOST_FRAMES = 5_000_000
"""Of one call of :meth:`Sender.send_for`."""
_MSGHDR = np.dtype(
    [
        ("name", "<u8"),
        ("namelen", "<u4"),
        ("pad", "<u4"),
        ("iov", "<u8"),
        ("iovlen", "<u8"),
        ("control", "<u8"),
        ("controllen", "<u8"),
        ("flags", "<u4"),
        ("pad2", "<u4"),
        ("len", "<u4"),
        ("pad3", "<u4"),
    ]
)
"""`struct mmsghdr` of 64-bit Linux."""
_IOVEC = np.dtype([("base", "<u8"), ("len", "<u8")])


class Sender:
    """Sends frames (bytes of shape (n, size)) one after the other, from the first again when all are sent.

    A context manager; in the network namespace that the calling thread is in when it is made.
    """

    def __init__(self, interface: str, frames: NDArray[np.uint8]) -> None:
        copies = -(-AT_ONCE // len(frames))
        self._frames = np.ascontiguousarray(np.tile(frames, (copies, 1)))
        count, size = self._frames.shape
        self._vectors = np.zeros(count, dtype=_IOVEC)
        self._vectors["base"] = self._frames.ctypes.data + np.arange(count, dtype=np.uint64) * np.uint64(size)
        self._vectors["len"] = size
        self._headers = np.zeros(count, dtype=_MSGHDR)
        step = np.arange(count, dtype=np.uint64) * np.uint64(_IOVEC.itemsize)
        self._headers["iov"] = self._vectors.ctypes.data + step
        self._headers["iovlen"] = 1
        # Protocol 0: it hears nothing.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((interface, 0))
        self._sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send_one(self, number: int) -> None:
        """Send frame `number`."""
        self._socket.send(self._frames[number])

    def send_for(self, seconds: float, most: int = MOST_FRAMES) -> tuple[int, float]:
        """Send as fast as the way takes the frames; how many went in which time. HostError when none go."""
        begin, sent, place = time.perf_counter(), 0, 0
        while (now := time.perf_counter()) < begin + seconds and sent < most:
            count = min(AT_ONCE, len(self._headers) - place, most - sent)
            went = self._hand_over(place, count)
            sent += went
            place = (place + went) % len(self._headers)
        return sent, now - begin

    def _hand_over(self, place: int, count: int) -> int:
        address = ctypes.c_void_p(self._headers.ctypes.data + place * _MSGHDR.itemsize)
        went: int = self._sendmmsg(self._socket.fileno(), address, count, 0)
        if went >= 0:
            return went
        if ctypes.get_errno() in (errno.ENOBUFS, errno.EAGAIN, errno.EINTR):
            return 0
        raise HostError(f"the bench cannot send: {os.strerror(ctypes.get_errno())}")
