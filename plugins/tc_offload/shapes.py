# SPDX-License-Identifier: Apache-2.0
"""The shape of a rule (IP version and protocol, masked, or with VLAN tags), and where a device's rules are attached."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import ADDRESS_BITS, EXACT, NO_TAGS, PROTOCOL_NAMES, SERVICE_TAG, VLAN_ID, Anything, Wild
from nfcore.api.rules import Action

from .tcmsg.cls_flower import ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, PORT_KEYS, filter_info

COOKIE_MAGIC = b"nfcoreTC"
"""First half of an action's cookie; the second half is the rule's cookie, little-endian."""
PRIORITIES = 16
"""Number of prios reserved on a device, from `[tc_offload] prio` on: 8 for shapes, the rest for the probe."""
_OPEN_PORTS = Anything.SPORT | Anything.DPORT
IP_ETHERTYPES = {4: ETH_P_IP, 6: ETH_P_IPV6}
"""Family → ethertype."""


class Shape(IntEnum):
    """What is in front of a rule's transport header. The value is added to the first prio: flower has one ethertype per
    prio.

    Masked rules are of any protocol, and come after the exact ones. Rules with VLAN tags are of any family, with one
    prio for each TPID of the outer tag.
    """

    TCP4 = 0
    UDP4 = 1
    TCP6 = 2
    UDP6 = 3
    MASKED4 = 4
    MASKED6 = 5
    TAGGED = 6
    SERVICE_TAGGED = 7

    @property
    def ethertype(self) -> int:
        """Ethertype of the filter: that behind the frame's MAC addresses."""
        if self >= Shape.TAGGED:
            return ETH_P_8021AD if self is Shape.SERVICE_TAGGED else ETH_P_8021Q
        return ETH_P_IPV6 if self in (Shape.TCP6, Shape.UDP6, Shape.MASKED6) else ETH_P_IP

    @property
    def protocol(self) -> str | None:
        """Transport protocol, in lower case; None for masked rules and those with tags, each of which has its own."""
        return None if self >= Shape.MASKED4 else "udp" if self & 1 else "tcp"

    def __str__(self) -> str:
        return _SHAPE_NAMES[self]


_SHAPE_NAMES = ("IPv4 TCP", "IPv4 UDP", "IPv6 TCP", "IPv6 UDP", "IPv4 masked", "IPv6 masked", "802.1Q", "802.1ad")


@dataclass(frozen=True)
class Kind:
    """Rules with the same attributes in their messages."""

    shape: Shape
    action: Action
    family: int
    """4 or 6."""
    proto: int
    """IP protocol; 0 if it is open."""
    tags: tuple[int, int] = NO_TAGS
    """TPIDs of the VLAN tags, outer and inner; 0 without a tag."""
    wild: Wild = EXACT

    @classmethod
    def of(cls, number: int) -> Kind:
        """Return the kind with a number of :func:`kinds_of`."""
        shape, action, family, proto, inner, *wild = number.to_bytes(8, "big")
        tags = (Shape(shape).ethertype, _TPIDS[inner]) if shape >= Shape.TAGGED else NO_TAGS
        return cls(Shape(shape), Action(action), family, proto, tags, Wild(*wild))

    @property
    def address_bits(self) -> int:
        """Length of an address."""
        return ADDRESS_BITS[self.family]

    @property
    def protocol(self) -> int | None:
        """Transport protocol as `get_parameters` takes it; None: any."""
        return None if self.wild.anything & Anything.PROTO else self.proto

    @property
    def port_keys(self) -> str:
        """How flower's keys for ports are named; empty: the rules match no ports."""
        return "" if self.wild.anything & _OPEN_PORTS == _OPEN_PORTS else PORT_KEYS[self.proto]

    def __str__(self) -> str:
        return f"{self.shape} rules to {self.action.name.lower().replace('_', ' ')}"


_TPIDS = (0, ETH_P_8021Q, ETH_P_8021AD)
"""TPIDs by what :func:`_tpids_of` gives."""


def _tpids_of(tags: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return 0 where there is no tag, 1 for one of 802.1Q, 2 for one of 802.1ad."""
    numbers: NDArray[np.int64] = (tags != 0).astype(np.int64) + (tags & SERVICE_TAG != 0)
    return numbers


def shapes_of(rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the shape of each row of `nfcore.api.rules.RULE_ROW`; -1 for rules that this backend cannot install."""
    family, protocol, wild = rows["family"], rows["key"]["proto"], rows["key"]["wild"]
    is_six = family == 6
    good = is_six | (family == 4)
    good &= (rows["action"] == Action.DROP) | ((rows["action"] == Action.SET_MARK) & (rows["mark"] != 0))
    has_ports = np.isin(protocol, tuple(PROTOCOL_NAMES))
    masked = np.bitwise_or.reduce(wild, axis=1) != 0
    exact = np.where(good & has_ports, 2 * is_six + (protocol == socket.IPPROTO_UDP), -1)
    if (tagged := (vlans := rows["vlans"]).any(axis=1)).any():
        # An outer tag comes first, each tag has an id, and no rule with tags is masked.
        good &= ~tagged | (~masked & (vlans[:, 0] != 0) & ((vlans & VLAN_ID != 0) == (vlans != 0)).all(axis=1))
        good &= vlans.max(axis=1) <= SERVICE_TAG | VLAN_ID
        with_tags = np.where(good & has_ports, Shape.TAGGED - 1 + _tpids_of(vlans[:, 0]), -1)
        exact = np.where(tagged, with_tags, exact)
    if not masked.any():
        return exact.astype(np.int64)
    anything = wild[:, 2]
    good &= (has_ports & (anything & Anything.PROTO == 0)) | (anything & _OPEN_PORTS == _OPEN_PORTS)
    good &= wild[:, :2].max(axis=1) <= np.where(is_six, 128, 32)
    good &= anything <= sum(Anything)
    return np.where(masked & ~tagged, np.where(good, Shape.MASKED4 + is_six, -1), exact).astype(np.int64)


def kinds_of(rows: NDArray[np.void], shapes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of each rule's :class:`Kind`; `shapes` are those of :func:`shapes_of`, none is -1."""
    wild = rows["key"]["wild"].astype(np.int64)
    kinds: NDArray[np.int64] = shapes
    inner = _tpids_of(rows["vlans"][:, 1])
    for column in (rows["action"], rows["family"], rows["key"]["proto"], inner, wild[:, 0], wild[:, 1], wild[:, 2]):
        kinds = kinds << 8 | column
    return kinds


@dataclass(frozen=True)
class Place:
    """Where rules are attached: interface, direction and the first prio."""

    ifindex: int
    parent: int
    """Direction: :data:`INGRESS` or :data:`EGRESS`."""
    prio: int
    """First of the :data:`PRIORITIES` prios."""

    def info(self, shape: Shape) -> int:
        """`tcm_info` of the rules of a shape."""
        return filter_info(self.prio + shape, shape.ethertype)


INGRESS, EGRESS = 0xFFFF_FFF2, 0xFFFF_FFF3
"""`tcm_parent` of filters: TC_H_MIN_INGRESS and TC_H_MIN_EGRESS of the qdisc ffff:."""


def action_cookie(cookie: int) -> bytes:
    """Return the 16-byte cookie of an action for a rule's cookie."""
    return COOKIE_MAGIC + struct.pack("<Q", cookie)
