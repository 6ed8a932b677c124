# SPDX-License-Identifier: Apache-2.0
"""The classifier of the NIC: finds the flow of a frame."""

from __future__ import annotations

import ipaddress

from nfcore.api.flows import PROTOCOL_NAMES, FlowMatch

IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"


def flow_of(frame: bytes) -> FlowMatch | None:
    """Give the flow of an Ethernet frame; None for fragments, options, extension headers and other protocols."""
    if frame[12:14] == IPV4 and frame[14] == 0x45 and not int.from_bytes(frame[20:22]) & 0x3FFF:
        proto, src, dst, ports = frame[23], frame[26:30], frame[30:34], frame[34:38]
    elif frame[12:14] == IPV6:
        proto, src, dst, ports = frame[20], frame[22:38], frame[38:54], frame[54:58]
    else:
        return None
    if proto not in PROTOCOL_NAMES:
        return None
    ends = ipaddress.ip_address(src), ipaddress.ip_address(dst)
    return FlowMatch(*ends, proto, int.from_bytes(ports[:2]), int.from_bytes(ports[2:]))
