# SPDX-License-Identifier: Apache-2.0
"""Reads what the kernel knows of links: addresses, and which links are ports of another one, such as a bond.

Numbers and layouts: ``include/uapi/linux/if_link.h``. These requests may wait for the kernel's RTNL lock.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass

from .netlink import LINK, RTM_GETLINK, Channel, NetlinkError, attribute, attributes

_ADDRESS, _NAME, _LINK, _MASTER, _LINKINFO, _LINK_NETNSID = 1, 3, 5, 10, 18, 37
_INFO_KIND = 1
AGGREGATES = frozenset({"bond", "team"})
"""Kinds of links whose ports receive their packets: an XDP program of theirs runs on the ports."""
_OWN_MACS = frozenset({"macvlan", "macvtap"})


@dataclass(frozen=True)
class Link:
    """A link of the calling thread's network namespace."""

    ifindex: int
    name: str
    mac: bytes
    """Six bytes; empty when it has none, as a tunnel."""
    kind: str
    """As in ``ip link add type``; empty for hardware."""
    master: int = 0
    """ifindex of the link whose port it is; 0: none."""
    lower: int = 0
    """ifindex of the link of this namespace that it is on top of, as a macvlan is; 0: none."""

    @property
    def is_aggregate(self) -> bool:
        """Whether its packets come by way of its ports."""
        return self.kind in AGGREGATES


def read_link(ifindex: int) -> Link | None:
    """Read one link; None when there is none."""
    with Channel() as channel:
        try:
            return parse_link(channel.ask(RTM_GETLINK, 0, LINK.pack(0, 0, ifindex, 0, 0)))
        except NetlinkError:
            return None


def ports_of(master: int) -> list[Link]:
    """Read the links that are ports of another one at present, and the ports of these."""
    with Channel() as channel:
        request = LINK.pack(0, 0, 0, 0, 0) + attribute(_MASTER, struct.pack("=I", master))
        try:
            found = [link for each in channel.dump(RTM_GETLINK, request) if (link := parse_link(each)) is not None]
        except NetlinkError:
            return []
    # Older kernels may give more than was asked for.
    ports = [link for link in found if link.master == master]
    return [*ports, *(inner for port in ports if port.is_aggregate for inner in ports_of(port.ifindex))]


def virtual_links_of(lower: int) -> list[Link]:
    """Read the links on top of another one that have MAC addresses of their own, such as those of VRRP."""
    with Channel() as channel:
        try:
            found = [parse_link(each) for each in channel.dump(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0))]
        except NetlinkError:
            return []
    return [link for link in found if link is not None and link.lower == lower and link.kind in _OWN_MACS]


def parse_link(content: bytes) -> Link | None:
    """Read a ``struct ifinfomsg`` and attributes; None when it is cut off."""
    if len(content) < LINK.size:
        return None
    ifindex = LINK.unpack_from(content)[2]
    found = dict(attributes(content[LINK.size :]))
    mac = found.get(_ADDRESS, b"")
    kind = dict(attributes(found.get(_LINKINFO, b""))).get(_INFO_KIND, b"")
    master, lower = (int.from_bytes(found.get(which, b"")[:4], sys.byteorder) for which in (_MASTER, _LINK))
    name, there = _text(found.get(_NAME, b"")), _LINK_NETNSID not in found
    return Link(ifindex, name, mac if len(mac) == 6 else b"", _text(kind), master, lower if there else 0)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def format_mac(mac: bytes) -> str:
    """Write a MAC address, such as ``02:00:5e:10:00:01``."""
    return mac.hex(":")
