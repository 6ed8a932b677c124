# SPDX-License-Identifier: Apache-2.0
"""Whose packet a frame is: the addresses of its innermost IP header, as the client has sent it."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from nfcore.api.flows import PROTOCOL_NAMES, FlowMatch

_ETHERNET_BYTES, _TAG_BYTES = 14, 4
_TAGS = {0x8100, 0x88A8}
"""EtherTypes of 802.1Q and 802.1ad."""
_IP = {0x0800, 0x86DD}
_IPV4_BYTES, _IPV6_BYTES = 20, 40
_FRAGMENT_OFFSET = 0x1FFF


def flow_of(frame: bytes, added: int) -> str | None:
    """Write the flow of a frame that may be cut off, such as ``198.18.1.2:40000 > 198.18.10.1:80/tcp``.

    added: bytes of outer headers between the Ethernet header and the packet. Without ports: ``198.18.1.2 > …/1``. None:
    no IP, or cut off within the IP header.
    """
    start = _ETHERNET_BYTES
    while (kind := int.from_bytes(frame[start - 2 : start])) in _TAGS:
        start += _TAG_BYTES
    packet = frame[start + added :]
    if kind not in _IP or not packet:
        return None
    return _flow(packet)


def _flow(packet: bytes) -> str | None:
    if packet[0] >> 4 == 4 and len(packet) >= _IPV4_BYTES:
        proto, addresses, header = packet[9], (packet[12:16], packet[16:20]), packet[0] % 16 * 4
        whole = not int.from_bytes(packet[6:8]) & _FRAGMENT_OFFSET
    elif packet[0] >> 4 == 6 and len(packet) >= _IPV6_BYTES:
        proto, addresses, header, whole = packet[6], (packet[8:24], packet[24:40]), _IPV6_BYTES, True
    else:
        return None
    source, target = map(ip_address, addresses)
    ports = packet[header : header + 4]
    if proto in PROTOCOL_NAMES and whole and len(ports) == 4:
        return str(FlowMatch(source, target, proto, *struct.unpack("!HH", ports)))
    return f"{source} > {target}/{PROTOCOL_NAMES.get(proto, proto)}"
