# SPDX-License-Identifier: Apache-2.0
"""Sends prepared frames through one interface, for a limited time and number."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..errors import HostError

FRAMES_PER_CALL = 64
"""Frames of one system call: fewer than a veth's ring holds."""
MAX_FRAMES = 5_000_000
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
    """Sends frames (bytes of shape (n, size)) one after the other; after the last one it starts again.

    A context manager. It sends in the network namespace of the thread that creates it.
    """

    def __init__(self, interface: str, frames: NDArray[np.uint8]) -> None:
        copies = -(-FRAMES_PER_CALL // len(frames))
        self._frames = np.ascontiguousarray(np.tile(frames, (copies, 1)))
        count, size = self._frames.shape
        self._vectors = np.zeros(count, dtype=_IOVEC)
        self._vectors["base"] = self._frames.ctypes.data + np.arange(count, dtype=np.uint64) * np.uint64(size)
        self._vectors["len"] = size
        self._headers = np.zeros(count, dtype=_MSGHDR)
        step = np.arange(count, dtype=np.uint64) * np.uint64(_IOVEC.itemsize)
        self._headers["iov"] = self._vectors.ctypes.data + step
        self._headers["iovlen"] = 1
        # Protocol 0: the socket receives nothing.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((interface, 0))
        self._sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def send_one(self, number: int) -> None:
        """Send frame `number`."""
        self._socket.send(self._frames[number])

    def send_for(self, seconds: float, most: int = MAX_FRAMES) -> tuple[int, float]:
        """Send as fast as possible; return the number of sent frames and the seconds. HostError: sending fails."""
        begin, sent, place = time.perf_counter(), 0, 0
        while (now := time.perf_counter()) < begin + seconds and sent < most:
            count = min(FRAMES_PER_CALL, len(self._headers) - place, most - sent)
            accepted = self._send_batch(place, count)
            sent += accepted
            place = (place + accepted) % len(self._headers)
        return sent, now - begin

    def _send_batch(self, place: int, count: int) -> int:
        """Send `count` frames from `place` on with one system call; return how many the kernel accepted."""
        address = ctypes.c_void_p(self._headers.ctypes.data + place * _MSGHDR.itemsize)
        accepted: int = self._sendmmsg(self._socket.fileno(), address, count, 0)
        if accepted >= 0:
            return accepted
        if ctypes.get_errno() in (errno.ENOBUFS, errno.EAGAIN, errno.EINTR):
            return 0
        raise HostError(f"the bench cannot send: {os.strerror(ctypes.get_errno())}")
