# SPDX-License-Identifier: Apache-2.0
"""Probes what a device can do: adds a rule of each shape and action, and removes it again.

Masked rules are taken if those with a prefix, with one port alone, and of any protocol are, for IPv4 and for IPv6.
VLAN tags are matched if one 802.1Q tag is; an outer tag of 802.1ad is tried with an inner one of 802.1Q.

The rules match addresses that are reserved for documentation (RFC 5737, RFC 3849) and use prios of their own after
those of real rules, so that no traffic matches them.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nfcore.api.rules import Capabilities
from nfcore.errors import HostError
from nfcore.kernel.ethtool import HW_TC_OFFLOAD, LinkFacts, can_be_switched_on, link_facts

from .filters import FilterReader, Filters
from .messages import encode_dump, encode_rule, match_tags, tc_message
from .netlink import RTM_DELTFILTER, NetlinkError, TcSocket
from .qdisc import obstacle
from .shapes import PRIORITIES, Place, Shape, action_cookie
from .tcmsg.cls_flower import ETH_P_8021AD, ETH_P_8021Q, ETH_P_IPV6

_NOT_THE_DEVICE = (errno.EPERM, errno.EACCES, errno.ENODEV)
"""Errors that say nothing about the abilities of the device."""
_PRIO_OFFSETS = tuple(range(len(Shape), PRIORITIES))
"""Prios to try, from the device's first one on: those that rules do not use. Another program may have filters there."""
_WIDTHS = (32, 24, 16, 8)
_ENDS = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
_OPEN = {"src_ip": None, "src_port": None}
_MASKS: dict[int, tuple[Mapping[str, Any], ...]] = {
    family: (
        {"ip_proto": "tcp", "src_ip": prefix},
        {"ip_proto": "udp", **_OPEN},
        {**_OPEN, "src_ip": prefix, "dst_port": None},
    )
    for family, prefix in ((4, "192.0.2.0/28"), (6, "2001:db8::/64"))
}
"""What masked rules of each kind match, where it differs from an exact one."""
_TAGS: dict[Shape, Mapping[str, Any]] = {
    Shape.TAGGED: {"ip_proto": "tcp", **match_tags((ETH_P_8021Q, 0), (1, 0), 4)},
    Shape.SERVICE_TAGGED: {"ip_proto": "tcp", **match_tags((ETH_P_8021AD, ETH_P_8021Q), (1, 1), 4)},
}
"""What rules with VLAN tags match beside addresses and ports."""
_MARK = {"kind": "skbedit", "mark": 1}
_DROP = {"kind": "gact", "action": "drop"}


@dataclass
class Probe:
    """What was found out about one device."""

    hardware: bool
    """Rules go to hardware only (skip_sw)."""
    mark_width: int = 0
    refused: dict[str, NetlinkError] = field(default_factory=dict)
    """What it does not do → the kernel's refusal: `IPv6 TCP`, `IPv4 masked`, `drop`, `nofrag`, `indev`, `pedit`, …"""
    refusal: str = ""
    """Why it takes no rules at all, one sentence; empty if it does."""
    temporary: bool = False
    """What refused all rules may pass."""
    full: bool = False
    """The table was full, so nothing could be tried; the other fields mean nothing."""
    gives_counters: bool = False
    """The driver gives counters with every dump, so that a rule without counters is not in the NIC."""

    def capabilities(self) -> Capabilities:
        """Return the result as the core has it."""
        if self.refusal:
            notes = (self.refusal,)
            return Capabilities(mark_width=0, ipv6=False, drop=False, notes=notes, temporary=self.temporary)
        where = "rules in hardware alone (skip_sw)" if self.hardware else "rules in software"
        refused = tuple(f"{what}: no: {error}" for what, error in self.refused.items())
        ipv6 = not any(str(shape) in self.refused for shape in (Shape.TCP6, Shape.UDP6))
        shapes = (Shape.MASKED4, Shape.MASKED6) if ipv6 else (Shape.MASKED4,)
        masks = not any(str(shape) in self.refused for shape in shapes)
        drop, vlans = "drop" not in self.refused, str(Shape.TAGGED) not in self.refused
        return Capabilities(self.mark_width, ipv6, drop, masks, notes=(where, *refused), vlans=vlans)


def probe_device(socket: TcSocket, place: Place, name: str, *, hardware: bool) -> Probe:
    """Probe the device `name`, with skip_sw if `hardware`. HostError without permission, or when it is gone."""
    free = _free_prio(socket, place)
    if free is None:
        first, last = place.prio + _PRIO_OFFSETS[0], place.prio + _PRIO_OFFSETS[-1]
        taken = f"{name}: the prios {first} to {last} have filters of other programs"
        return Probe(hardware, refusal=f"{taken}: set tc_offload.prio", temporary=True)
    attempt = _Attempt(socket, place, free, skip_sw=hardware)
    found = Probe(hardware)
    for width in _WIDTHS:
        error = attempt(Shape.TCP4, dump=hardware, action={**_MARK, "mark": (1 << width) - 1})
        if error is None:
            found.mark_width, found.gives_counters = width, attempt.driver_counted
            break
    else:
        if error is not None and error.number in _NOT_THE_DEVICE:
            raise HostError(f"{name}: flower rules cannot be added: {error}")
        found.refusal = obstacle(socket, place, name)
        found.temporary = bool(found.refusal) or can_be_switched_on(place.ifindex, HW_TC_OFFLOAD)
        found.refusal = found.refusal or _explain_refusal(name, error, hardware=hardware)
        found.full = error is not None and error.number == errno.ENOSPC
        return found
    tries: dict[str, tuple[Shape, Mapping[str, Any]]] = {
        **{str(shape): (shape, {"action": _MARK}) for shape in (Shape.UDP4, Shape.TCP6, Shape.UDP6)},
        **{str(shape): (shape, {**tags, "action": _MARK}) for shape, tags in _TAGS.items()},
        "drop": (Shape.TCP4, {"action": _DROP}),
        "nofrag": (Shape.TCP4, {"action": _MARK, "ip_flags": "nofrag"}),
        "indev": (Shape.TCP4, {"action": _MARK, "indev": name}),
        "pedit": (Shape.TCP4, {"action": {"kind": "pedit", "eth": {"dst": "02:00:00:00:00:01"}}}),
    }
    for what, (shape, rule) in tries.items():
        error = attempt(shape, **rule)
        if error is not None and error.number != errno.ENOSPC:
            found.refused[what] = error
    for shape in (Shape.MASKED4, Shape.MASKED6):
        for rule in _MASKS[_family(shape)]:
            error = attempt(shape, **rule, action=_MARK)
            if error is not None and error.number != errno.ENOSPC:
                found.refused[str(shape)] = error
                break
    return found


class _Attempt:
    """Adds one rule at a prio and removes it; returns the kernel's error, if any."""

    def __init__(self, socket: TcSocket, place: Place, prio: int, *, skip_sw: bool) -> None:
        self._socket = socket
        self._place, self._prio = place, prio
        self._skip_sw = skip_sw
        self.driver_counted = False
        """Whether the driver gave counters for the last rule that was dumped."""

    def __call__(self, shape: Shape, *, dump: bool = False, **rule: Any) -> NetlinkError | None:
        # All shapes in turn at one prio: it takes the ethertype of the only rule that it has.
        place = Place(self._place.ifindex, self._place.parent, self._prio - shape)
        src, dst = _ENDS[_family(shape)]
        match = {"src_ip": src, "dst_ip": dst, "src_port": 9, "dst_port": 9, "skip_sw": self._skip_sw}
        said = {**match, **rule, "action": {**rule["action"], "cookie": action_cookie(0)}}
        try:
            self._socket.request(bytes(encode_rule(place, shape, said, handle=1).data))
        except NetlinkError as error:
            return error
        if dump:
            self._dump(place, shape)
        _remove(self._socket, place, 1, place.info(shape))
        return None

    def _dump(self, place: Place, shape: Shape) -> None:
        self.driver_counted = False
        with suppress(NetlinkError):
            runs = self._socket.dump(encode_dump(place, place.info(shape), terse=False))
            self.driver_counted = bool(FilterReader().read(runs).driver_counted.any())


def _family(shape: Shape) -> int:
    """The family of the addresses that the probe's rules of a shape have."""
    return 6 if shape.ethertype == ETH_P_IPV6 else 4


def remove_leftovers(socket: TcSocket, place: Place) -> int:
    """Remove the rules of a probe that was killed; how many there were. NetlinkError."""
    found = [_look(socket, place, place.prio + offset) for offset in _PRIO_OFFSETS]
    return sum(_remove_all(socket, place, ours) for ours, foreign in found if not foreign)


def _free_prio(socket: TcSocket, place: Place) -> int | None:
    """Find a prio for the probe that other programs have no filters at; None: there is none."""
    for offset in _PRIO_OFFSETS:
        prio: int = place.prio + offset
        with suppress(NetlinkError):
            ours, foreign = _look(socket, place, prio)
            if not foreign:
                _remove_all(socket, place, ours)  # left by a probe that was killed
                return prio
    return None


def _look(socket: TcSocket, place: Place, prio: int) -> tuple[Filters, bool]:
    """Nfcore's filters at a prio, and whether there are any others."""
    parts, count = [], 0
    for run in socket.dump(encode_dump(place, prio << 16, terse=False)):
        parts.append(FilterReader().read([run]))
        count += len(run.rows)
    found = Filters.joined(parts)
    return found, int(np.count_nonzero(found.ours)) < count


def _remove_all(socket: TcSocket, place: Place, filters: Filters) -> int:
    for handle, info in zip(filters.handle.tolist(), filters.info.tolist(), strict=True):
        _remove(socket, place, handle, info)
    return len(filters)


def _remove(socket: TcSocket, place: Place, handle: int, info: int) -> None:
    attrs = [["TCA_KIND", "flower"]]
    with suppress(NetlinkError):
        socket.request(bytes(tc_message(RTM_DELTFILTER, 0, place, handle=handle, info=info, attrs=attrs).data))


def _explain_refusal(name: str, error: NetlinkError | None, *, hardware: bool) -> str:
    if error is not None and error.number == errno.ENOENT:
        return f"{name}: this kernel lacks the classifier flower or the action skbedit ({error}); nothing is offloaded"
    if error is not None and error.number == errno.ENOSPC:
        return f"{name}: its table is full, so what it can do cannot be tried"
    if hardware:
        advice = advise_switch(name, link_facts(socket.if_nametoindex(name), name))
        return f"{name}: its driver takes no flower rules ({error}); nothing is offloaded: {advice}"
    return f"{name}: the kernel takes no flower rules here ({error}); nothing is offloaded"


def advise_switch(name: str, facts: LinkFacts) -> str:
    """Say how it stands with the feature that lets a NIC have rules: off, fixed, unknown to the driver, or on."""
    if facts.features.get(HW_TC_OFFLOAD):
        return f"{HW_TC_OFFLOAD} is on, so it is the driver's own refusal: the kernel's log may have its reason"
    if HW_TC_OFFLOAD not in facts.features or HW_TC_OFFLOAD in facts.fixed:
        return f"it cannot offload rules of TC ({HW_TC_OFFLOAD} is fixed): use another backend"
    return f"{HW_TC_OFFLOAD} is off: ethtool -K {name} {HW_TC_OFFLOAD} on"
