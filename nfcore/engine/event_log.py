# SPDX-License-Identifier: Apache-2.0
"""The log of events that `nfcore events` shows.

Events of flows are rows of numpy columns, written a batch at a time into a ring; there is no Python object per flow.
Notes, the events of the daemon and its devices, are rare and kept apart, so that many flows do not push them out.
Events and notes share one sequence of numbers: its gaps show a slow follower how many it has lost.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FLOW_ROW, WHOLE_FLOW
from ..api.reasons import Reason
from .event_kind import EventKind

NO_BACKEND = 0xFF
"""In the column `backend`: the event is about no backend."""
NOTES_KEPT = 4096
TEXTS_KEPT = 1024
_KINDS_OF_ENDS = {Reason.IDLE: EventKind.AGED, Reason.REPLACED: EventKind.REPLACED}
COLUMNS: dict[str, np.dtype[Any]] = {
    "seq": np.dtype("<u8"),
    "time": np.dtype("<f8"),
    "packets": np.dtype("<u8"),
    "bytes": np.dtype("<u8"),
    "mark": np.dtype("<u4"),
    "text": np.dtype("<u4"),
    "kind": np.dtype("u1"),
    "reason": np.dtype("u1"),
    "backend": np.dtype("u1"),
}
"""Columns of an event beside the flow. seq: its number. time: seconds since the epoch. packets, bytes: counted by the
NIC. text: number of a text, or 0. kind: :class:`EventKind`. reason: :class:`~nfcore.api.reasons.Reason`. backend: index
in the device's list, or :data:`NO_BACKEND`."""


@dataclass(frozen=True)
class Note:
    """An event of the daemon or of a device."""

    seq: int
    time: float
    kind: EventKind
    message: str
    interface: str | None = None


class Records:
    """Events of flows, in order; valid until the next event is recorded. Each access to a column copies it."""

    def __init__(self, flow: NDArray[np.void], columns: dict[str, NDArray[Any]], places: NDArray[np.int64]) -> None:
        self._flow, self._columns, self._places = flow, columns, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self._columns[column][self._places]

    @property
    def flows(self) -> NDArray[np.void]:
        """Rows of :data:`~nfcore.api.flows.FLOW_ROW`."""
        return self._flow[self._places].view(FLOW_ROW)

    def only(self, which: NDArray[np.bool_]) -> Records:
        """Give the events for which `which`, a value per event, is true."""
        return Records(self._flow, self._columns, self._places[which])


class EventLog:
    """The last `capacity` events of flows and the last `NOTES_KEPT` notes. For one thread."""

    def __init__(self, capacity: int, wall: Callable[[], float] = time.time) -> None:
        self.capacity = capacity
        self.next = 0
        """Number of the next event."""
        self._wall = wall
        self._written = 0
        self._flow = np.zeros(capacity, dtype=WHOLE_FLOW)
        self._columns: dict[str, NDArray[Any]] = {n: np.zeros(capacity, t) for n, t in COLUMNS.items()}
        self._notes: deque[Note] = deque(maxlen=NOTES_KEPT)
        self._texts: dict[str, int] = {}
        self._texts_by_number: dict[int, str] = {}
        self._last_text = 0

    @property
    def nbytes(self) -> int:
        """Size of the ring in bytes. The system provides most of this memory only when it is written."""
        return self._flow.nbytes + sum(column.nbytes for column in self._columns.values())

    def record(
        self,
        kind: EventKind,
        flows: NDArray[np.void],
        *,
        reason: int | NDArray[np.uint8] = 0,
        mark: int | NDArray[np.uint32] = 0,
        backend: int | NDArray[np.uint8] = NO_BACKEND,
        packets: int | NDArray[np.uint64] = 0,
        bytes_: int | NDArray[np.uint64] = 0,
        text: int | NDArray[np.uint32] = 0,
    ) -> None:
        """Record the same event for each flow of `flows`, rows of :data:`~nfcore.api.flows.FLOW_ROW`, or these as
        opaque bytes. The other values are one for all flows or one per flow. text: a result of :meth:`text_number`.
        """
        count = len(flows)
        if not count:
            return
        now, opaque = self._wall(), flows if flows.dtype == WHOLE_FLOW else flows.view(WHOLE_FLOW)
        numbers = np.arange(self.next, self.next + count, dtype=np.uint64)
        values = {"seq": numbers, "time": now, "kind": kind, "reason": reason, "mark": mark, "backend": backend}
        values |= {"packets": packets, "bytes": bytes_, "text": text}
        for source, target in self._parts(count):
            self._flow[target] = opaque[source]
            for name, value in values.items():
                self._columns[name][target] = value[source] if isinstance(value, np.ndarray) else value
        self.next += count
        self._written += count

    def _parts(self, count: int) -> list[tuple[slice, slice]]:
        """Give the parts of `count` new events that the ring keeps, and the places of each: two where it wraps."""
        skipped = max(0, count - self.capacity)
        begin = (self._written + skipped) % self.capacity
        until_end = min(count - skipped, self.capacity - begin)
        parts = [(slice(skipped, skipped + until_end), slice(begin, begin + until_end))]
        if skipped + until_end < count:
            parts.append((slice(skipped + until_end, count), slice(0, count - skipped - until_end)))
        return parts

    def ended(
        self,
        flows: NDArray[np.void],
        reasons: NDArray[np.uint8],
        *,
        mark: NDArray[np.uint32],
        backend: NDArray[np.uint8],
        packets: NDArray[np.uint64],
        bytes_: NDArray[np.uint64],
    ) -> None:
        """Record rules that are gone. The kind of each event follows from the reason."""
        for reason in np.unique(reasons).tolist():
            which = reasons == reason
            self.record(
                _KINDS_OF_ENDS.get(reason, EventKind.ENDED),
                flows[which],
                reason=reason,
                mark=mark[which],
                backend=backend[which],
                packets=packets[which],
                bytes_=bytes_[which],
            )

    def note(self, kind: EventKind, message: str, interface: str | None = None) -> None:
        """Record an event of the daemon, or of an interface."""
        self._notes.append(Note(self.next, self._wall(), kind, message, interface))
        self.next += 1

    def text_number(self, text: str) -> int:
        """Give the number by which events refer to a text. Of more than `TEXTS_KEPT` texts the oldest is forgotten."""
        number = self._texts.get(text)
        if number is None:
            if len(self._texts) >= TEXTS_KEPT:
                oldest = next(iter(self._texts))
                del self._texts_by_number[self._texts.pop(oldest)]
            self._last_text = number = self._last_text + 1
            self._texts[text], self._texts_by_number[number] = number, text
        return number

    def text_of(self, number: int) -> str | None:
        """Give a text by its number; None when there is none, or when it was forgotten."""
        return self._texts_by_number.get(number)

    def since(self, seq: int) -> tuple[Records, list[Note]]:
        """Give those events from number `seq` on that are still kept."""
        end, length = self._written % self.capacity, min(self._written, self.capacity)
        places = np.arange(end - length, end)
        places[places < 0] += self.capacity
        places = places[np.searchsorted(self._columns["seq"][places], np.uint64(max(seq, 0))) :]
        return Records(self._flow, self._columns, places), [note for note in self._notes if note.seq >= seq]
