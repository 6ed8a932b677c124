# SPDX-License-Identifier: Apache-2.0
"""Describes a map without the kernel: type, key, value, size and flags."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np

NAME_LENGTH = 15
"""Characters that the kernel keeps of the name of a map or program (BPF_OBJ_NAME_LEN without the zero)."""


class MapType(IntEnum):
    """``enum bpf_map_type`` of ``include/uapi/linux/bpf.h``: the types that an XDP program can use."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    CPUMAP = 16
    XSKMAP = 17
    QUEUE = 22
    DEVMAP_HASH = 25
    RINGBUF = 27


class MapFlags(IntFlag):
    """Flags of map creation (``BPF_F_...``)."""

    NO_PREALLOC = 1 << 0
    NO_COMMON_LRU = 1 << 1
    NUMA_NODE = 1 << 2
    RDONLY = 1 << 3
    WRONLY = 1 << 4
    ZERO_SEED = 1 << 6
    RDONLY_PROG = 1 << 7
    WRONLY_PROG = 1 << 8
    MMAPABLE = 1 << 10
    PRESERVE_ELEMS = 1 << 11
    INNER_MAP = 1 << 12


class UpdateFlags(IntFlag):
    """What :meth:`Map.update` may do: add or change, only add, only change."""

    ANY = 0
    NOEXIST = 1
    EXIST = 2


PER_CPU = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})
"""Types that keep a value per possible CPU."""
ARRAYS = frozenset({MapType.ARRAY, MapType.PERCPU_ARRAY})
"""Types whose keys are always 0 … max_entries - 1, all present."""
OUTER = frozenset({MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS})
"""Types whose values are maps."""
HOLDERS = OUTER | {MapType.PROG_ARRAY, MapType.PERF_EVENT_ARRAY}
"""Types to which user space writes the descriptor of an object."""


@dataclass(frozen=True)
class MapSpec:
    """A map as a program expects it. Equal specs describe interchangeable maps.

    Keys and values are numpy dtypes whose ``itemsize`` is the kernel's key or value size; structured ones have the
    fields and byte order of the C struct. Padding between fields is part of a hash key, so name it and keep it zero.
    ``None`` means size 0 (ring buffers, keys of queues). Values of maps that hold maps, programs or perf events are
    ``np.uint32``.
    """

    name: str
    type: MapType
    key: np.dtype[Any] | None
    value: np.dtype[Any] | None
    max_entries: int
    """Elements; for a ring buffer its size in bytes (a power of two and a multiple of the page size)."""
    flags: int = 0
    inner: MapSpec | None = None
    """For maps of maps: the spec of the inner maps. Their max_entries may differ from it."""
    numa_node: int | None = None
    """NUMA node for the memory; None: the kernel chooses."""

    def __post_init__(self) -> None:
        # As everywhere in numpy, callers may write np.uint32 for a dtype.
        for field in ("key", "value"):
            given = getattr(self, field)
            dtype = None if given is None else np.dtype(given)
            if dtype is not None and dtype.subdtype is not None:
                raise ValueError(f"map {self.name}: {field} is an array dtype; wrap it in a structured one")
            object.__setattr__(self, field, dtype if dtype is not None and dtype.itemsize else None)
        if not re.fullmatch(r"[A-Za-z0-9_.]+", self.name):
            raise ValueError(f"map name {self.name!r}: the kernel takes letters, digits, '_' and '.'")
        if (self.type in OUTER) != (self.inner is not None):
            raise ValueError(f"map {self.name}: inner must be given for maps of maps and for no others")

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return 0 if self.key is None else self.key.itemsize

    @property
    def value_size(self) -> int:
        """Bytes of a value; of a per-CPU map, of one CPU's value."""
        return 0 if self.value is None else self.value.itemsize

    @property
    def kernel_name(self) -> str:
        """The name as the kernel has it, cut to 15 characters."""
        return self.name[:NAME_LENGTH]

    @property
    def creation_flags(self) -> int:
        """``flags``, with NUMA_NODE if ``numa_node`` is given."""
        return self.flags | (MapFlags.NUMA_NODE if self.numa_node is not None else 0)

    @property
    def is_per_cpu(self) -> bool:
        """Whether there is a value per possible CPU."""
        return self.type in PER_CPU

    @property
    def is_array(self) -> bool:
        """Whether keys are the u32 indices of an array."""
        return self.type in ARRAYS

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.type.name}, {self.key_size}-byte keys, {self.value_size}-byte values, "
            f"{self.max_entries} entries)"
        )
