# SPDX-License-Identifier: Apache-2.0
"""Reads pinned maps as a tool of others does: by system calls and the published sizes, with nothing of the plugin."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nfcore.kernel.syscall import Command, bpf

HASH, ARRAY, PERF_EVENT_ARRAY, PERCPU_ARRAY, LRU_HASH, LPM_TRIE, ARRAY_OF_MAPS = 1, 2, 4, 6, 9, 11, 12
CPUS = Path("/sys/devices/system/cpu/possible")


def possible_cpus() -> int:
    """Values of a per-CPU map: the CPUs from 0 to the last one."""
    return int(CPUS.read_text(encoding="ascii").strip().rpartition("-")[2].rpartition(",")[2]) + 1


@dataclass
class ForeignMap:
    """A map by its descriptor."""

    fd: int
    kind: int
    key_size: int
    value_size: int
    entries: int

    @classmethod
    def pinned(cls, path: Path) -> ForeignMap:
        """Open a pin."""
        name = ctypes.create_string_buffer(os.fsencode(path))
        return cls.of(bpf(Command.OBJ_GET, bytearray(struct.pack("=QII", ctypes.addressof(name), 0, 0))))

    @classmethod
    def of(cls, fd: int) -> ForeignMap:
        """Ask the kernel for its type and sizes."""
        info = ctypes.create_string_buffer(80)
        bpf(Command.OBJ_GET_INFO_BY_FD, bytearray(struct.pack("=IIQ", fd, len(info), ctypes.addressof(info))))
        kind, _, *sizes = struct.unpack_from("=5I", info)
        return cls(fd, kind, *sizes)

    def __getitem__(self, key: int | bytes) -> bytes:
        """The value of a key; of a per-CPU map those of all CPUs, each in whole words of 8 bytes."""
        raw = key.to_bytes(4, "little") if isinstance(key, int) else key
        size = -(-self.value_size // 8) * 8 * possible_cpus() if self.kind == PERCPU_ARRAY else self.value_size
        given, value = ctypes.create_string_buffer(raw, len(raw)), ctypes.create_string_buffer(size)
        self._element(Command.MAP_LOOKUP_ELEM, given, value)
        return value.raw

    def __iter__(self) -> Iterator[bytes]:
        """All keys."""
        before = None
        following = ctypes.create_string_buffer(self.key_size)
        while True:
            try:
                self._element(Command.MAP_GET_NEXT_KEY, before, following)
            except FileNotFoundError:
                return
            yield following.raw
            before = ctypes.create_string_buffer(following.raw, self.key_size)

    def inner(self, key: int | bytes) -> ForeignMap:
        """A map in this one."""
        (number,) = struct.unpack("=I", self[key])
        return self.of(bpf(Command.MAP_GET_FD_BY_ID, bytearray(struct.pack("=III", number, 0, 0))))

    def sums(self, key: int) -> list[int]:
        """The two counters of a `struct lb_stats`, of all CPUs together."""
        raw = self[key]
        words = struct.unpack(f"={len(raw) // 8}Q", raw)
        return [sum(words[0::2]), sum(words[1::2])]

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def _element(
        self, command: Command, key: ctypes.Array[ctypes.c_char] | None, value: ctypes.Array[ctypes.c_char]
    ) -> None:
        where = 0 if key is None else ctypes.addressof(key)
        bpf(command, bytearray(struct.pack("=IIQQQ", self.fd, 0, where, ctypes.addressof(value), 0)))
