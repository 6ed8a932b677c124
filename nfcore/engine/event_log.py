# SPDX-License-Identifier: Apache-2.0
"""What the engine does, event by event, for whoever follows it: `nfcore events`.

Events of flows are rows of numpy columns, written a batch at a time into a ring; no Python object exists per flow.
Events of the manager itself are rare and kept apart, so that a flood of flows does not push them out. Both are
numbered together, which is how a follower that is too slow learns how many it has lost.
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
"""In a record's `backend`: none had to do with it."""
NOTES_KEPT = 4096
TEXTS_KEPT = 1024


_OF_ENDS = {Reason.IDLE: EventKind.AGED, Reason.REPLACED: EventKind.REPLACED}
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
"""What is noted of an event beside the flow. time: seconds since the epoch. packets, bytes: counted by the NIC. text:
number of a text, or 0. kind: :class:`EventKind`. reason: :class:`~nfcore.api.reasons.Reason`. backend: index in the
device's list, or :data:`NO_BACKEND`."""


@dataclass(frozen=True)
class Note:
    """An event of the manager."""

    seq: int
    time: float
    kind: EventKind
    message: str
    interface: str | None = None


class Records:
    """Events of flows, in order; valid until the next event is recorded. Columns are copied when they are asked for."""

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
        """Leave out those that are not among `which`, a value per event."""
        return Records(self._flow, self._columns, self._places[which])


class EventLog:
    """The last `capacity` events of flows and the last few thousand of the manager. For one thread."""

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
        """Memory of the ring in bytes, most of which the system gives once it is used."""
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
        """Note the same event for each flow of `flows`, rows of :data:`~nfcore.api.flows.FLOW_ROW` or such rows as
        opaque bytes. Other values are one for all, or one per flow; `text` is a number that :meth:`text_number` gave.
        """
        count = len(flows)
        if not count:
            return
        first, skip = self.next, max(0, count - self.capacity)
        self.next += count
        kept = count - skip
        place = (self._written + skip) % self.capacity
        self._written += count
        parts = [(skip, place, min(kept, self.capacity - place))]
        if parts[0][2] < kept:
            parts.append((skip + parts[0][2], 0, kept - parts[0][2]))
        now, opaque = self._wall(), flows if flows.dtype == WHOLE_FLOW else flows.view(WHOLE_FLOW)
        for begin, to, length in parts:
            here, source = slice(to, to + length), slice(begin, begin + length)
            self._flow[here] = opaque[source]
            self._columns["seq"][here] = np.arange(first + begin, first + begin + length, dtype=np.uint64)
            self._columns["time"][here], self._columns["kind"][here] = now, kind
            for name, value in (
                ("reason", reason),
                ("mark", mark),
                ("backend", backend),
                ("packets", packets),
                ("bytes", bytes_),
                ("text", text),
            ):
                self._columns[name][here] = value[source] if isinstance(value, np.ndarray) else value

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
        """Note rules that are gone, as the kinds that their reasons stand for."""
        for reason in np.unique(reasons).tolist():
            which = reasons == reason
            self.record(
                _OF_ENDS.get(reason, EventKind.ENDED),
                flows[which],
                reason=reason,
                mark=mark[which],
                backend=backend[which],
                packets=packets[which],
                bytes_=bytes_[which],
            )

    def note(self, kind: EventKind, message: str, interface: str | None = None) -> None:
        """Note an event of the manager."""
        self._notes.append(Note(self.next, self._wall(), kind, message, interface))
        self.next += 1

    def text_number(self, text: str) -> int:
        """Give the number by which records refer to a text. The oldest are forgotten when there are many."""
        number = self._texts.get(text)
        if number is None:
            if len(self._texts) >= TEXTS_KEPT:
                oldest = next(iter(self._texts))
                del self._texts_by_number[self._texts.pop(oldest)]
            self._last_text = number = self._last_text + 1
            self._texts[text], self._texts_by_number[number] = number, text
        return number

    def text_of(self, number: int) -> str | None:
        """Give a text by its number; None when there is none, or it was forgotten."""
        return self._texts_by_number.get(number)

    def since(self, seq: int) -> tuple[Records, list[Note]]:
        """Give what is still there of the events from number `seq` on."""
        end, length = self._written % self.capacity, min(self._written, self.capacity)
        places = np.arange(end - length, end)
        places[places < 0] += self.capacity
        places = places[np.searchsorted(self._columns["seq"][places], np.uint64(max(seq, 0))) :]
        return Records(self._flow, self._columns, places), [note for note in self._notes if note.seq >= seq]
