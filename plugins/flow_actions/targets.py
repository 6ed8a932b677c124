# SPDX-License-Identifier: Apache-2.0
"""Targets in the data plane: actions as rows of `flow_targets`, and the interfaces and CPUs that packets may go to."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import FLOW_KEY, Anything, pack_address
from nfcore.errors import HostError
from nfcore.kernel.netlink import accepts_redirects

from .data_plane import DataPlane
from .entries import BITS, Require, Target
from .layouts import TARGET, Action, match_patterns, police_rate

log = logging.getLogger(__name__)


class Targets:
    """Writes targets, and keeps the interfaces of redirects: one that vanishes and comes back is used again."""

    def __init__(self, data_plane: DataPlane, links: int) -> None:
        self._data_plane = data_plane
        self._slots: dict[str, int] = {}
        """Name of an interface → its slot in `flow_links`."""
        self._ifindexes: dict[str, int | None] = {}
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
                if self._ifindexes.pop(name) is not None:
                    self._data_plane.set_link(slot, None)
                self._free.append(slot)

    def missing(self) -> list[str]:
        """Give the interfaces that packets should go to and that are not there."""
        return [name for name, ifindex in self._ifindexes.items() if ifindex is None]

    def follow_links(self) -> list[str]:
        """Look at the interfaces again: sentences about those that have gone or come back."""
        if not self._slots:
            return []
        present = {name: index for index, name in socket.if_nameindex()}
        changes = []
        for name, before in self._ifindexes.items():
            now = present.get(name)
            if now == before:
                continue
            try:
                # The kernel empties the slot of an interface that is gone, but not of one that has another name now.
                self._data_plane.set_link(self._slots[name], now)
            except HostError as error:  # it may have gone again: the next look tells
                changes.append(f"interface {name}: {error}")
                continue
            self._ifindexes[name] = now
            state = "is gone: packets go on as missing_interface says" if now is None else "is there again"
            changes.append(f"interface {name}, to which packets are redirected, {state}")
        return changes

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
        if ifindex is None and not may_miss:
            raise HostError(f"there is no interface {name!r} in this network namespace")
        if ifindex is not None and not may_miss and accepts_redirects(ifindex) is False:
            advice = "for a veth: attach an XDP program to its peer, or switch GRO of the peer on"
            raise HostError(f"interface {name} takes no frames from XDP programs of others ({advice})")
        slot = self._slots[name] = self._free.pop()
        self._used[number], self._ifindexes[name] = name, ifindex
        if ifindex is not None:
            self._data_plane.set_link(slot, ifindex)
        return slot


def _write_require(row: NDArray[np.void], require: Require) -> None:
    """Write what packets with the target's mark must match at least."""
    key = np.zeros(1, dtype=FLOW_KEY)
    anything = Anything.SPORT
    bits = BITS[require.family or 4]
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
