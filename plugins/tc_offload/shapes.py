# SPDX-License-Identifier: Apache-2.0
"""The shape of a rule (IP version and transport protocol, or masked), and where the rules of a device are attached."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import EXACT, PROTOCOL_NAMES, Anything, Wild
from nfcore.api.rules import Action

from .tcmsg.cls_flower import ETH_P_IP, ETH_P_IPV6, PORT_KEYS, filter_info

COOKIE_MAGIC = b"nfcoreTC"
"""First half of an action's cookie; the second half is the rule's cookie, little-endian."""
PRIORITIES = 16
"""Number of prios reserved on a device, from `[tc_offload] prio` on: 6 for shapes, 6 for the probe, the rest unused."""
_OPEN_PORTS = Anything.SPORT | Anything.DPORT


class Shape(IntEnum):
    """IP version and protocol of a rule. The value is added to the first prio: flower has one ethertype per prio.

    Masked rules are of any protocol, and come after the exact ones.
    """

    TCP4 = 0
    UDP4 = 1
    TCP6 = 2
    UDP6 = 3
    MASKED4 = 4
    MASKED6 = 5

    @property
    def is_masked(self) -> bool:
        """Whether rules of this shape leave something open."""
        return self >= Shape.MASKED4

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if self in (Shape.TCP6, Shape.UDP6, Shape.MASKED6) else 4

    @property
    def address_bits(self) -> int:
        """Length of an address."""
        return 128 if self.family == 6 else 32

    @property
    def ethertype(self) -> int:
        """Ethertype of the filter."""
        return ETH_P_IPV6 if self.family == 6 else ETH_P_IP

    @property
    def protocol(self) -> str | None:
        """Transport protocol, in lower case; None for masked rules, each of which has its own."""
        return None if self.is_masked else "udp" if self & 1 else "tcp"

    def __str__(self) -> str:
        return f"IPv{self.family} {self.protocol.upper() if self.protocol else 'masked'}"


@dataclass(frozen=True)
class Kind:
    """Rules with the same attributes in their messages: shape, action, and of masked rules what they leave open."""

    shape: Shape
    action: Action
    proto: int = 0
    """IP protocol of masked rules; 0 for exact ones, whose shape says it."""
    wild: Wild = EXACT

    @classmethod
    def of(cls, number: int) -> Kind:
        """Return the kind with a number of :func:`kinds_of`."""
        shape, action, proto, *wild = number.to_bytes(6, "big")
        return cls(Shape(shape), Action(action), proto, Wild(*wild))

    @property
    def protocol(self) -> str | int | None:
        """Transport protocol as `get_parameters` takes it; None: any."""
        return self.shape.protocol or (None if self.wild.anything & Anything.PROTO else self.proto)

    @property
    def port_keys(self) -> str:
        """How flower's keys for ports are named; empty: the rules match no ports."""
        if self.shape.is_masked and self.wild.anything & _OPEN_PORTS == _OPEN_PORTS:
            return ""
        return PORT_KEYS[self.proto] if self.shape.is_masked else str(self.shape.protocol).upper()

    def __str__(self) -> str:
        return f"{self.shape} rules to {self.action.name.lower().replace('_', ' ')}"


def shapes_of(rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the shape of each row of `nfcore.api.rules.RULE_ROW`; -1 for rules that this backend cannot install."""
    family, protocol, wild = rows["family"], rows["key"]["proto"], rows["key"]["wild"]
    is_six = family == 6
    good = is_six | (family == 4)
    good &= (rows["action"] == Action.DROP) | ((rows["action"] == Action.SET_MARK) & (rows["mark"] != 0))
    has_ports = np.isin(protocol, tuple(PROTOCOL_NAMES))
    masked = np.bitwise_or.reduce(wild, axis=1) != 0
    exact = np.where(good & has_ports, 2 * is_six + (protocol == socket.IPPROTO_UDP), -1)
    if not masked.any():
        return exact.astype(np.int64)
    anything = wild[:, 2]
    good &= (has_ports & (anything & Anything.PROTO == 0)) | (anything & _OPEN_PORTS == _OPEN_PORTS)
    good &= wild[:, :2].max(axis=1) <= np.where(is_six, 128, 32)
    good &= anything <= sum(Anything)
    return np.where(masked, np.where(good, Shape.MASKED4 + is_six, -1), exact).astype(np.int64)


def kinds_of(rows: NDArray[np.void], shapes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of each rule's :class:`Kind`; `shapes` are those of :func:`shapes_of`, none is -1."""
    wild = rows["key"]["wild"].astype(np.int64)
    proto = np.where(shapes >= Shape.MASKED4, rows["key"]["proto"], 0)
    numbers = (shapes << 8 | rows["action"]) << 8 | proto
    kinds: NDArray[np.int64] = numbers << 24 | wild[:, 0] << 16 | wild[:, 1] << 8 | wild[:, 2]
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
