# SPDX-License-Identifier: Apache-2.0
"""Echo requests to a VIP from the lab's client, by a raw socket: a minimal system has no `ping`."""

from __future__ import annotations

import socket
import struct

from .balanced_lab import VIP, BalancedLab

ECHO_REQUEST, ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
ECHO = struct.Struct("!BBHHH")
"""Type, code, checksum, id, sequence number."""
ID = 7
OUR_TTL = 64


def ping(world: BalancedLab, version: int, data: bytes, number: int = 1) -> tuple[int, bytes]:
    """Send a request; sequence number and data of the reply, which comes from the VIP and whose checksum is right."""
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    with world.open("client", version, socket.SOCK_RAW, protocol) as client:
        request = ECHO.pack(ECHO_REQUEST[version], 0, 0, ID, number) + data
        client.sendto(_checked(request) if version == 4 else request, (VIP[version], 0))
        return _reply(client, version)


def _checked(echo: bytes) -> bytes:
    """An ICMPv4 message with its checksum: the kernel makes only that of ICMPv6."""
    padded = echo + bytes(len(echo) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return echo[:2] + checksum.to_bytes(2, "big") + echo[4:]


def _reply(client: socket.socket, version: int) -> tuple[int, bytes]:
    """Read packets until an echo reply comes. The kernel checks only the checksum of ICMPv6 before that."""
    while True:
        packet, sender = client.recvfrom(2048)
        message = packet[20:] if version == 4 else packet
        if message[0] == ECHO_REPLY[version]:
            break
    assert sender[0] == VIP[version]
    if version == 4:
        assert _checked(message[:2] + bytes(2) + message[4:]) == message
        assert packet[8] == OUR_TTL - 1  # the router's
    _, _, _, identifier, number = ECHO.unpack_from(message)
    assert identifier == ID
    return number, message[ECHO.size :]
