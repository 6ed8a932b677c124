# SPDX-License-Identifier: Apache-2.0
"""An entry of flow_actions, as an application writes it, and as the daemon tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self


@dataclass(frozen=True)
class Flow:
    """Action Y for flow X. What is None is not given: any address, any port, no lifetime."""

    name: str
    """1 to 64 characters, different from all others."""
    src: str | None = None
    """An address or a prefix."""
    dst: str | None = None
    sport: int | None = None
    dport: int | None = None
    proto: str | int | None = None
    """tcp, udp or a number; ports need tcp or udp."""
    family: int | None = None
    """4 or 6; needed only when neither `src` nor `dst` says it."""
    action: str = "drop"
    """drop, pass, count, redirect, set_dscp, police or cpu."""
    interface: str | None = None
    """redirect: where to."""
    dscp: int | None = None
    """set_dscp: 0 to 63."""
    packets_per_second: int | None = None
    """police: the rate, or `bytes_per_second`."""
    bytes_per_second: int | None = None
    burst: int | None = None
    """police: what may come at once, in packets or bytes."""
    cpu: int | None = None
    """cpu: its number."""
    priority: int = 0
    """Of two equally specific entries that match a packet, the one with the higher priority wins."""
    offload: bool = True
    """Whether the NIC may get a rule for it."""
    require: Mapping[str, Any] | None = None
    """What packets with the shared mark of the action must match at least: src, dst, proto, dport, family."""
    ttl: str | None = None
    """Lifetime, such as "10m"."""

    def to_json(self) -> dict[str, Any]:
        """Give the entry as the socket takes it: without what is not given."""
        given = vars(self) if type(self) is Flow else {name: getattr(self, name) for name in _NAMES}
        found = {name: value for name, value in given.items() if value is not None}
        if not found["priority"]:
            del found["priority"]
        if found["offload"] is True:
            del found["offload"]
        return found


_NAMES = tuple(each.name for each in fields(Flow))


@dataclass(frozen=True)
class FlowStatus(Flow):
    """An entry with what the daemon knows of it."""

    owner: str = ""
    """toml or application."""
    expires_seconds: float | None = None
    """Until its lifetime ends."""
    packets: int = 0
    """Counted by NICs and XDP together."""
    bytes: int = 0
    hardware_packets: int = 0
    """Of `packets`, those that NICs have counted."""
    seen_seconds: float | None = None
    """Since its last packet; None: there was none."""
    in_hardware: bool = False
    why: str = ""
    """Why it is not in hardware."""
    shadowed: bool = False
    """Whether an entry that wins over it overlaps it."""
    shadowed_by: tuple[str, ...] = ()
    """Names of such entries; only :meth:`show` tells them."""

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Read an entry of the daemon; keys that a newer daemon adds are left out."""
        known = {name: row[name] for name in _STATUS_NAMES if name in row}
        known["shadowed_by"] = tuple(row.get("shadowed_by", ()))
        return cls(**known)

    def order(self) -> Flow:
        """Give the entry alone, with what is left of its lifetime: to add it again."""
        entry = Flow(**{name: getattr(self, name) for name in _NAMES})
        return entry if self.expires_seconds is None else replace(entry, ttl=f"{max(self.expires_seconds, 0.001):.3f}s")


_STATUS_NAMES = tuple(each.name for each in fields(FlowStatus))
