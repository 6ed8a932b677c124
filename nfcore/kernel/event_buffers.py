# SPDX-License-Identifier: Apache-2.0
"""Reads records that programs send to user space, in bulk.

Both kinds of buffer are memory shared with the kernel. A reader copies what has arrived with numpy, in runs of records
of equal size, so that no Python statement runs per record::

    ring buffer   │ 8 header │ record │pad│ 8 header │ record │pad│ ...     one for all CPUs, in order
    perf buffers  │ 8 header │ 4 size │ record │pad│ ...                    one per CPU

Formats: ``kernel/bpf/ringbuf.c`` and ``include/uapi/linux/perf_event.h``. The readers rely on the order of loads that
x86-64 guarantees; on other machines a reader could in theory copy a record before its last bytes are written.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import HostError
from ..refusals import Capability, explain
from .codec import round_up
from .cpus import online_cpus
from .maps import Map
from .mapspec import MapType
from .objects import Closing
from .syscall import perf_event_open

_BUSY, _DISCARD = 1 << 31, 1 << 30
_RING_HEADER = 8
_PERF_LOST, _PERF_SAMPLE = 2, 9
_PERF_HEADER = np.dtype([("type", np.uint32), ("misc", np.uint16), ("size", np.uint16)])
_PERF_OVERHEAD = 12
"""Bytes in front of a perf record: ``struct perf_event_header`` and the record's size."""
_LONGEST_PERF_RECORD = 1 << 16
_PERF_ENABLE = 0x2400
_TYPE_SOFTWARE, _SW_BPF_OUTPUT, _SAMPLE_RAW = 1, 10, 1 << 10
_WATERMARK = 1 << 14
_ATTR_SIZE = 112
_PERF_POSITIONS = 1024
"""Where ``struct perf_event_mmap_page`` has data_head, followed by data_tail; u64 each."""


class EventReader(Protocol):
    """Interface of the two readers."""

    lost: int
    """Records that the kernel dropped because the buffer was full, as far as it counts them."""

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that become readable when records arrive, if the program requests a wake-up."""
        ...

    def read(self, limit: int = 65536) -> NDArray[Any]:
        """Up to ``limit`` records that have arrived, oldest first; a copy. Never blocks."""
        ...

    def close(self) -> None:
        """Unmap the buffers. Idempotent."""
        ...


class RingBufferReader(Closing):
    """The only reader of a ring buffer with records of one size. A context manager.

    ``lost`` stays 0: the kernel counts no drops here, a program whose ``bpf_ringbuf_reserve`` fails must count them
    itself. Records of another size are skipped and counted in ``odd``.
    """

    def __init__(self, map: Map, record: np.dtype[Any]) -> None:
        if map.spec.type is not MapType.RINGBUF:
            raise TypeError(f"map {map.spec.name} is a {map.spec.type.name}, not a RINGBUF")
        self.lost = 0
        self.odd = 0
        self._map = map
        self._record = np.dtype(record)
        self._size = map.spec.max_entries
        self._stride = _RING_HEADER + round_up(self._record.itemsize)
        self._slot = np.dtype(
            {
                "names": ["length", "record"],
                "formats": [np.uint32, f"V{self._record.itemsize}"],
                "offsets": [0, _RING_HEADER],
                "itemsize": self._stride,
            }
        )
        page = mmap.PAGESIZE
        try:
            # The consumer's page is writable, the rest is not. The data are mapped twice in a row, so that no record
            # is split.
            consumer_page = mmap.mmap(map.fd, page)
            read_only = mmap.mmap(map.fd, page + 2 * self._size, prot=mmap.PROT_READ, offset=page)
        except OSError as error:
            raise HostError(f"cannot map the ring buffer {map.spec.name}: {explain(error)}") from error
        self._consumer: NDArray[np.uint64] | None = np.frombuffer(consumer_page, np.uint64, 1)
        self._producer: NDArray[np.uint64] | None = np.frombuffer(read_only, np.uint64, 1)
        self._data: NDArray[np.uint8] | None = np.frombuffer(read_only, np.uint8, offset=page)

    @property
    def fds(self) -> tuple[int, ...]:
        """The map's descriptor."""
        return (self._map.fd,)

    @property
    def pending_bytes(self) -> int:
        """Bytes between the reader and the last reserved record, headers and padding included."""
        consumer, producer, _ = self._buffers()
        return int(producer[0]) - int(consumer[0])

    def read(self, limit: int = 65536) -> NDArray[Any]:
        """Up to ``limit`` committed records, oldest first, shape ``(n,)``; a copy. Never blocks.

        Stops at a record that a program is still writing. Discarded records are skipped.
        """
        consumer, producer, data = self._buffers()
        position, end = int(consumer[0]), int(producer[0])
        runs: list[NDArray[Any]] = []
        while position < end and limit > 0:
            run, advance = self._next_run(data, position, end, limit)
            if not advance:
                break
            runs.append(run)
            limit -= len(run)
            position += advance
            # Frees each run at once: programs can use its room while the next run is copied.
            consumer[0] = position
        return _joined(runs, self._record)

    def _next_run(self, data: NDArray[np.uint8], position: int, end: int, limit: int) -> tuple[NDArray[Any], int]:
        """A run of records of the right size at ``position``, and the bytes to advance; 0: nothing is written yet."""
        offset = position & (self._size - 1)
        # At least one slot, even if less than a slot is left: a short record may be there.
        count = max(1, min((end - position) // self._stride, limit))
        if offset + count * self._stride > len(data):
            count = (len(data) - offset) // self._stride
        slots = np.ndarray((count,), self._slot, buffer=data, offset=offset)
        lengths = slots["length"].copy()
        regular = (lengths & (_BUSY | (_DISCARD - 1))) == self._record.itemsize
        run = count if regular.all() else int(regular.argmin())
        if run:
            kept = slots["record"][:run][(lengths[:run] & _DISCARD) == 0]
            return kept, run * self._stride
        if lengths[0] & _BUSY:
            return slots["record"][:0], 0
        self.odd += not lengths[0] & _DISCARD
        return slots["record"][:0], _RING_HEADER + round_up(int(lengths[0]) & (_DISCARD - 1))

    def _buffers(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint8]]:
        if self._consumer is None or self._producer is None or self._data is None:
            raise ValueError(f"the reader of {self._map.spec.name} is closed")
        return self._consumer, self._producer, self._data

    def close(self) -> None:
        """Unmap the buffer. The map stays open. Idempotent."""
        # The last array over a mapping unmaps it.
        self._consumer = self._producer = self._data = None


class PerfReader(Closing):
    """The reader of a perf event array: a buffer per CPU, records of one size. A context manager.

    Records are in order per CPU, not across CPUs. Records of another size are skipped and counted in ``odd``. A CPU
    that comes online later has no buffer: there ``bpf_perf_event_output`` fails, and the program must count that.
    """

    def __init__(self, map: Map, record: np.dtype[Any], pages: int = 64, cpus: Iterable[int] | None = None) -> None:
        """Open a buffer of ``pages`` pages (a power of two) for each of ``cpus`` (default: all online)."""
        if map.spec.type is not MapType.PERF_EVENT_ARRAY:
            raise TypeError(f"map {map.spec.name} is a {map.spec.type.name}, not a PERF_EVENT_ARRAY")
        if pages < 1 or pages & (pages - 1):
            raise ValueError(f"{pages} pages per CPU: a power of two is needed")
        self.lost = 0
        self.odd = 0
        self._map = map
        self._record = np.dtype(record)
        self._buffers: dict[int, _PerfBuffer] = {}
        try:
            for cpu in online_cpus() if cpus is None else cpus:
                self._buffers[cpu] = _PerfBuffer(cpu, pages, self._record)
                map.update(cpu, self._buffers[cpu])
        except OSError as error:
            self.close()
            raise HostError(
                f"cannot open perf buffers for {map.spec.name}: {explain(error, needs=[Capability.PERFMON])}"
            ) from error
        except HostError:
            self.close()
            raise
        self._next = 0

    @property
    def fds(self) -> tuple[int, ...]:
        """One descriptor per CPU; readable when its buffer is half full, or when a program requests a wake-up."""
        return tuple(buffer.fd for buffer in self._buffers.values())

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait in all buffers together."""
        return sum(buffer.pending for buffer in self._buffers.values())

    def read(self, limit: int = 65536) -> NDArray[Any]:
        """Up to ``limit`` records, each CPU's oldest first, shape ``(n,)``; a copy. Never blocks."""
        runs: list[NDArray[Any]] = []
        buffers = list(self._buffers.values())
        # Starts with another CPU each time, so that a flood on one does not starve the others.
        self._next = (self._next + 1) % max(1, len(buffers))
        for buffer in buffers[self._next :] + buffers[: self._next]:
            for run in buffer.take(limit):
                runs.append(run)
                limit -= len(run)
            self.lost += buffer.lost
            self.odd += buffer.odd
            buffer.lost = buffer.odd = 0
        return _joined(runs, self._record)

    def close(self) -> None:
        """Take the buffers out of the map and free them. The map stays open. Idempotent."""
        for cpu, buffer in self._buffers.items():
            # Fails for a map that is closed or gone, which holds no event any more.
            with contextlib.suppress(HostError, ValueError):
                self._map.delete(cpu)
            buffer.close()
        self._buffers = {}


class _PerfBuffer:
    """The buffer of one CPU. It has an ``fd``, so it can be a value of the perf event array."""

    def __init__(self, cpu: int, pages: int, record: np.dtype[Any]) -> None:
        self.lost = 0
        self.odd = 0
        self._size = pages * mmap.PAGESIZE
        self._stride = round_up(_PERF_OVERHEAD + record.itemsize)
        self._slot = np.dtype(
            {
                "names": ["header", "record"],
                "formats": [_PERF_HEADER, f"V{record.itemsize}"],
                "offsets": [0, _PERF_OVERHEAD],
                "itemsize": self._stride,
            }
        )
        # struct perf_event_attr: type, size, config, sample_period, sample_type, read_format, flags,
        # wakeup_watermark.
        attr = struct.pack(
            "=IIQQQQQI", *(_TYPE_SOFTWARE, _ATTR_SIZE, _SW_BPF_OUTPUT, 1, _SAMPLE_RAW, 0, _WATERMARK, self._size // 2)
        ).ljust(_ATTR_SIZE, b"\0")
        self.fd = perf_event_open(attr, cpu)
        try:
            memory = mmap.mmap(self.fd, mmap.PAGESIZE + self._size)
            fcntl.ioctl(self.fd, _PERF_ENABLE, 0)
        except OSError:
            os.close(self.fd)
            raise
        self._positions: NDArray[np.uint64] | None = np.frombuffer(memory, np.uint64, 2, _PERF_POSITIONS)
        self._data: NDArray[np.uint8] | None = np.frombuffer(memory, np.uint8, offset=mmap.PAGESIZE)

    @property
    def pending(self) -> int:
        return 0 if self._positions is None else int(self._positions[0]) - int(self._positions[1])

    def take(self, limit: int) -> Iterable[NDArray[Any]]:
        """Yield runs of records, up to ``limit`` records; afterwards frees their room for the kernel."""
        if self._positions is None or self._data is None or not (pending := self.pending):
            return
        tail = int(self._positions[1])
        window = self._window(self._data, tail, min(pending, limit * self._stride + _LONGEST_PERF_RECORD))
        position = 0
        while position + _PERF_HEADER.itemsize <= len(window) and limit > 0:
            run, advance = self._next_run(window, position, limit)
            if not advance:
                break
            limit -= len(run)
            position += advance
            if len(run):
                yield run
        self._positions[1] = tail + position

    def _window(self, data: NDArray[np.uint8], tail: int, length: int) -> NDArray[np.uint8]:
        """``length`` bytes from ``tail`` on, in one piece."""
        start = tail & (self._size - 1)
        first = data[start : start + length]
        return np.concatenate([first, data[: length - len(first)]])

    def _next_run(self, window: NDArray[np.uint8], position: int, limit: int) -> tuple[NDArray[Any], int]:
        rest = len(window) - position
        count = min(rest // self._stride, limit)
        if count:
            slots: NDArray[Any] = np.ndarray((count,), self._slot, buffer=window, offset=position)
            regular = (slots["header"]["type"] == _PERF_SAMPLE) & (slots["header"]["size"] == self._stride)
            run = count if regular.all() else int(regular.argmin())
            if run:
                return slots["record"][:run], run * self._stride
        kind, _, size = window[position : position + 8].view(_PERF_HEADER)[0].item()
        if not size or size > rest:
            return np.zeros(0, self._slot["record"]), 0
        if kind == _PERF_LOST:
            self.lost += int(window[position + 16 : position + 24].view(np.uint64)[0])
        elif kind == _PERF_SAMPLE:
            self.odd += 1
        return np.zeros(0, self._slot["record"]), size

    def close(self) -> None:
        self._positions = self._data = None
        os.close(self.fd)


def _joined(runs: list[NDArray[Any]], record: np.dtype[Any]) -> NDArray[Any]:
    """Join the runs to one array of ``record`` that owns its memory."""
    if not runs:
        return np.zeros(0, record)
    return np.concatenate(runs).view(record)


# Lets the type checker see that both are EventReaders.
_: tuple[Callable[..., EventReader], ...] = (RingBufferReader, PerfReader)
