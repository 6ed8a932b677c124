# SPDX-License-Identifier: Apache-2.0
"""The driver's classifier by ioctl. :data:`Ioctl` is all that stands between the backend and a NIC."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from . import layouts as lay

Ioctl = Callable[[NDArray[np.uint8]], None]
"""Hands a buffer, whose first u32 is the command, to the driver, which answers in it. OSError with its errno."""

_NAME_BY_INDEX = struct.Struct("=16si20x")
"""`struct ifreq` with an interface's index."""
_DATA_BY_NAME = struct.Struct("=16sQ16x")
"""`struct ifreq` with a pointer."""
_SLACK = 64
"""Locations for which there is room beyond those that were counted: others may add rules meanwhile."""
NOT_THERE = (errno.ENOENT, errno.EINVAL, errno.ESRCH)
"""How drivers say that a location holds no rule: there is no agreement."""


class EthtoolSocket:
    """The real :data:`Ioctl`: SIOCETHTOOL on one interface, whatever it is called by then."""

    def __init__(self, ifindex: int) -> None:
        self._ifindex = ifindex
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def __call__(self, buffer: NDArray[np.uint8]) -> None:
        """Ask the driver. OSError."""
        # By the socket, not by if_indextoname(): the socket knows its network namespace.
        named = fcntl.ioctl(self._socket, lay.SIOCGIFNAME, _NAME_BY_INDEX.pack(b"", self._ifindex))
        fcntl.ioctl(self._socket, lay.SIOCETHTOOL, _DATA_BY_NAME.pack(named[:16], buffer.ctypes.data))

    def close(self) -> None:
        """Give up the socket. Idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Table:
    """The NIC's table of rules."""

    size: int | None
    """Locations, 0 to size - 1; None when the driver does not tell."""
    chooses: bool
    """Whether the driver chooses locations where it is told to."""
    used: set[int]
    """Locations that hold a rule, anybody's."""


class Nic:
    """One NIC's classifier, in calls. All raise OSError with the driver's errno."""

    def __init__(self, ioctl: Ioctl) -> None:
        self._ioctl = ioctl

    def queues(self) -> int:
        """Tell how many receive queues there are."""
        try:
            return int(self._ask(lay.RXNFC, lay.ETHTOOL_GRXRINGS)["data"])
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
        channels = self._ask(lay.CHANNELS, lay.ETHTOOL_GCHANNELS)
        return int(channels["rx_count"]) + int(channels["combined_count"])

    def ntuple_is_on(self) -> bool:
        """Whether the feature `ntuple-filters` is on. Some drivers take rules without having it."""
        return bool(int(self._ask(lay.VALUE, lay.ETHTOOL_GFLAGS)["data"]) & lay.ETH_FLAG_NTUPLE)

    def rss_queues(self) -> frozenset[int] | None:
        """Give the queues to which packets without a rule are spread; None when the driver has no such table."""
        try:
            size = int(self._ask(lay.RXFH_INDIR, lay.ETHTOOL_GRXFHINDIR)["size"])
            if not size:
                return None
            buffer = _request(lay.RXFH_INDIR, lay.ETHTOOL_GRXFHINDIR, 4 * size)
            buffer[: lay.RXFH_INDIR.itemsize].view(lay.RXFH_INDIR)["size"] = size
            self._ioctl(buffer)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return None
            raise
        return frozenset(buffer[lay.RXFH_INDIR.itemsize :].view(np.uint32).tolist())

    def table(self) -> Table:
        """Read how large the table is and which locations hold rules."""
        counted = self._ask(lay.RXNFC, lay.ETHTOOL_GRXCLSRLCNT)
        told = int(counted["data"])
        room = int(counted["rule_cnt"]) + _SLACK
        while True:
            buffer = _request(lay.RXNFC, lay.ETHTOOL_GRXCLSRLALL, 4 * room)
            head = buffer[: lay.RXNFC.itemsize].view(lay.RXNFC)
            head["rule_cnt"] = room
            try:
                self._ioctl(buffer)
                break
            except OSError as error:
                if error.errno != errno.EMSGSIZE or room > 1 << 22:
                    raise
                room *= 2
        count = min(int(head["rule_cnt"][0]), room)
        used = buffer[lay.RULE_LOCS_AT :][: 4 * count].view(np.uint32).tolist()
        size = told & ~lay.RX_CLS_LOC_SPECIAL or int(head["data"][0]) & 0x7FFF_FFFF
        return Table(size or None, bool(told & lay.RX_CLS_LOC_SPECIAL), set(used))

    def read(self, locations: Sequence[int]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Read the rules at locations, rows of :data:`layouts.FLOW_SPEC`; which of them there are."""
        specs = np.zeros(len(locations), dtype=lay.FLOW_SPEC)
        there = np.ones(len(locations), dtype=bool)
        raw = specs.view(np.uint8).reshape(len(locations), lay.FLOW_SPEC.itemsize)
        buffer = np.zeros(lay.RXNFC.itemsize, dtype=np.uint8)
        request = buffer.view(lay.RXNFC)
        answer = request["fs"].view(np.uint8)
        for number, location in enumerate(locations):
            buffer[:] = 0
            request["cmd"], request["fs"]["location"] = lay.ETHTOOL_GRXCLSRULE, location
            try:
                self._ioctl(buffer)
            except OSError as error:
                if error.errno not in NOT_THERE:
                    raise
                there[number] = False
                continue
            raw[number] = answer
        return specs, there

    def insert(self, spec: np.void) -> int:
        """Put a rule at `spec`'s location, in place of any that is there; the location that it got."""
        buffer = _request(lay.RXNFC, lay.ETHTOOL_SRXCLSRLINS)
        request = buffer.view(lay.RXNFC)
        request["fs"][0] = spec
        self._ioctl(buffer)
        return int(request["fs"]["location"][0])

    def delete(self, location: int) -> None:
        """Remove the rule at a location."""
        buffer = _request(lay.RXNFC, lay.ETHTOOL_SRXCLSRLDEL)
        buffer.view(lay.RXNFC)["fs"]["location"] = location
        self._ioctl(buffer)

    def _ask(self, kind: np.dtype[np.void], command: int) -> np.void:
        buffer = _request(kind, command)
        self._ioctl(buffer)
        answer: np.void = buffer.view(kind)[0]
        return answer


def _request(kind: np.dtype[np.void], command: int, room: int = 0) -> NDArray[np.uint8]:
    """A request of a kind with room behind it for an array."""
    buffer = np.zeros(kind.itemsize + room, dtype=np.uint8)
    buffer[:4].view(np.uint32)[0] = command
    return buffer
