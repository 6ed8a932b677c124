# SPDX-License-Identifier: Apache-2.0
"""The shape of a rule (IP version and transport protocol), and where the rules of a device are attached."""

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
"""First half of an action's cookie; the second half is the rule's cookie, little-endian."""
PRIORITIES = 16
"""Number of prios reserved on a device, from `[tc_offload] prio` on: 4 for shapes, 4 for the probe, the rest unused."""


class Shape(IntEnum):
    """IP version and protocol of a rule. The value is added to the first prio: flower has one ethertype per prio."""

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
        """Ethertype of the filter."""
        return ETH_P_IPV6 if self.family == 6 else ETH_P_IP

    @property
    def protocol(self) -> str:
        """Transport protocol, in lower case."""
        return "udp" if self & 1 else "tcp"

    def __str__(self) -> str:
        return f"IPv{self.family} {self.protocol.upper()}"


def shapes_of(rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the shape of each row of `nfcore.api.rules.RULE_ROW`; -1 for rules that this backend cannot install."""
    family, protocol = rows["family"], rows["key"]["proto"]
    known = ((family == 4) | (family == 6)) & np.isin(protocol, (socket.IPPROTO_TCP, socket.IPPROTO_UDP))
    known &= (rows["action"] == Action.DROP) | ((rows["action"] == Action.SET_MARK) & (rows["mark"] != 0))
    return np.where(known, 2 * (family == 6) + (protocol == socket.IPPROTO_UDP), -1).astype(np.int64)


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
