# SPDX-License-Identifier: Apache-2.0
"""Keys and values between numpy and the bytes that bpf(2) reads and writes.

A plain map's values lie one after the other. A per-CPU map's are rounded up to 8 bytes each, one per
possible CPU::

    plain      │ value 0 │ value 1 │ ...
    per-CPU    │ key 0: cpu 0 │pad│ cpu 1 │pad│ ... │ key 1: cpu 0 │pad│ ...
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cpus import possible_cpus
from .mapspec import HOLDERS, MapSpec


def round_up(size: int, multiple: int = 8) -> int:
    """The smallest multiple that holds ``size``."""
    return -(-size // multiple) * multiple


def address(array: NDArray[Any]) -> int:
    """Where the array's memory begins; the caller keeps the array alive."""
    return int(array.ctypes.data)


def encode(data: object, dtype: np.dtype[Any] | None, count: int | None, what: str) -> NDArray[Any]:
    """``data`` as a contiguous array of ``dtype``: shape ``(count,)``, ``(n,)`` as given if count is None.

    Takes what numpy can turn into the dtype, and bytes of exactly the right length. Structured data
    must have the very dtype, since numpy would match other fields by position. Raises TypeError.
    """
    if dtype is None:
        return np.zeros(0, np.uint8)
    if isinstance(data, bytes | bytearray | memoryview):
        size = len(data)
        if size % dtype.itemsize or (count is not None and size != count * dtype.itemsize):
            raise TypeError(f"{what}: {size} bytes given, elements have {dtype.itemsize}")
        return np.frombuffer(bytes(data), dtype)
    given = getattr(data, "dtype", None)
    if dtype.names is not None and given is not None and given != dtype:
        raise TypeError(f"{what}: dtype {given} given, {dtype} expected")
    if isinstance(data, np.ndarray) and count is None and given == dtype:
        return np.ascontiguousarray(data)
    # Zeros first: whatever numpy does not write (padding) must not be a hash key's random part.
    source: NDArray[Any] = np.asarray(data, dtype)
    shape = source.shape if count is None else (count,)
    encoded = np.zeros(shape, dtype)
    encoded[...] = source
    return encoded


class ValueLayout:
    """How the values of one map lie in the buffers of bpf(2)."""

    def __init__(self, spec: MapSpec) -> None:
        self._spec = spec
        self.cpus = possible_cpus() if spec.is_per_cpu else 0
        self.stride = round_up(spec.value_size) * self.cpus if spec.is_per_cpu else spec.value_size
        """Bytes per key."""

    def empty(self, count: int) -> NDArray[np.uint8]:
        """A buffer for the values of ``count`` keys."""
        return np.zeros(count * self.stride, np.uint8)

    def decode(self, buffer: NDArray[np.uint8], count: int) -> NDArray[Any]:
        """The first ``count`` keys' values: shape ``(count,)`` or ``(count, possible CPUs)``; a view."""
        dtype = self._spec.value if self._spec.value is not None else np.dtype([])
        shape: tuple[int, ...] = (count, self.cpus) if self.cpus else (count,)
        strides = (self.stride, round_up(dtype.itemsize)) if self.cpus else (self.stride,)
        return np.ndarray(shape, dtype, buffer=buffer, strides=strides)

    def encode(self, values: object, count: int) -> NDArray[Any]:
        """The values of ``count`` keys as the kernel reads them.

        A per-CPU map takes shape ``(count, possible CPUs)``; ``(count,)`` or one value stands for all
        CPUs alike, and ``(possible CPUs,)`` is fine for one key.
        """
        spec = self._spec
        what = f"values of {spec.name}"
        if not self.cpus:
            encoded = encode(_descriptors(spec, values), spec.value, None, what)
            if encoded.shape == (count,):
                return encoded
            # A whole structured element, as opposed to a wrong number of them.
            if encoded.shape == ():
                return np.ascontiguousarray(np.broadcast_to(encoded, (count,)))
            raise TypeError(f"{what}: shape {encoded.shape} given, ({count},) expected")
        source = encode(values, spec.value, None, what)
        if source.ndim == 1:
            source = source[None, :] if count == 1 and len(source) == self.cpus else source[:, None]
        buffer = self.empty(count)
        self.decode(buffer, count)[...] = source
        return buffer


def _descriptors(spec: MapSpec, values: object) -> object:
    """What a map of objects is written with: the descriptors of maps, programs or numbers given."""
    if spec.type not in HOLDERS:
        return values
    if hasattr(values, "fd"):
        return values.fd
    if isinstance(values, list | tuple):
        return [getattr(value, "fd", value) for value in values]
    return values
