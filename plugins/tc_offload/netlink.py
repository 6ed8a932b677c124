# SPDX-License-Identifier: Apache-2.0
"""A rtnetlink socket for batches: thousands of messages out as numpy rows, errors and blocks of a dump back.

A batch is an array of messages of one length. The kernel processes the messages of a datagram in order, reports each
failure under its sequence number and goes on; it acknowledges only messages that ask for it: here the last of each
datagram. It does so within the send call, so all replies are in the socket when that returns.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NLM_F_REQUEST, NLM_F_ACK, NLM_F_ECHO = 0x1, 0x4, 0x8
NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR = 0x200, 0x400, 0x300, 0x10
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
RTM_NEWCHAIN, RTM_DELCHAIN, RTM_GETCHAIN = 100, 101, 102
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_CONTROL = (_NLMSG_ERROR, _NLMSG_DONE)
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33

_HEADER = struct.Struct("=IHHII")
"""`struct nlmsghdr`: length, type, flags, sequence number, port id. nfcore runs on little-endian machines only."""
_ERROR_ATTRIBUTES = 36
"""Offset of the attributes of an NLMSG_ERROR: two headers and an errno, since NETLINK_CAP_ACK omits the message."""
_EXTACK_MESSAGE = 1

SEND_BYTES = 192 << 10
"""Bytes of messages in a datagram: fits a socket's default buffer. A thousand new rules, or four thousand deletions."""
ECHO_MESSAGES = 256
"""Messages in a datagram that asks for echoes: each takes 4 to 8 kB of the receive buffer."""
BUFFER = 8 << 20
"""Bytes of the socket's buffers: room for an error or an echo of every message of a datagram."""
DATAGRAM = 1 << 16
"""Bytes to receive at once; the kernel makes the datagrams of a dump up to 32 kB long if the buffer allows it."""
BLOCK = 1 << 20
"""Bytes of a dump that are passed on together, at least."""
DUMP_TIMEOUT = 10
"""Seconds to wait for the next datagram of a dump."""


class NetlinkError(Exception):
    """A refusal by the kernel: its errno and, if there is one, its message (extended acknowledgement)."""

    def __init__(self, number: int, text: str = "") -> None:
        self.number = number
        self.text = text
        super().__init__(str(self))

    def __str__(self) -> str:
        # errno.errorcode has this number as ENOTSUP, a name that the kernel does not use.
        name = "EOPNOTSUPP" if self.number == errno.EOPNOTSUPP else errno.errorcode.get(self.number, self.number)
        meaning = f"{os.strerror(self.number)} ({name})"
        return f"{self.text.rstrip('.')}: {meaning}" if self.text else meaning


@dataclass
class Replies:
    """The kernel's replies to a batch."""

    errors: dict[int, NetlinkError] = field(default_factory=dict)
    """Number of the message → why it failed. Messages that are not here succeeded, unless they are unanswered."""
    echoes: list[bytes] = field(default_factory=list)
    """Messages that NLM_F_ECHO asked for."""
    unanswered: set[int] = field(default_factory=set)
    """Numbers of messages whose reply was lost for lack of buffer. Only a dump shows what they did."""


@dataclass(frozen=True)
class Run:
    """Messages of one length and type in a block of a dump."""

    rows: NDArray[np.uint8]
    """Shape (messages, length)."""
    type: int


class TcSocket:
    """A rtnetlink socket; used by one thread at a time. OSError when the kernel gives none."""

    def __init__(self, buffer: int = BUFFER, send_bytes: int = SEND_BYTES) -> None:
        self._send_bytes = send_bytes
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", DUMP_TIMEOUT, 0))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        except PermissionError:  # the kernel refuses the requests themselves later, with a clearer error
            pass
        self._socket.bind((0, 0))
        self._received = bytearray(DATAGRAM)
        self._block = bytearray(BLOCK + DATAGRAM)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def execute(self, messages: NDArray[np.uint8]) -> Replies:
        """Send a batch, shape (messages, length), headers complete but for sequence numbers, which are written here.

        OSError when the kernel does not take a datagram at all.
        """
        replies = Replies()
        step = max(self._send_bytes // messages.shape[1], 1)
        if len(messages) and messages[0, 6] & NLM_F_ECHO:
            step = min(step, ECHO_MESSAGES)
        for start in range(0, len(messages), step):
            part = messages[start : start + step]
            first = self._number(part)
            self._socket.sendto(part.data.cast("B") if part.flags.c_contiguous else part.tobytes(), (0, 0))
            if not self._read_replies(first, len(part), start, replies):
                replies.unanswered.update(range(start, start + len(part)))
        return replies

    def request(self, message: bytes) -> None:
        """Send one message and wait for the acknowledgement. NetlinkError when it is refused."""
        replies = self.execute(np.frombuffer(bytearray(message), dtype=np.uint8).reshape(1, -1))
        if replies.errors:
            raise replies.errors[0]
        if replies.unanswered:
            raise NetlinkError(errno.ENOBUFS, "the kernel's reply was lost")

    def _number(self, part: NDArray[np.uint8]) -> int:
        """Write the sequence numbers of a datagram and ask for an acknowledgement of its last message.

        Returns the first number.
        """
        count = len(part)
        if self._sequence + count >= 1 << 31:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        numbers = np.arange(first, first + count, dtype="<u4")
        part[:, 8:12] = numbers.view(np.uint8).reshape(count, 4)
        part[-1, 6] |= NLM_F_ACK
        return first

    def _read_replies(self, first: int, count: int, start: int, replies: Replies) -> bool:
        """Read the replies to a datagram of messages `start` and on; whether none of them was lost."""
        lost = False
        while True:
            try:
                size = self._socket.recv_into(self._received, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            acknowledged = False
            for offset, length, kind, number in _walk(memoryview(self._received)[:size]):
                if not first <= number < first + count:
                    continue  # a late reply to an earlier datagram
                if kind != _NLMSG_ERROR:
                    replies.echoes.append(bytes(self._received[offset : offset + length]))
                    continue
                failure = _read_error(self._received, offset, length)
                if failure is not None:
                    replies.errors[start + number - first] = failure
                acknowledged |= number == first + count - 1
            if acknowledged:
                return not lost

    def dump(self, message: bytes) -> Iterator[Run]:
        """Request a dump and yield its messages by length and type, in arrays that are valid until the next block.

        NetlinkError when the kernel refuses or times out, EINTR when the dumped rules changed meanwhile.
        """
        self._sequence = self._sequence + 1 if self._sequence + 1 < 1 << 31 else 1
        raw = bytearray(message)
        struct.pack_into("=I", raw, 8, self._sequence)
        self._socket.sendto(raw, (0, 0))
        block = memoryview(self._block)
        filled, done = 0, False
        while not done:
            size = self._receive(block[filled : filled + DATAGRAM])
            kept, done = self._check(block[filled : filled + size])
            filled += kept
            if filled >= BLOCK or (done and filled):
                yield from _runs(np.frombuffer(block, dtype=np.uint8, count=filled))
                filled = 0

    def _receive(self, into: memoryview) -> int:
        try:
            return self._socket.recv_into(into, DATAGRAM)
        except BlockingIOError:
            raise NetlinkError(errno.ETIMEDOUT, f"the kernel sent nothing of its dump for {DUMP_TIMEOUT} s") from None
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO, "the dump cannot be received") from None

    def _check(self, datagram: memoryview) -> tuple[int, bool]:
        """Number of bytes of a datagram that belong to the dump, and whether the dump ends with it."""
        size = len(datagram)
        if size < _HEADER.size:
            return 0, False
        length, kind, flags, number, _ = _HEADER.unpack_from(datagram)
        if number != self._sequence:
            return 0, False  # of an earlier dump that was given up
        if kind not in _CONTROL and not flags & NLM_F_DUMP_INTR and size % ((length + 3) & ~3) == 0:
            return size, False  # messages of one length: no control message among them
        for offset, length, _, kind, flags in _strides(np.frombuffer(datagram, dtype=np.uint8)):
            if flags & NLM_F_DUMP_INTR:
                if kind != _NLMSG_DONE:
                    self._drain()  # the next request must not receive the rest of this dump
                raise NetlinkError(errno.EINTR, "the rules changed during the dump")
            if kind == _NLMSG_ERROR:
                raise _read_error(datagram, offset, length) or NetlinkError(errno.EPROTO)
            if kind == _NLMSG_DONE:
                (number,) = struct.unpack_from("=i", datagram, offset + 16) if length >= 20 else (0,)
                if number < 0:
                    raise NetlinkError(-number)
                return offset, True
        return size, False

    def _drain(self) -> None:
        while True:
            try:
                size = self._socket.recv_into(self._received)
            except OSError:
                return
            if any(kind == _NLMSG_DONE for _, _, kind, _ in _walk(memoryview(self._received)[:size])):
                return


def _walk(datagram: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield offset, length, type and sequence number of each message."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, _, number, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            return
        yield offset, length, kind, number
        offset += (length + 3) & ~3


def _strides(raw: NDArray[np.uint8]) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield groups of adjacent messages of equal length, type and flags: offset, length, count, type, flags.

    Most messages of a dump have one length, so comparing one column finds most of them.
    """
    offset, size = 0, len(raw)
    while offset + _HEADER.size <= size:
        length, kind, flags, _, _ = _HEADER.unpack_from(raw.data, offset)
        if length < _HEADER.size or offset + length > size:
            return
        aligned = (length + 3) & ~3
        count = _equal_messages(raw[offset:], aligned)
        yield offset, length, count, kind, flags
        offset += count * aligned


def _equal_messages(raw: NDArray[np.uint8], aligned: int) -> int:
    """Number of adjacent messages, `aligned` bytes apart, with the first one's length, type and flags; at least 1."""
    most = len(raw) // aligned
    count = 1
    # In growing steps: where lengths alternate, comparing the whole rest each time would be quadratic.
    step = 8
    while count < most:
        end = min(count + step, most)
        heads = raw[count * aligned : end * aligned].reshape(end - count, aligned)[:, :8]
        same = (heads == raw[:8]).all(axis=1)
        if not same.all():
            return count + int(np.argmin(same))
        count, step = end, step * 8
    return count


def _runs(block: NDArray[np.uint8]) -> Iterator[Run]:
    """Yield the messages of a block by length and type, each in the block's order."""
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for offset, length, count, kind, _ in _strides(block):
        groups.setdefault((length, kind), []).append((offset, count))
    for (length, kind), strides in groups.items():
        aligned = (length + 3) & ~3
        (offset, count), *others = strides
        if not others and count > 1:
            rows = block[offset : offset + count * aligned].reshape(count, aligned)[:, :length]
        else:
            offsets = np.concatenate([offset + aligned * np.arange(count) for offset, count in strides])
            rows = np.lib.stride_tricks.sliding_window_view(block, length)[offsets]
        yield Run(rows, kind)


def _read_error(raw: bytearray | memoryview, offset: int, length: int) -> NetlinkError | None:
    """Read one NLMSG_ERROR; None when it is an acknowledgement."""
    (number,) = struct.unpack_from("=i", raw, offset + 16)
    if number == 0:
        return None
    text = ""
    at, end = offset + _ERROR_ATTRIBUTES, offset + length
    while at + 4 <= end:
        size, kind = struct.unpack_from("=HH", raw, at)
        if size < 4:
            break
        if kind & 0x3FFF == _EXTACK_MESSAGE:
            text = bytes(raw[at + 4 : at + size]).split(b"\0")[0].decode("utf-8", "replace")
        at += (size + 3) & ~3
    return NetlinkError(-number, text)
