# SPDX-License-Identifier: Apache-2.0
"""Maps in the kernel: create, pin, open, read and write them, in bulk with numpy.

::

    MapSpec ──create──►  Map (owns an fd)  ◄──open_pinned── /sys/fs/bpf/...
                          │ lookup, update, delete            one element
                          │ read_slice, write_array, ...      many, one system call
                          └ mmap                              none
"""

from __future__ import annotations

import errno
import mmap as memory_map
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import HostError
from ..refusals import Capability, explain
from .codec import ValueLayout, address, encode, round_up
from .mapspec import MapFlags, MapSpec, MapType
from .objects import KernelObject, open_by_id
from .pins import obj_get
from .syscall import ENOTSUPP, Command, bpf, lift_locked_memory_limit, object_info, object_kind

TO_CREATE = (Capability.BPF, Capability.NET_ADMIN)
"""Capabilities that maps take: those of interfaces also CAP_NET_ADMIN."""
_CHUNK = 65536
"""Elements of one batch call: its buffers take a few megabytes at most, whatever the size of the map."""
_NO_BATCH = frozenset({errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP})
"""Errors that mean: this map type or kernel has no batch operation."""
_MAP_INFO = struct.Struct("=IIIIII16s")
"""Head of ``struct bpf_map_info``: type, id, key_size, value_size, max_entries, map_flags, name."""


@dataclass(frozen=True)
class BatchResult:
    """Result of a batch."""

    done: int
    """Elements that were written or deleted before the kernel refused one."""
    errno: int
    """Why the kernel refused; 0 when all elements were done."""


class Map(KernelObject):
    """A map in the kernel. Owns its file descriptor; a context manager.

    Single elements: ``lookup`` gives a numpy scalar (``np.void`` for structured values) or, for per-CPU
    maps, an array with one row per possible CPU. Methods raise HostError with the map's name when the
    kernel refuses, TypeError when data does not fit the spec.
    """

    def __init__(self, fd: int, spec: MapSpec) -> None:
        """Take over ``fd``, which must be a map like ``spec``; that is not checked."""
        super().__init__(fd)
        self._spec, self._label = spec, f"map {spec.name}"
        self._layout = ValueLayout(spec)
        self._id: int | None = None

    # -- create, open, pin, close -------------------------------------------------------------------

    @classmethod
    def create(cls, spec: MapSpec) -> Self:
        """Create an empty map. Raises HostError when the kernel refuses (privileges, memory, flags)."""
        if spec.inner is None:
            return cls(_create(spec, 0), spec)
        prototype = _create(spec.inner, 0)
        try:
            return cls(_create(spec, prototype), spec)
        finally:
            os.close(prototype)

    @classmethod
    def open_pinned(cls, path: Path, spec: MapSpec) -> Self:
        """Open the map pinned at ``path``. It must agree with ``spec`` in everything but the name.

        Raises HostError naming the pin, the field, what was found and what was expected. The inner spec of a map of
        maps is not compared: the kernel does not report it.
        """
        return cls._adopt(obj_get(path), spec, f"the pin {path}")

    @classmethod
    def from_id(cls, identifier: int, spec: MapSpec) -> Self:
        """Open the map with this id; compared with ``spec`` like a pinned one. Raises HostError."""
        fd, place = open_by_id(Command.MAP_GET_FD_BY_ID, identifier, "map")
        return cls._adopt(fd, spec, place)

    @classmethod
    def _adopt(cls, fd: int, spec: MapSpec, place: str) -> Self:
        try:
            _compare(fd, spec, place)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, spec)

    @property
    def id(self) -> int:
        """The kernel's ID of the map, unique as long as the map exists."""
        if self._id is None:
            self._id = _MAP_INFO.unpack_from(object_info(self.fd, 80))[1]
        return self._id

    @property
    def spec(self) -> MapSpec:
        """Type, key, value, size and flags of the map."""
        return self._spec

    # -- one element --------------------------------------------------------------------------------

    def lookup(self, key: object) -> Any | None:
        """The value under ``key`` (a copy), or None. The value of a map of maps is the inner map's id.

        A numpy scalar or ``np.void``; for per-CPU maps an array of shape ``(possible CPUs,)``.
        """
        encoded_key = self._key(key)
        buffer = self._layout.empty(1)
        try:
            self._element(Command.MAP_LOOKUP_ELEM, encoded_key, buffer)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise self._error("look up a key in", error) from error
        return self._layout.decode(buffer, 1)[0]

    def update(self, key: object, value: object, flags: int = 0) -> None:
        """Set the value under ``key``.

        ``value`` is a Map or Program if the map holds such; one value sets all CPUs of a per-CPU map. ``flags`` is an
        UpdateFlags. Raises HostError, e.g. when the map is full.
        """
        try:
            self._element(Command.MAP_UPDATE_ELEM, self._key(key), self._layout.encode(value, 1), flags)
        except OSError as error:
            raise self._error(f"set key {key!r} of", error) from error

    def delete(self, key: object) -> bool:
        """Remove ``key``; False if it was not there."""
        try:
            self._element(Command.MAP_DELETE_ELEM, self._key(key), None)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise self._error(f"delete key {key!r} of", error) from error
        return True

    def _key(self, key: object) -> NDArray[Any]:
        return encode(key, self._spec.key, 1, f"key of {self._spec.name}")

    def _element(self, command: Command, key: NDArray[Any], value: NDArray[Any] | None, flags: int = 0) -> None:
        pointers = [0 if array is None or not array.size else address(array) for array in (key, value)]
        bpf(command, bytearray(struct.pack("=IIQQQ", self.fd, 0, *pointers, flags)))

    def _error(self, what: str, error: OSError) -> HostError:
        reason = explain(error, needs=[Capability.BPF])
        if error.errno == errno.E2BIG:
            reason = f"it is full or the key is beyond its {self._spec.max_entries} entries"
        elif error.errno == ENOTSUPP:
            reason = "its type has no such operation"
        return HostError(f"cannot {what} map {self._spec.name}: {reason}")

    # -- all elements -------------------------------------------------------------------------------

    def lookup_all(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys ``(n,)`` and values ``(n,)`` or ``(n, possible CPUs)`` of all elements.

        Not a snapshot: elements that programs add or remove meanwhile may be there or not.
        """
        if self._spec.is_array:
            keys: NDArray[Any] = np.arange(self._spec.max_entries, dtype=np.uint32)
            return keys, self.read_array()
        batches = list(self._lookup_batches())
        # Joined as bytes: numpy gives the concatenation of structured arrays the machine's byte order.
        keys = np.concatenate([np.zeros(0, np.uint8), *(raw for raw, _ in batches)])
        return self._elements(keys, np.concatenate([np.zeros(0, np.uint8), *(raw for _, raw in batches)]))

    def lookup_chunks(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """All elements as :meth:`lookup_all` gives them, some 65,000 at a time: a large map is never copied as a whole.

        Elements of a hash table may be deleted when their chunk was given.
        """
        if self._spec.is_array:
            yield self.lookup_all()
            return
        for keys, values in self._lookup_batches():
            yield self._elements(keys, values)

    def _elements(self, keys: NDArray[np.uint8], values: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Give keys and values their types."""
        assert self._spec.key is not None  # _lookup_batches() has refused others
        return keys.view(self._spec.key), self._layout.decode(values, len(keys) // self._spec.key_size)

    def _lookup_batches(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Keys and values of all elements, as bytes, chunk by chunk; all at once if there is no batch operation."""
        if self._spec.key is None:
            raise TypeError(f"map {self._spec.name} is a {self._spec.type.name}, which has no keys")
        # The position is a u32 bucket for hash tables and a key for the other types.
        position = np.zeros(max(self._spec.key_size, 8), np.uint8)
        started = False
        chunk = min(self._spec.max_entries, _CHUNK)
        while True:
            keys = np.zeros(chunk * self._spec.key_size, np.uint8)
            values = self._layout.empty(chunk)
            start = position if started else None
            result = self._batch(Command.MAP_LOOKUP_BATCH, keys, values, chunk, start, position)
            if result.errno in _NO_BATCH and not started:
                yield self._walk()
                return
            if result.errno == errno.ENOSPC:
                # A bucket has more elements than the buffer: nothing was copied, the position has not moved.
                chunk *= 2
                continue
            if result.errno not in (0, errno.ENOENT):
                raise self._error("read", OSError(result.errno, os.strerror(result.errno)))
            started = True
            done = result.done
            yield keys[: done * self._spec.key_size], values[: done * self._layout.stride]
            if result.errno == errno.ENOENT:
                return

    def _walk(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Keys and values of all elements, as bytes, key by key, for types without batch operations."""
        keys, values = bytearray(), bytearray()
        for key in self._iterate_keys():
            value = self._layout.empty(1)
            try:
                self._element(Command.MAP_LOOKUP_ELEM, key, value)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                raise self._error("read", error) from error
            keys += key.tobytes()
            values += value.tobytes()
        return np.frombuffer(keys, np.uint8), np.frombuffer(values, np.uint8)

    def _iterate_keys(self) -> Iterator[NDArray[Any]]:
        # When the current key is deleted meanwhile, the kernel starts again: yield each key once.
        seen: set[bytes] = set()
        key: NDArray[Any] | None = None
        for _ in range(2 * self._spec.max_entries + 2):
            following = np.zeros(1, self._spec.key)
            attr = struct.pack("=IIQQQ", self.fd, 0, 0 if key is None else address(key), address(following), 0)
            try:
                bpf(Command.MAP_GET_NEXT_KEY, bytearray(attr))
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise self._error("walk", error) from error
            key = following
            if (token := key.tobytes()) not in seen:
                seen.add(token)
                yield key

    # -- arrays -------------------------------------------------------------------------------------

    def read_array(self) -> NDArray[Any]:
        """All values of an array: shape ``(max_entries,)`` or ``(max_entries, possible CPUs)``."""
        return self.read_slice(0, self._spec.max_entries)

    def read_slice(self, first: int, count: int) -> NDArray[Any]:
        """Values ``first`` … ``first + count - 1`` of an array, shaped as read_array's rows."""
        self._check_range(first, count)
        buffer = self._layout.empty(count)
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            self._read_chunk(first + start, size, buffer[start * self._layout.stride :])
        return self._layout.decode(buffer, count)

    def _read_chunk(self, first: int, count: int, buffer: NDArray[np.uint8]) -> None:
        # The kernel continues after the position; 2^32 - 1 stands for before the first element.
        position = np.array([(first - 1) & 0xFFFFFFFF, 0], np.uint32)
        keys = np.zeros(count, np.uint32)
        result = self._batch(Command.MAP_LOOKUP_BATCH, keys, buffer, count, position, position)
        if result.errno in _NO_BATCH:
            for index in range(count):
                row = buffer[index * self._layout.stride :]
                key = np.array([first + index], np.uint32)
                try:
                    self._element(Command.MAP_LOOKUP_ELEM, key, row)
                except OSError as error:
                    if error.errno != errno.ENOENT:
                        raise self._error("read", error) from error
        elif result.errno not in (0, errno.ENOENT):
            raise self._error("read", OSError(result.errno, os.strerror(result.errno)))

    def write_array(self, first: int, values: object) -> None:
        """Write consecutive values of an array, from index ``first`` on.

        ``values`` has shape ``(n,)``, or ``(n, possible CPUs)`` for a per-CPU array.
        """
        count = len(values)  # type: ignore[arg-type]
        self._check_range(first, count)
        keys = np.arange(first, first + count, dtype=np.uint32)
        result = self.update_batch(keys, values)
        if result.errno:
            error = OSError(result.errno, os.strerror(result.errno))
            raise self._error(f"write element {first + result.done} of", error)

    def _check_range(self, first: int, count: int) -> None:
        if not self._spec.is_array:
            raise TypeError(f"map {self._spec.name} is a {self._spec.type.name}, not an array")
        if first < 0 or count < 0 or first + count > self._spec.max_entries:
            raise IndexError(
                f"elements {first}..{first + count - 1} of map {self._spec.name}: it has {self._spec.max_entries}"
            )

    def mmap(self) -> NDArray[Any]:
        """The memory of a MMAPABLE array itself: writable, shape ``(max_entries,)``.

        Programs see writes at once, and user space theirs, word by word: there is no lock. The mapping exists as long
        as the returned array or a view of it. Elements are aligned to 8 bytes.
        """
        if self._spec.type is not MapType.ARRAY or not self._spec.flags & MapFlags.MMAPABLE:
            raise TypeError(f"map {self._spec.name} is not an ARRAY created with MapFlags.MMAPABLE")
        stride = round_up(self._spec.value_size)
        length = round_up(stride * self._spec.max_entries, memory_map.PAGESIZE)
        try:
            memory = memory_map.mmap(self.fd, length)
        except OSError as error:
            raise self._error("map the memory of", error) from error
        return np.ndarray((self._spec.max_entries,), self._spec.value, buffer=memory, strides=(stride,))

    # -- batches ------------------------------------------------------------------------------------

    def update_batch(self, keys: object, values: object, flags: int = 0) -> BatchResult:
        """Set many elements, in order, until the kernel refuses one."""
        encoded_keys = self._keys(keys)
        count = len(encoded_keys)
        encoded = self._layout.encode(values, count)
        if not flags:
            result = self._batch(Command.MAP_UPDATE_BATCH, encoded_keys, encoded, count)
            if result.errno not in _NO_BATCH or result.done:
                return result
        # The batch operation does not support NOEXIST and EXIST, and some types have none.
        rows = encoded.view(np.uint8).reshape(count, self._layout.stride)
        for index in range(count):
            try:
                self._element(Command.MAP_UPDATE_ELEM, encoded_keys[index : index + 1], rows[index], flags)
            except OSError as error:
                return BatchResult(index, error.errno or errno.EIO)
        return BatchResult(count, 0)

    def delete_batch(self, keys: object) -> BatchResult:
        """Delete many elements; missing ones are skipped and not counted."""
        encoded = self._keys(keys)
        done = start = 0
        while start < len(encoded):
            rest = encoded[start:]
            result = self._batch(Command.MAP_DELETE_BATCH, rest, None, len(rest))
            if result.errno in _NO_BATCH and not done and not result.done:
                return self._delete_one_by_one(encoded)
            done += result.done
            if result.errno not in (0, errno.ENOENT):
                return BatchResult(done, result.errno)
            start += result.done + (result.errno == errno.ENOENT)
        return BatchResult(done, 0)

    def _delete_one_by_one(self, keys: NDArray[Any]) -> BatchResult:
        missing = 0
        for index in range(len(keys)):
            try:
                self._element(Command.MAP_DELETE_ELEM, keys[index : index + 1], None)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    return BatchResult(index - missing, error.errno or errno.EIO)
                missing += 1
        return BatchResult(len(keys) - missing, 0)

    def lookup_batch_keys(self, keys: object) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Which of ``keys`` exist, ``(n,)``, and their values, ``(n,)`` or ``(n, possible CPUs)``.

        Values of missing keys are zeros. The kernel has no batch operation for given keys: this needs a system call
        per key, except for arrays whose keys lie close together.
        """
        encoded = self._keys(keys)
        count = len(encoded)
        if self._spec.is_array and count and int(encoded.max()) < self._spec.max_entries:
            first, last = int(encoded.min()), int(encoded.max())
            if last - first < 16 * count:
                return np.ones(count, np.bool_), self.read_slice(first, last - first + 1)[encoded - first]
        found = np.zeros(count, np.bool_)
        buffer = self._layout.empty(count)
        key_at, value_at = address(encoded), address(buffer)
        attr = bytearray(struct.pack("=IIQQQ", self.fd, 0, key_at, value_at, 0))
        for index in range(count):
            offsets = (key_at + index * self._spec.key_size, value_at + index * self._layout.stride)
            struct.pack_into("=QQ", attr, 8, *offsets)
            try:
                bpf(Command.MAP_LOOKUP_ELEM, attr)
                found[index] = True
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise self._error("look up keys in", error) from error
        return found, self._layout.decode(buffer, count)

    def _keys(self, keys: object) -> NDArray[Any]:
        encoded = encode(keys, self._spec.key, None, f"keys of {self._spec.name}")
        if encoded.ndim != 1:
            raise TypeError(f"keys of {self._spec.name}: shape {encoded.shape} given, (n,) expected")
        return encoded

    def _batch(
        self,
        command: Command,
        keys: NDArray[Any],
        values: NDArray[Any] | None,
        count: int,
        start: NDArray[Any] | None = None,
        end: NDArray[Any] | None = None,
    ) -> BatchResult:
        """One batch call on ``count`` elements; positions are read from ``start``, written to ``end``."""
        if not count:
            return BatchResult(0, errno.ENOENT if command is Command.MAP_LOOKUP_BATCH else 0)
        pointers = [0 if array is None else address(array) for array in (start, end, keys, values)]
        attr = bytearray(struct.pack("=QQQQIIQQ", *pointers, count, self.fd, 0, 0))
        try:
            bpf(command, attr)
        except OSError as error:
            done: int = struct.unpack_from("=I", attr, 32)[0]
            code = error.errno or errno.EIO
            # When the kernel refuses the whole call, it leaves the count unchanged.
            refused = done == count and (command is not Command.MAP_LOOKUP_BATCH or code != errno.ENOENT)
            return BatchResult(0 if refused else done, code)
        return BatchResult(struct.unpack_from("=I", attr, 32)[0], 0)


def _create(spec: MapSpec, inner_fd: int) -> int:
    attr = struct.pack(
        "=IIIIIII16s",
        spec.type,
        spec.key_size,
        spec.value_size,
        spec.max_entries,
        spec.creation_flags,
        inner_fd,
        spec.numa_node or 0,
        spec.kernel_name.encode(),
    )
    try:
        return bpf(Command.MAP_CREATE, bytearray(attr))
    except OSError as error:
        if error.errno == errno.EPERM and lift_locked_memory_limit():
            return _create(spec, inner_fd)
        reason = explain(error, needs=TO_CREATE)
        if error.errno in (errno.ENOMEM, errno.E2BIG):
            reason = f"{reason}; fewer entries would need less memory"
        raise HostError(f"cannot create map {spec}: {reason}") from error


def pinned_entries(path: Path) -> int:
    """``max_entries`` of the map pinned at ``path``; HostError when nothing is pinned there."""
    return _pinned_info(path)[0]


def pinned_flags(path: Path) -> int:
    """MapFlags of the map pinned at ``path``; HostError when nothing is pinned there."""
    return _pinned_info(path)[1]


def _pinned_info(path: Path) -> tuple[int, int]:
    fd = obj_get(path)
    try:
        entries, flags = _MAP_INFO.unpack_from(object_info(fd, 80))[4:6]
    finally:
        os.close(fd)
    return int(entries), int(flags)


def _compare(fd: int, spec: MapSpec, place: str) -> None:
    kind = object_kind(fd)
    if kind != "bpf-map":
        raise HostError(f"{place} is a {kind}, not the map {spec.name}")
    number, _, key_size, value_size, max_entries, flags, _ = _MAP_INFO.unpack_from(object_info(fd, 80))
    # The kernel itself adds this flag to device maps.
    added = MapFlags.RDONLY_PROG if spec.type in (MapType.DEVMAP, MapType.DEVMAP_HASH) else 0
    transient = MapFlags.RDONLY | MapFlags.WRONLY | added
    fields = (
        ("type", _type_name(number), spec.type.name),
        ("key size", key_size, spec.key_size),
        ("value size", value_size, spec.value_size),
        ("max_entries", max_entries, spec.max_entries),
        ("flags", hex(flags & ~transient), hex(spec.creation_flags & ~transient)),
    )
    for field, found, expected in fields:
        if found != expected:
            raise HostError(
                f"{place} does not fit the map {spec.name}: {field} is {found}, expected {expected}; "
                "remove it or restore the configuration that created it"
            )


def _type_name(number: int) -> str:
    try:
        return MapType(number).name
    except ValueError:
        return f"type {number}"
