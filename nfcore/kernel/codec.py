# SPDX-License-Identifier: Apache-2.0
"""Converts keys and values between numpy arrays and the bytes that bpf(2) reads and writes.

Values of a plain map lie one after the other. A per-CPU map has one value per possible CPU, each rounded up to 8
bytes::

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
    """Round ``size`` up to the next multiple."""
    return -(-size // multiple) * multiple


def address(array: NDArray[Any]) -> int:
    """Address of the array's memory; the caller must keep the array alive."""
    return int(array.ctypes.data)


def encode(data: object, dtype: np.dtype[Any] | None, count: int | None, what: str) -> NDArray[Any]:
    """``data`` as a contiguous array of ``dtype``: shape ``(count,)``, or the shape of ``data`` if count is None.

    Takes what numpy can convert to the dtype, and bytes of the right length. Structured data must have exactly this
    dtype, since numpy would match other fields by position. Raises TypeError with `what` in the message.
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
    # Zeros first: numpy does not write padding, and padding is part of a hash key.
    source: NDArray[Any] = np.asarray(data, dtype)
    shape = source.shape if count is None else (count,)
    encoded = np.zeros(shape, dtype)
    encoded[...] = source
    return encoded


class ValueLayout:
    """Layout of a map's values in the buffers of bpf(2)."""

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

        A per-CPU map takes shape ``(count, possible CPUs)``; ``(count,)`` or one value sets all CPUs alike; for one
        key ``(possible CPUs,)`` is allowed, too.
        """
        spec = self._spec
        what = f"values of {spec.name}"
        if not self.cpus:
            encoded = encode(_descriptors(spec, values), spec.value, None, what)
            if encoded.shape == (count,):
                return encoded
            # One value for all keys.
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
    """The descriptors of the given maps, programs or events, if the map holds such; other values as they are."""
    if spec.type not in HOLDERS:
        return values
    if hasattr(values, "fd"):
        return values.fd
    if isinstance(values, list | tuple):
        return [getattr(value, "fd", value) for value in values]
    return values
