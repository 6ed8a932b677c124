# SPDX-License-Identifier: Apache-2.0
"""Calls a driver's classifier by ioctl. :data:`Ioctl` is the only interface between the backend and a NIC."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from . import layouts

Ioctl = Callable[[NDArray[np.uint8]], None]
"""Passes a buffer, whose first u32 is the command, to the driver, which writes its reply into it. OSError."""

_NAME_BY_INDEX = struct.Struct("=16si20x")
"""`struct ifreq` with an interface's index."""
_DATA_BY_NAME = struct.Struct("=16sQ16x")
"""`struct ifreq` with a pointer."""
_SLACK = 64
"""Spare locations in a request: other programs may add rules after they were counted."""
NO_RULE = (errno.ENOENT, errno.EINVAL, errno.ESRCH)
"""Errors by which drivers report that a location has no rule; they differ."""


class EthtoolSocket:
    """The real :data:`Ioctl`: SIOCETHTOOL on one interface, also after it was renamed."""

    def __init__(self, ifindex: int) -> None:
        self._ifindex = ifindex
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def __call__(self, buffer: NDArray[np.uint8]) -> None:
        """Call the driver. OSError."""
        # By the socket, not by if_indextoname(): the socket stays in its network namespace.
        named = fcntl.ioctl(self._socket, layouts.SIOCGIFNAME, _NAME_BY_INDEX.pack(b"", self._ifindex))
        fcntl.ioctl(self._socket, layouts.SIOCETHTOOL, _DATA_BY_NAME.pack(named[:16], buffer.ctypes.data))

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class Table:
    """The NIC's table of rules."""

    size: int | None
    """Number of locations; None when the driver does not report it."""
    driver_chooses: bool
    """Whether the driver can choose the location of a new rule."""
    used: set[int]
    """Locations that have a rule of any program."""


class Nic:
    """The calls to one NIC's classifier. All raise OSError with the driver's errno."""

    def __init__(self, ioctl: Ioctl) -> None:
        self._ioctl = ioctl

    def queues(self) -> int:
        """The number of receive queues."""
        try:
            return int(self._call(layouts.RXNFC, layouts.ETHTOOL_GRXRINGS)["data"])
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
        channels = self._call(layouts.CHANNELS, layouts.ETHTOOL_GCHANNELS)
        return int(channels["rx_count"]) + int(channels["combined_count"])

    def ntuple_is_on(self) -> bool:
        """Whether the feature `ntuple-filters` is on. Some drivers take rules without this feature."""
        return bool(int(self._call(layouts.VALUE, layouts.ETHTOOL_GFLAGS)["data"]) & layouts.ETH_FLAG_NTUPLE)

    def rss_queues(self) -> frozenset[int] | None:
        """Queues over which RSS spreads packets without a rule; None when the driver has no such table."""
        try:
            size = int(self._call(layouts.RXFH_INDIR, layouts.ETHTOOL_GRXFHINDIR)["size"])
            if not size:
                return None
            buffer = _request(layouts.RXFH_INDIR, layouts.ETHTOOL_GRXFHINDIR, 4 * size)
            buffer[: layouts.RXFH_INDIR.itemsize].view(layouts.RXFH_INDIR)["size"] = size
            self._ioctl(buffer)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return None
            raise
        return frozenset(buffer[layouts.RXFH_INDIR.itemsize :].view(np.uint32).tolist())

    def table(self) -> Table:
        """Read the size of the table and the locations that have rules."""
        counted = self._call(layouts.RXNFC, layouts.ETHTOOL_GRXCLSRLCNT)
        flags = int(counted["data"])
        room = int(counted["rule_cnt"]) + _SLACK
        while True:
            buffer = _request(layouts.RXNFC, layouts.ETHTOOL_GRXCLSRLALL, 4 * room)
            head = buffer[: layouts.RXNFC.itemsize].view(layouts.RXNFC)
            head["rule_cnt"] = room
            try:
                self._ioctl(buffer)
                break
            except OSError as error:
                if error.errno != errno.EMSGSIZE or room > 1 << 22:
                    raise
                room *= 2
        count = min(int(head["rule_cnt"][0]), room)
        used = buffer[layouts.RULE_LOCS_AT :][: 4 * count].view(np.uint32).tolist()
        size = flags & ~layouts.RX_CLS_LOC_SPECIAL or int(head["data"][0]) & 0x7FFF_FFFF
        return Table(size or None, bool(flags & layouts.RX_CLS_LOC_SPECIAL), set(used))

    def read(self, locations: Sequence[int]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Read the rules at locations: rows of :data:`layouts.FLOW_SPEC`, and which locations have a rule."""
        specs = np.zeros(len(locations), dtype=layouts.FLOW_SPEC)
        found = np.ones(len(locations), dtype=bool)
        raw = specs.view(np.uint8).reshape(len(locations), layouts.FLOW_SPEC.itemsize)
        buffer = np.zeros(layouts.RXNFC.itemsize, dtype=np.uint8)
        request = buffer.view(layouts.RXNFC)
        reply = request["fs"].view(np.uint8)
        for number, location in enumerate(locations):
            buffer[:] = 0
            request["cmd"], request["fs"]["location"] = layouts.ETHTOOL_GRXCLSRULE, location
            try:
                self._ioctl(buffer)
            except OSError as error:
                if error.errno not in NO_RULE:
                    raise
                found[number] = False
                continue
            raw[number] = reply
        return specs, found

    def insert(self, spec: np.void) -> int:
        """Write a rule to its location, over any rule there; return the location that it got."""
        buffer = _request(layouts.RXNFC, layouts.ETHTOOL_SRXCLSRLINS)
        request = buffer.view(layouts.RXNFC)
        request["fs"][0] = spec
        self._ioctl(buffer)
        return int(request["fs"]["location"][0])

    def delete(self, location: int) -> None:
        """Remove the rule at a location."""
        buffer = _request(layouts.RXNFC, layouts.ETHTOOL_SRXCLSRLDEL)
        buffer.view(layouts.RXNFC)["fs"]["location"] = location
        self._ioctl(buffer)

    def _call(self, kind: np.dtype[np.void], command: int) -> np.void:
        buffer = _request(kind, command)
        self._ioctl(buffer)
        reply: np.void = buffer.view(kind)[0]
        return reply


def _request(kind: np.dtype[np.void], command: int, room: int = 0) -> NDArray[np.uint8]:
    """A request of a struct, with `room` bytes behind it for an array."""
    buffer = np.zeros(kind.itemsize + room, dtype=np.uint8)
    buffer[:4].view(np.uint32)[0] = command
    return buffer
