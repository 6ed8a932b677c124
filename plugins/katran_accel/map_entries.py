# SPDX-License-Identifier: Apache-2.0
"""Many entries of a map at once: all are written, or the key that the kernel refuses is named."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.errors import HostError
from nfcore.kernel import Map


def write_entries(map_: Map, keys: NDArray[Any], values: NDArray[Any]) -> None:
    """Set keys. HostError when the kernel refuses one."""
    result = map_.update_batch(keys, values)
    if result.errno:
        raise HostError(f"cannot set key {keys[result.done]} of map {map_.spec.name}: {os.strerror(result.errno)}")


def holds_entries(map_: Map, keys: NDArray[Any], values: NDArray[Any]) -> bool:
    """Whether a map has these entries and no others."""
    present = dict(zip(*([each.tobytes() for each in column] for column in map_.lookup_all()), strict=True))
    return present == {key.tobytes(): value.tobytes() for key, value in zip(keys, values, strict=True)}


def replace_entries(map_: Map, keys: NDArray[Any], values: NDArray[Any]) -> None:
    """Let a map have these entries and no others. HostError when the kernel refuses one."""
    write_entries(map_, keys, values)
    present, _ = map_.lookup_all()
    map_.delete_batch(present[~np.isin(_rows(present), _rows(keys))])


def _rows(keys: NDArray[Any]) -> NDArray[np.void]:
    """The keys as opaque bytes, which numpy can sort."""
    return np.ascontiguousarray(keys).view(np.dtype((np.void, keys.dtype.itemsize))).reshape(len(keys))
