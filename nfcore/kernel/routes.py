# SPDX-License-Identifier: Apache-2.0
"""Asks the kernel how it would forward a packet: the next hop of one destination, and the MAC address of a neighbour.

It looks the destination up as it does for packets, so that rules, tables, metrics, several next hops of a route and
next-hop objects count, and no table is read as a whole. Numbers and layouts:
``include/uapi/linux/{rtnetlink,neighbour}.h``.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from dataclasses import dataclass

from .netlink import ACK, CREATE, Channel, NetlinkError, attribute, attributes
from .objects import Closing

_NEWNEIGH, _GETNEIGH, _GETROUTE = 28, 30, 26
_ROUTE = struct.Struct("=BBBBBBBBI")
"""``struct rtmsg``: family, bits of destination and source, TOS, table, protocol, scope, type, flags."""
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_VIA = 1, 4, 5, 18
_UNICAST = 1
_KINDS = {2: "an address of this machine", 3: "a broadcast address", 4: "an anycast address", 5: "a multicast address"}
"""Types of routes on which no packet goes to another machine."""
_FIB_MATCH = 0x2000
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
"""``struct ndmsg``: family, ifindex, state, flags, type."""
_NDA_DST, _NDA_LLADDR, _NDA_FLAGS_EXT = 1, 2, 15
_EXT_LEARNED, _EXT_MANAGED = 0x10, 0x1
"""NTF_EXT_LEARNED: a routing daemon gave the entry; NTF_EXT_MANAGED: the kernel keeps it right by itself. A request for
such an entry would take that from it."""
_PROBE = 0x10
"""NUD_PROBE: the kernel asks at the address that it knows, and takes the neighbour for failed after three tries."""
_USE = 0x01
"""NTF_USE: the kernel resolves the neighbour as if it had a packet for it."""
_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""Neighbour states with a usable address: reachable, stale, delay, probe, noarp, permanent."""
_FAILED, _FIXED = 0x20, 0x40 | 0x80
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class NoRouteError(Exception):
    """The kernel would not send a packet there. Its text completes "no route to X: "."""


@dataclass(frozen=True)
class NextHop:
    """The station to which a packet goes next."""

    ifindex: int
    address: Address
    """The gateway's, of either family; without a gateway the destination itself."""
    gateway: bool


@dataclass(frozen=True)
class Neighbour:
    """What the kernel knows of a station on a link."""

    mac: bytes | None
    """Its address on the link; None while that is unknown."""
    failed: bool = False
    """It was asked and has not answered."""
    fixed: bool = False
    """The entry is an administrator's or another program's, or needs no answer: it is to be left alone."""


class RouteReader(Closing):
    """Asks the kernel, from one thread. OSError: no netlink socket."""

    def __init__(self) -> None:
        self._channel = Channel()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._channel.close()

    def next_hop(self, destination: Address, ifindex: int) -> NextHop:
        """Find the next hop of a destination on its way out of an interface. NoRouteError: there is no such way.

        The kernel's own choice counts if it leaves there; if not, its choice among the routes out of that interface.
        """
        try:
            chosen = parse_route(self._look_up(destination), destination)
        except (NetlinkError, NoRouteError):
            chosen = None
        if chosen is not None and chosen.ifindex == ifindex:
            return chosen
        try:
            found = parse_route(self._look_up(destination, ifindex), destination)
            if not found.gateway and destination.version == 4:
                # Out of a given interface the kernel takes what has no route for a neighbour.
                self._look_up(destination, ifindex, _FIB_MATCH)
        except NetlinkError as error:
            raise NoRouteError(error.strerror if chosen is None else "it leaves by another interface") from None
        if found.ifindex != ifindex:
            raise NoRouteError("it leaves by another interface")
        return found

    def _look_up(self, destination: Address, ifindex: int = 0, flags: int = 0) -> bytes:
        body = _ROUTE.pack(family_of(destination), destination.max_prefixlen, 0, 0, 0, 0, 0, 0, flags)
        body += attribute(_RTA_DST, destination.packed)
        if ifindex:
            body += attribute(_RTA_OIF, struct.pack("=I", ifindex))
        return self._channel.ask(_GETROUTE, 0, body)

    def neighbour(self, address: Address, ifindex: int) -> Neighbour:
        """Give what is known of a neighbour, without asking it."""
        body = _NEIGHBOUR.pack(family_of(address), ifindex, 0, 0, 0) + attribute(_NDA_DST, address.packed)
        try:
            return parse_neighbour(self._channel.ask(_GETNEIGH, 0, body))
        except NetlinkError:
            return Neighbour(None)

    def resolve(self, address: Address, ifindex: int) -> bool:
        """Have the kernel ask a neighbour for its address, or confirm what is known. False: it cannot.

        Not for a neighbour that is `fixed`: the kernel would make it one that is to be asked.
        """
        return self._change(address, ifindex, 0, _USE)

    def confirm(self, address: Address, ifindex: int) -> bool:
        """Have the kernel ask a neighbour at once whether its address is still right. False: it cannot.

        Only for one whose address is known, and that is not `fixed`. :meth:`resolve` does it after 15 to 45 s.
        """
        return self._change(address, ifindex, _PROBE, 0)

    def _change(self, address: Address, ifindex: int, state: int, flags: int) -> bool:
        body = _NEIGHBOUR.pack(family_of(address), ifindex, state, flags, 0) + attribute(_NDA_DST, address.packed)
        try:
            self._channel.ask(_NEWNEIGH, ACK | CREATE, body)
        except NetlinkError:
            return False
        return True


def family_of(address: Address) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def parse_route(content: bytes, destination: Address) -> NextHop:
    """Read the answer about a destination: a ``struct rtmsg`` and attributes. NoRouteError: it leads nowhere."""
    if len(content) < _ROUTE.size:
        raise NoRouteError("the kernel's answer is cut off")
    kind = _ROUTE.unpack_from(content)[7]
    if kind != _UNICAST:
        raise NoRouteError(f"it is {_KINDS[kind]}" if kind in _KINDS else "a route forbids it")
    found = dict(attributes(content[_ROUTE.size :]))
    ifindex = int.from_bytes(found.get(_RTA_OIF, b"")[:4], sys.byteorder)
    # RTA_VIA: a family of 16 bits, then an address of that family.
    gateway = found.get(_RTA_GATEWAY) or found.get(_RTA_VIA, b"")[2:]
    if len(gateway) not in (4, 16):
        return NextHop(ifindex, destination, gateway=False)
    return NextHop(ifindex, ipaddress.ip_address(gateway), gateway=True)


def parse_neighbour(content: bytes) -> Neighbour:
    """Read a ``struct ndmsg`` and attributes."""
    if len(content) < _NEIGHBOUR.size:
        return Neighbour(None)
    _, _, state, flags, _ = _NEIGHBOUR.unpack_from(content)
    found = dict(attributes(content[_NEIGHBOUR.size :]))
    mac = found.get(_NDA_LLADDR, b"")
    managed = int.from_bytes(found.get(_NDA_FLAGS_EXT, b"")[:4], sys.byteorder) & _EXT_MANAGED
    fixed = bool(state & _FIXED or flags & _EXT_LEARNED or managed)
    return Neighbour(mac if state & _USABLE and len(mac) == 6 else None, failed=bool(state & _FAILED), fixed=fixed)
