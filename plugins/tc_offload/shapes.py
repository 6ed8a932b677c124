# SPDX-License-Identifier: Apache-2.0
"""Shapes of rules: family and protocol, each with a priority of its own, as flower wants one ethertype for each."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nfcore.api.rules import Action

from .tcmsg.cls_flower import ETH_P_IP, ETH_P_IPV6, filter_info

COOKIE_MAGIC = b"nfcoreTC"
"""First half of an action's cookie; the second is the rule's, little-endian."""
PRIORITIES = 16
"""Priorities that one device's rules may use, from `[tc_offload] prio` on."""


class Shape(IntEnum):
    """Offset of a shape's priority in our range."""

    TCP4 = 0
    UDP4 = 1
    TCP6 = 2
    UDP6 = 3

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if self >= Shape.TCP6 else 4

    @property
    def ethertype(self) -> int:
        """Protocol of the filter."""
        return ETH_P_IPV6 if self.family == 6 else ETH_P_IP

    @property
    def protocol(self) -> str:
        """The IP protocol, in lower case."""
        return "udp" if self & 1 else "tcp"

    def __str__(self) -> str:
        return f"IPv{self.family} {self.protocol.upper()}"


def shapes_of(rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Give the shape of each row of `nfcore.api.rules.RULE_ROW`; -1 where flower rules of ours cannot say it."""
    family, protocol = rows["family"], rows["key"]["proto"]
    known = ((family == 4) | (family == 6)) & np.isin(protocol, (socket.IPPROTO_TCP, socket.IPPROTO_UDP))
    known &= (rows["action"] == Action.DROP) | ((rows["action"] == Action.SET_MARK) & (rows["mark"] != 0))
    return np.where(known, 2 * (family == 6) + (protocol == socket.IPPROTO_UDP), -1).astype(np.int64)


@dataclass(frozen=True)
class Place:
    """Where rules sit: a device's hook and our range of priorities there."""

    ifindex: int
    parent: int
    """Handle of the hook: :data:`INGRESS` or :data:`EGRESS`."""
    prio: int
    """First of :data:`PRIORITIES`."""

    def info(self, shape: Shape) -> int:
        """`tcm_info` of a shape's rules."""
        return filter_info(self.prio + shape, shape.ethertype)


INGRESS, EGRESS = 0xFFFF_FFF2, 0xFFFF_FFF3
"""Parents of filters, TC_H_MIN_INGRESS and TC_H_MIN_EGRESS of the qdisc ffff:."""


def action_cookie(cookie: int) -> bytes:
    """Give the 16 bytes that an action carries for a rule's cookie."""
    return COOKIE_MAGIC + struct.pack("<Q", cookie)
