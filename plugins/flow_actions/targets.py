# SPDX-License-Identifier: Apache-2.0
"""Targets in the data plane: actions as rows of `flow_targets`, and the interfaces and CPUs that packets may go to."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import ADDRESS_BITS, FLOW_KEY, Anything, pack_address
from nfcore.errors import HostError
from nfcore.kernel.link_monitor import is_up
from nfcore.kernel.netlink import accepts_redirects

from .data_plane import DataPlane
from .entries import Require, Target
from .layouts import TARGET, Action, match_patterns, police_rate

log = logging.getLogger(__name__)


class Targets:
    """Writes targets, and keeps the interfaces of redirects: one that vanishes and comes back is used again."""

    def __init__(self, data_plane: DataPlane, links: int) -> None:
        self._data_plane = data_plane
        self._slots: dict[str, int] = {}
        """Name of an interface → its slot in `flow_links`."""
        self._ifindexes: dict[str, int | None] = {}
        """Name → ifindex; None: packets cannot be sent there now."""
        self._troubles: dict[str, str] = {}
        """Name → why they cannot."""
        self._free = list(range(links))[::-1]
        self._used: dict[int, str] = {}
        """Number of a target → its interface."""

    def write(self, targets: Mapping[int, Target], *, may_miss: bool = False) -> None:
        """Write new targets. HostError names what the kernel cannot do; then none of them is there.

        may_miss: an interface or CPU that is not there now is no error.
        """
        rows = np.zeros(len(targets), dtype=TARGET)
        try:
            for row, (number, target) in enumerate(targets.items()):
                rows[row] = self._row(number, target, may_miss=may_miss)
        except BaseException:
            self.release(list(targets))
            raise
        self._data_plane.set_targets(np.array(list(targets), dtype=np.uint32), rows)

    def release(self, numbers: Sequence[int]) -> None:
        """Give the slots of interfaces back that no target leads to any more."""
        for number in numbers:
            name = self._used.pop(number, None)
            if name is not None and name not in self._used.values():
                slot = self._slots.pop(name)
                self._note(name, self._ifindexes[name], "")
                if self._ifindexes.pop(name) is not None:
                    self._data_plane.set_link(slot, None)
                self._free.append(slot)

    def missing(self) -> list[str]:
        """Give the interfaces that packets should go to and cannot."""
        return list(self._troubles)

    def troubles(self) -> list[str]:
        """Say of each interface that packets should go to why they cannot."""
        return [f"packets cannot be redirected: {name} {why}" for name, why in self._troubles.items()]

    def trouble(self, target: Target) -> str:
        """Say why a target cannot be carried out now; empty when it can."""
        why = self._troubles.get(target.interface, "")
        return f"{target.interface} {why}" if why else ""

    def follow_links(self) -> list[str]:
        """Look at the interfaces again: sentences about those that can no longer, or can again, have packets."""
        if not self._slots:
            return []
        present = {name: index for index, name in socket.if_nameindex()}
        changes = []
        for name, before in self._ifindexes.items():
            ifindex = present.get(name)
            why = unusable(name, ifindex)
            now = None if why else ifindex
            if now == before:
                continue
            try:
                # The kernel empties the slot of an interface that is gone, but not of one that has another name now.
                self._data_plane.set_link(self._slots[name], now)
            except HostError as error:  # it may have gone again: the next look tells
                changes.append(f"interface {name}: {error}")
                continue
            self._note(name, now, why)
            state = f"{why}: packets go on as missing_interface says" if why else "can have them again"
            changes.append(f"interface {name}, to which packets are redirected, {state}")
        return changes

    def _note(self, name: str, ifindex: int | None, why: str) -> None:
        self._ifindexes[name] = ifindex
        others = {other: reason for other, reason in self._troubles.items() if other != name}
        # Always replaced: other threads read it.
        self._troubles = {**others, name: why} if why else others

    def _row(self, number: int, target: Target, *, may_miss: bool) -> NDArray[np.void]:
        row = np.zeros(1, dtype=TARGET)
        row["action"] = Action[target.action.upper()]
        match target.action:
            case "redirect":
                row["argument"] = self._link(number, target.interface, may_miss=may_miss)
            case "set_dscp":
                row["argument"] = target.dscp
            case "cpu":
                self._prepare_cpu(target.cpu, may_miss=may_miss)
                row["argument"] = target.cpu
            case "police":
                by_bytes = bool(target.bytes_per_second)
                rate = target.bytes_per_second or target.packets_per_second
                row["argument"] = by_bytes
                row["cost"], row["burst"] = police_rate(rate, target.burst, by_bytes=by_bytes)
        if target.require is not None:
            _write_require(row, target.require)
        return row

    def _prepare_cpu(self, cpu: int, *, may_miss: bool) -> None:
        try:
            self._data_plane.set_cpu(cpu)
        except HostError as error:
            if not may_miss:
                raise
            log.warning("%s", error)

    def _link(self, number: int, name: str, *, may_miss: bool) -> int:
        """Give the slot of an interface. HostError: it is not there, or takes no redirected frames."""
        if name in self._slots:
            self._used[number] = name
            return self._slots[name]
        if not self._free:
            raise HostError("packets can be redirected to 256 interfaces at most")
        ifindex = {each: index for index, each in socket.if_nameindex()}.get(name)
        why = unusable(name, ifindex)
        if why and not may_miss:
            raise HostError(f"packets cannot be redirected: interface {name} {why}")
        slot = self._slots[name] = self._free.pop()
        self._used[number] = name
        self._note(name, None if why else ifindex, why)
        if not why:
            self._data_plane.set_link(slot, ifindex)
        return slot


def unusable(name: str, ifindex: int | None) -> str:
    """Say why frames cannot be redirected to an interface; empty when they can. ifindex: None when it is not there."""
    if ifindex is None:
        return "is not there"
    if not is_up(name):
        return "is down"
    if accepts_redirects(ifindex) is False:
        return (
            "takes no frames from XDP programs of others (for a veth: attach an XDP program to its peer, or switch GRO "
            "of the peer on)"
        )
    return ""


def _write_require(row: NDArray[np.void], require: Require) -> None:
    """Write what packets with the target's mark must match at least."""
    key = np.zeros(1, dtype=FLOW_KEY)
    anything = Anything.SPORT
    bits = ADDRESS_BITS[require.family or 4]
    for end, name in enumerate(("src", "dst")):
        network = getattr(require, name)
        if network is not None:
            key[name] = pack_address(network.network_address)
        key["wild"][0, end] = bits - (0 if network is None else network.prefixlen)
    for name, flag in (("proto", Anything.PROTO), ("dport", Anything.DPORT)):
        value = getattr(require, name)
        if value is None:
            anything |= flag
        else:
            key[name] = value
    key["wild"][0, 2] = anything
    row["family"], row["checked"] = require.family, 1
    row["require"] = match_patterns(key, np.array([require.family or 4], dtype=np.uint32))
