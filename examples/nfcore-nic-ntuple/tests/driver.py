# SPDX-License-Identifier: Apache-2.0
"""A simulated driver with its NIC: reads the ioctl's buffers byte by byte and steers frames by its rules.

Written from <linux/ethtool.h> and the behaviour of drivers, without the encoder that it is to check.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

GFLAGS, GRXRINGS, RLCNT, RULE, RLALL, DEL, INS, INDIR = 0x25, 0x2D, 0x2E, 0x2F, 0x30, 0x31, 0x32, 0x38
ANY, SPECIAL = 0xFFFFFFFF, 0x80000000
DISCARD = 0xFFFFFFFFFFFFFFFF
# Offsets in struct ethtool_rxnfc.
DATA, FLOW_TYPE, VALUES, VALUES_EXT, MASKS, MASKS_EXT, RING, LOCATION, RULE_CNT, RULE_LOCS = (
    *(8, 16, 20, 72, 92, 144, 168, 176, 184, 188),
)
END = 192
TCP4, UDP4, TCP6, UDP6 = 1, 2, 5, 6
PROTOCOLS = {TCP4: (4, 6), UDP4: (4, 17), TCP6: (6, 6), UDP6: (6, 17)}
ADDRESS = {4: 4, 6: 16}


class Killed(BaseException):
    """Simulates that the process is killed here."""


@dataclass
class Entry:
    """A rule as the hardware has it."""

    flow_type: int
    values: bytes
    masks: bytes
    ring: int

    def tuple_of(self, area: bytes) -> bytes:
        family, _ = PROTOCOLS[self.flow_type]
        return area[: 2 * ADDRESS[family] + 4]

    def same_match(self, other: Entry) -> bool:
        return (self.flow_type, self.values, self.masks) == (other.flow_type, other.values, other.masks)

    def matches(self, family: int, protocol: int, packet: bytes) -> bool:
        """`packet`: addresses and ports, as on the wire."""
        if PROTOCOLS[self.flow_type] != (family, protocol):
            return False
        values, masks = self.tuple_of(self.values), self.tuple_of(self.masks)
        return all(p & m == v & m for p, v, m in zip(packet, values, masks, strict=True))


@dataclass
class Driver:
    """One NIC. Change its fields to change the NIC."""

    queues: int = 16
    size: int = 64
    chooses: bool = False
    """Whether the driver chooses locations: it then takes only RX_CLS_LOC_ANY."""
    tells_size: str = "count"
    """Which command reports the table's size: "count", "all" (as mlx5) or "" for none."""
    ntuple: bool = True
    rss: list[int] | None = field(default_factory=lambda: [0] * 128)
    refused: dict[int, int] = field(default_factory=dict)
    """Flow type → errno with which its rules are refused."""
    drops: bool = True
    gone: int = 0
    """errno of every call; 0: the device exists."""
    adds_flags: int = 0
    """Flags that the driver adds to flow types when a rule is read."""
    stuck: int = 0
    """errno of every removal; 0: rules can be removed."""
    uncounted: int = 0
    """Rules that another program adds right after the rules were counted."""
    dies_on: tuple[int, str] | None = None
    """A command at which the process is killed, "before" or "after" its execution."""
    rules: dict[int, Entry] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)

    # The ioctl

    def __call__(self, buffer: NDArray[np.uint8]) -> None:
        """The ioctl SIOCETHTOOL."""
        raw = memoryview(buffer).cast("B")
        (command,) = struct.unpack_from("=I", raw)
        self.calls.append(command)
        if self.gone:
            refuse(self.gone)
        if self.dies_on == (command, "before"):
            raise Killed
        handler = {
            GFLAGS: self._flags,
            GRXRINGS: self._rings,
            INDIR: self._indirection,
            RLCNT: self._count,
            RLALL: self._all,
            RULE: self._rule,
            INS: self._insert,
            DEL: self._delete,
        }.get(command)
        if handler is None:
            refuse(errno.EOPNOTSUPP)
        if command not in (GFLAGS, INDIR):
            assert len(raw) >= END, "the kernel reads the whole struct ethtool_rxnfc"
        handler(raw)
        if self.dies_on == (command, "after"):
            raise Killed

    def _flags(self, raw: memoryview) -> None:
        struct.pack_into("=I", raw, 4, 1 << 27 if self.ntuple else 0)

    def _rings(self, raw: memoryview) -> None:
        struct.pack_into("=Q", raw, DATA, self.queues)

    def _indirection(self, raw: memoryview) -> None:
        if self.rss is None:
            refuse(errno.EOPNOTSUPP)
        (size,) = struct.unpack_from("=I", raw, 4)
        if size not in (0, len(self.rss)):
            refuse(errno.EINVAL)
        struct.pack_into("=I", raw, 4, len(self.rss))
        struct.pack_into(f"={size}I", raw, 8, *self.rss[:size])

    def _count(self, raw: memoryview) -> None:
        struct.pack_into("=I", raw, RULE_CNT, len(self.rules) - self.uncounted)
        size = self.size if self.tells_size == "count" else 0
        struct.pack_into("=Q", raw, DATA, size | (SPECIAL if self.chooses else 0))

    def _all(self, raw: memoryview) -> None:
        (room,) = struct.unpack_from("=I", raw, RULE_CNT)
        assert len(raw) >= RULE_LOCS + 4 * room, "the kernel writes as many locations as the request has room for"
        if room < len(self.rules):
            refuse(errno.EMSGSIZE)
        struct.pack_into("=Q", raw, DATA, self.size if self.tells_size else 0)
        struct.pack_into("=I", raw, RULE_CNT, len(self.rules))
        struct.pack_into(f"={len(self.rules)}I", raw, RULE_LOCS, *sorted(self.rules))

    def _rule(self, raw: memoryview) -> None:
        (location,) = struct.unpack_from("=I", raw, LOCATION)
        entry = self.rules.get(location) or refuse(errno.ENOENT if location < self.size else errno.EINVAL)
        struct.pack_into("=I", raw, FLOW_TYPE, entry.flow_type | self.adds_flags)
        raw[VALUES:VALUES_EXT], raw[MASKS:MASKS_EXT] = entry.values, entry.masks
        struct.pack_into("=QI", raw, RING, entry.ring, location)

    def _insert(self, raw: memoryview) -> None:
        (flow_type,) = struct.unpack_from("=I", raw, FLOW_TYPE)
        ring, location = struct.unpack_from("=QI", raw, RING)
        if not self.ntuple or flow_type not in PROTOCOLS:
            refuse(errno.EOPNOTSUPP)
        if flow_type in self.refused:
            refuse(self.refused[flow_type])
        if ring == DISCARD and not self.drops:
            refuse(errno.EOPNOTSUPP)
        if ring != DISCARD and ring >= self.queues:
            refuse(errno.EINVAL)
        entry = Entry(flow_type, bytes(raw[VALUES:VALUES_EXT]), bytes(raw[MASKS:MASKS_EXT]), ring)
        used = 2 * ADDRESS[PROTOCOLS[flow_type][0]] + 4
        assert not any(entry.values[used:] + entry.masks[used:]), "nothing but the 5-tuple is matched"
        self.put(self._locate(location), entry)
        struct.pack_into("=I", raw, LOCATION, self._last)

    def _locate(self, location: int) -> int:
        if location == ANY and self.chooses:
            free = [number for number in range(self.size) if number not in self.rules]
            return free[0] if free else refuse(errno.ENOSPC)
        if self.chooses or location >= self.size:
            refuse(errno.EINVAL)
        return location

    def put(self, location: int, entry: Entry) -> None:
        """Write a rule to a location, over any rule there."""
        # Tests write to `rules` directly, so `_locations` may be outdated: compare with the rule itself.
        known = self._locations.get((entry.flow_type, entry.values, entry.masks), location)
        other = self.rules.get(known)
        if known != location and other is not None and other.same_match(entry):
            refuse(errno.EEXIST)
        self._locations[entry.flow_type, entry.values, entry.masks] = location
        self.rules[location], self._last = entry, location

    _last = 0
    _locations: dict[tuple[int, bytes, bytes], int] = field(default_factory=dict)

    def _delete(self, raw: memoryview) -> None:
        (location,) = struct.unpack_from("=I", raw, LOCATION)
        if self.stuck:
            refuse(self.stuck)
        if self.rules.pop(location, None) is None:
            refuse(errno.ENOENT)

    # The wire

    def receive(self, frame: bytes) -> int | None:
        """The queue on which a frame arrives; None: it is dropped."""
        (ethertype,) = struct.unpack_from("!H", frame, 12)
        if ethertype == 0x0800:
            family, protocol, ends = 4, frame[23], frame[26:34]
            ports = frame[14 + 4 * (frame[14] & 15) :][:4]
        else:
            family, protocol, ends, ports = 6, frame[20], frame[22:54], frame[54:58]
        for _, entry in sorted(self.rules.items()):
            if entry.matches(family, protocol, ends + ports):
                return None if entry.ring == DISCARD else entry.ring
        return self.rss[sum(ends + ports) % len(self.rss)] if self.rss else 0

    def send(self, frame: bytes, count: int) -> tuple[Mapping[int, int], int]:
        """Receive a frame `count` times; return mark → frames, and the number of dropped frames."""
        queues = [self.receive(frame) for _ in range(count)]
        arrived = [queue for queue in queues if queue is not None]
        return {queue: arrived.count(queue) for queue in set(arrived)}, queues.count(None)


def refuse(number: int) -> Any:
    raise OSError(number, os.strerror(number))


def foreign_entry(last: int = 1, ring: int = 1) -> Entry:
    """A rule of another program: TCP over IPv4 from one address, any ports."""
    values = bytes([198, 19, 255, last]).ljust(52, b"\0")
    return Entry(TCP4, values, b"\xff" * 4 + bytes(48), ring)
