# SPDX-License-Identifier: Apache-2.0
"""Requests to the kernel by netlink, with its reason when it refuses.

Layouts and numbers: ``include/uapi/linux/{netlink,rtnetlink,if_link,genetlink,netdev}.h``; native byte order. A request
goes to the network namespace of the calling thread.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from .objects import Closing

RTM_NEWLINK = 16
RTM_GETLINK = 18
RTM_SETLINK = 19

REQUEST, ACK, CREATE = 0x1, 0x4, 0x400
"""Flags of a request."""
_DUMP = 0x300
_ERROR, _DONE = 2, 3
_GETNSID, _NETNSA_NSID, _NETNSA_FD = 90, 1, 3
HEADER = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence number, port."""
LINK = struct.Struct("=BxHiII")
"""``struct ifinfomsg``: family, device type, index, flags, change mask."""
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_ERROR_CAPPED, _ERROR_ATTRIBUTES = 0x100, 0x200
_ERROR_MESSAGE = 1
_ROUTE, _GENERIC = 0, 16
"""Protocols of netlink sockets."""
_COMMAND = struct.Struct("=BBxx")
"""``struct genlmsghdr``: command, version."""
_CTRL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_GET_DEVICE, _DEVICE_IFINDEX, _DEVICE_XDP_FEATURES, _XMIT = 1, 1, 3, 4
"""Of the generic family ``netdev``; _XMIT: ``NETDEV_XDP_ACT_NDO_XMIT``."""
SOL_NETLINK, _EXT_ACK, _CAP_ACK = 270, 11, 10
_ROOM = 1 << 17
"""Bytes of the longest answer that is read."""


class NetlinkError(OSError):
    """The kernel refused. ``strerror`` has its reason as text if it gave one."""


def attribute(kind: int, payload: bytes) -> bytes:
    """Encode one attribute, padded to 4 bytes."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Encode an attribute that contains attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of each attribute in ``data``."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]


def link_request(message: int, ifindex: int, *payload: bytes) -> dict[int, bytes]:
    """Send a message about one interface; return the attributes of the answer by kind, none for an acknowledgement.

    Raises NetlinkError.
    """
    # RTM_GETLINK has an answer; an acknowledgement after it would stay unread.
    flags = REQUEST | (ACK if message == RTM_SETLINK else 0)
    body = LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0) + b"".join(payload)
    return dict(attributes(_exchange(_ROUTE, message, flags, body)[LINK.size :]))


def namespace_number(namespace: int) -> int | None:
    """The number that this network namespace has for another one, an open file; None when it has none."""
    request = struct.pack("=B3x", socket.AF_UNSPEC) + attribute(_NETNSA_FD, struct.pack("=I", namespace))
    answer = dict(attributes(_exchange(_ROUTE, _GETNSID, REQUEST, request)[4:]))
    (number,) = struct.unpack("=i", answer.get(_NETNSA_NSID, b"\xff" * 4))
    return None if number < 0 else int(number)


def accepts_redirects(ifindex: int) -> bool | None:
    """Whether XDP programs of other interfaces may send frames to this one; None when the kernel does not know.

    Linux tells since 6.3. A veth accepts them while its peer has an XDP program or GRO.
    """
    try:
        found = dict(attributes(_generic(_CTRL, _GET_FAMILY, attribute(_FAMILY_NAME, b"netdev\0"))))
        (family,) = struct.unpack("=H", found[_FAMILY_ID])
        device = dict(attributes(_generic(family, _GET_DEVICE, attribute(_DEVICE_IFINDEX, struct.pack("=I", ifindex)))))
        (features,) = struct.unpack("=Q", device[_DEVICE_XDP_FEATURES])
    except (NetlinkError, KeyError):
        return None
    return bool(features & _XMIT)


def _generic(family: int, command: int, payload: bytes) -> bytes:
    return _exchange(_GENERIC, family, REQUEST, _COMMAND.pack(command, 1) + payload)[_COMMAND.size :]


def _exchange(protocol: int, message: int, flags: int, body: bytes) -> bytes:
    """Send a message by a socket of its own; return the answer, see :meth:`Channel.ask`. Raises NetlinkError."""
    with Channel(protocol) as channel:
        return channel.ask(message, flags, body)


class Channel(Closing):
    """A netlink socket for several requests in turn, of one thread. OSError: there is none to be had."""

    def __init__(self, protocol: int = _ROUTE) -> None:
        """Open it in the network namespace of the calling thread, where its requests will go."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        try:
            self._socket.setsockopt(SOL_NETLINK, _EXT_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, _CAP_ACK, 1)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def ask(self, message: int, flags: int, body: bytes) -> bytes:
        """Send a request; return the answer without its header, nothing for an acknowledgement. Raises NetlinkError."""
        for _, content in self._answers(message, flags | REQUEST, body):
            return content
        return b""

    def dump(self, message: int, body: bytes) -> Iterator[bytes]:
        """Send a request for many answers; yield each without its header. Raises NetlinkError."""
        for kind, content in self._answers(message, REQUEST | _DUMP, body):
            if kind == _DONE:
                return
            yield content

    def _answers(self, message: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield kind and content of each answer to a request, up to the acknowledgement or for ever."""
        self._sequence += 1
        self._socket.send(HEADER.pack(HEADER.size + len(body), message, flags, self._sequence, 0) + body)
        while True:
            for kind, answer_flags, sequence, content in messages(self._socket.recv(_ROOM)):
                if sequence != self._sequence:
                    continue  # the rest of an earlier dump that nobody has read to its end
                if kind == _ERROR:
                    _raise_refusal(content, answer_flags)
                    return
                yield kind, content


def messages(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, sequence number and content of each whole message in a datagram."""
    offset = 0
    while offset + HEADER.size <= len(datagram):
        length, kind, flags, sequence, _ = HEADER.unpack_from(datagram, offset)
        if not HEADER.size <= length <= len(datagram) - offset:
            return
        yield kind, flags, sequence, datagram[offset + HEADER.size : offset + length]
        offset += length + -length % 4


def _raise_refusal(content: bytes, flags: int) -> None:
    code = -struct.unpack_from("=i", content)[0]
    if not code:
        return
    reason = os.strerror(code)
    if flags & _ERROR_ATTRIBUTES:
        # The request follows the error code: only its header if the answer is capped.
        request = HEADER.size if flags & _ERROR_CAPPED else struct.unpack_from("=I", content, 4)[0]
        message = dict(attributes(content[4 + request :])).get(_ERROR_MESSAGE)
        if message:
            reason = f"{message.rstrip(bytes(1)).decode(errors='replace')} ({reason})"
    raise NetlinkError(code, reason)
