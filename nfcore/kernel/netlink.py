# SPDX-License-Identifier: Apache-2.0
"""The netlink messages that XDP needs, with the kernel's reason when it refuses.

Layouts and numbers: ``include/uapi/linux/{netlink,rtnetlink,if_link,genetlink,netdev}.h``; native byte order. A request
goes to the network namespace of the calling thread.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

RTM_GETLINK = 18
RTM_SETLINK = 19

_REQUEST, _ACK = 0x1, 0x4
_ERROR = 2
_HEADER = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence number, port."""
_LINK = struct.Struct("=BxHiII")
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
_SOL_NETLINK, _EXT_ACK, _CAP_ACK = 270, 11, 10


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
    flags = _REQUEST | (_ACK if message == RTM_SETLINK else 0)
    body = _LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0) + b"".join(payload)
    return dict(attributes(_exchange(_ROUTE, message, flags, body)[_LINK.size :]))


def route_request(message: int, body: bytes, *, flags: int = 0) -> bytes:
    """Send a message of rtnetlink; return the answer without its header, nothing for an acknowledgement. NetlinkError.

    ``flags`` are those beside NLM_F_REQUEST and NLM_F_ACK.
    """
    return _exchange(_ROUTE, message, _REQUEST | _ACK | flags, body)


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
    return _exchange(_GENERIC, family, _REQUEST, _COMMAND.pack(command, 1) + payload)[_COMMAND.size :]


def _exchange(protocol: int, message: int, flags: int, body: bytes) -> bytes:
    """Send a message; return the answer without its header, nothing for an acknowledgement. Raises NetlinkError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as channel:
        channel.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        channel.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        channel.bind((0, 0))
        channel.send(_HEADER.pack(_HEADER.size + len(body), message, flags, 1, 0) + body)
        answer = channel.recv(1 << 17)
    length, kind, answer_flags, _, _ = _HEADER.unpack_from(answer)
    content = answer[_HEADER.size : length]
    if kind == _ERROR:
        _raise_refusal(content, answer_flags)
        return b""
    return content


def _raise_refusal(content: bytes, flags: int) -> None:
    code = -struct.unpack_from("=i", content)[0]
    if not code:
        return
    reason = os.strerror(code)
    if flags & _ERROR_ATTRIBUTES:
        # The request follows the error code: only its header if the answer is capped.
        request = _HEADER.size if flags & _ERROR_CAPPED else struct.unpack_from("=I", content, 4)[0]
        message = dict(attributes(content[4 + request :])).get(_ERROR_MESSAGE)
        if message:
            reason = f"{message.rstrip(bytes(1)).decode(errors='replace')} ({reason})"
    raise NetlinkError(code, reason)
