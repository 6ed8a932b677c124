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
    """Let a map have these entries and no others. Writes what differs. HostError when the kernel refuses one."""
    present, old = map_.lookup_all()
    there, wanted = _rows(present), _rows(keys)
    differing = np.ones(len(wanted), dtype=bool)
    if len(there):
        order = np.argsort(there)
        places = order[np.minimum(np.searchsorted(there, wanted, sorter=order), len(there) - 1)]
        differing = (there[places] != wanted) | (_rows(old)[places] != _rows(values))
    write_entries(map_, keys[differing], values[differing])
    delete_entries(map_, present[~np.isin(there, wanted)])


def delete_entries(map_: Map, keys: NDArray[Any]) -> int:
    """Remove keys; returns how many were there. HostError when the kernel refuses one."""
    result = map_.delete_batch(keys)
    if result.errno:
        raise HostError(f"cannot delete a key of map {map_.spec.name}: {os.strerror(result.errno)}")
    return result.done


def _rows(keys: NDArray[Any]) -> NDArray[np.void]:
    """The keys as opaque bytes, which numpy can sort."""
    return np.ascontiguousarray(keys).view(np.dtype((np.void, keys.dtype.itemsize))).reshape(len(keys))
