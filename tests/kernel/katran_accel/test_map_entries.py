# SPDX-License-Identifier: Apache-2.0
"""Many entries at once: only what differs is written, which a map shows that takes no more writes."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from nfcore.errors import HostError
from nfcore.kernel import Map, MapFlags, MapSpec, MapType
from nfcore.kernel.syscall import Command, bpf
from nfcore.plugins.katran_accel import layouts as lay
from nfcore.plugins.katran_accel.map_entries import replace_entries

U32 = np.dtype("<u4")
SPECS = {
    "hash": MapSpec("ids", MapType.HASH, U32, U32, 1000, MapFlags.NO_PREALLOC),
    "trie": MapSpec("routes", MapType.LPM_TRIE, lay.SOURCE_KEY_V4, U32, 1000, MapFlags.NO_PREALLOC),
    "devices": MapSpec("devices", MapType.HASH, U32, lay.DEVICE, 1000),
}


class More(IntEnum):
    """A command that the daemon has no use for."""

    MAP_FREEZE = 22


def freeze(map_: Map) -> None:
    """Let the kernel refuse every write from user space."""
    bpf(cast(Command, More.MAP_FREEZE), bytearray(struct.pack("=I", map_.fd)))


def rows(spec: MapSpec, numbers: range) -> tuple[NDArray[Any], NDArray[Any]]:
    keys, values = np.zeros(len(numbers), spec.key), np.zeros(len(numbers), spec.value)
    if keys.dtype.names:
        keys["prefixlen"], keys["addr"][:, 3] = 32, numbers
    else:
        keys[:] = numbers
    values["number" if values.dtype.names else ...] = numbers
    return keys, values


@pytest.mark.parametrize("kind", SPECS)
def test_only_what_differs_is_written(kind: str) -> None:
    spec = SPECS[kind]
    with Map.create(spec) as map_:
        replace_entries(map_, *rows(spec, range(5, 50)))
        keys, values = rows(spec, range(20, 80))
        replace_entries(map_, keys, values)
        found = dict(zip(*([each.tobytes() for each in column] for column in map_.lookup_all()), strict=True))
        assert found == {key.tobytes(): value.tobytes() for key, value in zip(keys, values, strict=True)}
        freeze(map_)
        order = np.random.default_rng(1).permutation(len(keys))
        replace_entries(map_, keys[order], values[order])
        with pytest.raises(HostError, match="cannot set key"):
            replace_entries(map_, *rows(spec, range(20, 81)))
        with pytest.raises(HostError, match="cannot delete a key"):
            replace_entries(map_, *rows(spec, range(20, 79)))
        values[5] = values[6]
        with pytest.raises(HostError, match="cannot set key"):
            replace_entries(map_, keys, values)


def test_an_empty_map_and_no_entries() -> None:
    for spec in SPECS.values():
        with Map.create(spec) as map_:
            replace_entries(map_, *rows(spec, range(0)))
            replace_entries(map_, *rows(spec, range(1, 3)))
            replace_entries(map_, *rows(spec, range(0)))
            assert len(map_.lookup_all()[0]) == 0
