# SPDX-License-Identifier: Apache-2.0
"""The flow table: a numpy column per property of a flow, and an index from a flow's identity to its slot.

All methods take and give arrays; there is no Python object per flow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FLOW_ROW, WHOLE_FLOW, FlowBatch
from ..devices.rule_counters import Counts
from .flow_index import PROCESS_HASH, FlowIndex, IdentityHash
from .flow_state import FlowState

_FIRST_SLOTS = 1024

COLUMNS = {
    "flow": FLOW_ROW,
    "mark": np.dtype("<u4"),
    "state": np.dtype("u1"),
    "backend": np.dtype("u1"),
    "generation": np.dtype("<u2"),
    "reason": np.dtype("u1"),
    "attempts": np.dtype("u1"),
    "order": np.dtype("u1"),
    "drops": np.dtype("?"),
    "packets": np.dtype("<u8"),
    "bytes": np.dtype("<u8"),
    "past_packets": np.dtype("<u8"),
    "past_bytes": np.dtype("<u8"),
    "rate": np.dtype("<f4"),
    "seen": np.dtype("<f8"),
    "since": np.dtype("<f8"),
    "due": np.dtype("<f8"),
}
"""The table's columns and their types, by the name of their attribute."""

_ZEROED = (
    "mark", "backend", "reason", "attempts", "order", "drops",
    "packets", "bytes", "past_packets", "past_bytes", "rate", "due",
)  # fmt: skip


class FlowTable:
    """At most `capacity` flows: with a rule, waiting for one, or refused.

    Columns are indexed by slot and equally long. The table replaces them when it grows: do not keep references to
    them. Only the methods change `state` and the identity in `flow`. `capacity` may be assigned: below the number of
    flows nothing is evicted, and nothing is inserted either. hash_of: the hash of the index.
    """

    flow: NDArray[np.void]
    """:data:`~nfcore.api.flows.FLOW_ROW`: the flow as it was reported."""
    mark: NDArray[np.uint32]
    """The flow's mark, or 0."""
    state: NDArray[np.uint8]
    """:class:`FlowState`."""
    backend: NDArray[np.uint8]
    """Which backend has the rule: index in the device's list."""
    generation: NDArray[np.uint16]
    """How often the slot was used, modulo 65536: part of the rules' cookies."""
    reason: NDArray[np.uint8]
    """:class:`~nfcore.api.reasons.Reason` why the flow has no rule, waits or is to end, or 0."""
    attempts: NDArray[np.uint8]
    """How often the installation of its rule has failed."""
    order: NDArray[np.uint8]
    """:class:`~.flow_state.Order`: whether an application has ordered the flow."""
    drops: NDArray[np.bool_]
    """Whether its rule drops its packets; such a flow has no mark."""
    packets: NDArray[np.uint64]
    """Counted by the NIC for the present rule."""
    bytes: NDArray[np.uint64]
    """Counted by the NIC for the present rule."""
    past_packets: NDArray[np.uint64]
    """Counted for earlier rules of the flow."""
    past_bytes: NDArray[np.uint64]
    """Counted for earlier rules of the flow."""
    rate: NDArray[np.float32]
    """Packets a second."""
    seen: NDArray[np.float64]
    """Time of the last packet that the NIC counted, or of the last report. Seconds by the engine's clock, as below."""
    since: NDArray[np.float64]
    """Time at which the flow entered its state."""
    due: NDArray[np.float64]
    """Time of the next attempt to install its rule."""

    def __init__(self, capacity: int, hash_of: IdentityHash = PROCESS_HASH) -> None:
        self.capacity = capacity
        for name, dtype in COLUMNS.items():
            setattr(self, name, np.zeros(0, dtype=dtype))
        self._index = FlowIndex(lambda: self.flow, hash_of)
        self._counts: NDArray[np.int64] = np.zeros(len(FlowState), dtype=np.int64)
        # A stack of free slots: its top is at _counts[FREE], and values above have no meaning.
        self._free: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._grow(min(capacity, _FIRST_SLOTS))

    def __len__(self) -> int:
        return len(self.state) - self.count(FlowState.FREE)

    @property
    def room(self) -> int:
        """How many more flows fit; negative when the capacity was lowered below the number of flows."""
        return self.capacity - len(self)

    @property
    def nbytes(self) -> int:
        """Size of columns, index and free slots in bytes."""
        columns = sum(getattr(self, name).nbytes for name in COLUMNS)
        return int(columns) + self._index.nbytes + self._free.nbytes

    def count(self, *states: FlowState) -> int:
        """How many flows are in any of `states`. Takes the same time for any number of flows."""
        return sum(int(self._counts[state]) for state in states)

    def slots_in(self, *states: FlowState) -> NDArray[np.int64]:
        """Slots of the flows in any of `states`, ascending."""
        chosen = np.zeros(len(self.state), dtype=np.bool_)
        for state in states:
            if self.count(state):
                chosen |= self.state == state
        return np.flatnonzero(chosen)

    def find(self, batch: FlowBatch) -> NDArray[np.int64]:
        """Slot of each flow, -1 where it is not tracked."""
        return self._index.find(batch.rows)

    def insert(self, batch: FlowBatch, state: FlowState, now: float) -> NDArray[np.int64]:
        """Track the batch, whose flows are distinct and new, in `state` since `now`. Returns their slots.

        `seen` is `now`, `generation` is one more than that of the slot's last flow, and the other columns are 0.
        ValueError: no room.
        """
        if len(batch) > max(self.room, 0):
            raise ValueError(f"{len(batch)} flows do not fit: there is room for {self.room}")
        if self.count(FlowState.FREE) < len(batch):
            self._grow(min(max(2 * len(self.state), len(self) + len(batch)), self.capacity))
        top = self.count(FlowState.FREE)
        slots = self._free[top - len(batch) : top][::-1].astype(np.int64)
        self._enter(batch, slots, self.generation[slots] + np.uint16(1), state, now)
        return slots

    def adopt(
        self, batch: FlowBatch, slots: NDArray[np.int64], generations: NDArray[np.uint16], state: FlowState, now: float
    ) -> None:
        """Track flows of an earlier run, with the slots and generations of their rules' cookies.

        Flows are new and distinct, slots are distinct; the other columns are as after :meth:`insert`. ValueError: a
        slot is beyond the capacity or in use.
        """
        if not len(slots):
            return
        top = int(slots.max())
        if int(slots.min()) < 0 or top >= self.capacity:
            raise ValueError(f"slot {top} is beyond the table's {self.capacity}")
        if (self.state[slots[slots < len(self.state)]] != FlowState.FREE).any():
            raise ValueError("a slot to adopt is in use")
        if top >= len(self.state):
            self._grow(min(max(2 * len(self.state), top + 1), self.capacity))
        self._enter(batch, slots, generations, state, now)
        free = self._free[: self.count(FlowState.FREE) + len(slots)]
        left = free[self.state[free] == FlowState.FREE]
        self._free[: len(left)] = left

    def move(self, slots: NDArray[np.int64], state: FlowState, now: float) -> None:
        """Move tracked flows, distinct, to `state` as of `now`. ValueError: a slot is free, or `state` is FREE."""
        if state == FlowState.FREE:
            raise ValueError("a flow becomes free by being removed")
        self._recount(slots, state)
        self.state[slots] = state
        self.since[slots] = now

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Forget the flows in `slots`, distinct. ValueError: a slot is free already."""
        top = self.count(FlowState.FREE)
        self._recount(slots, FlowState.FREE)
        self._index.remove(slots)
        self.state[slots] = FlowState.FREE
        self._free[top : top + len(slots)] = slots

    def batch(self, slots: NDArray[np.int64]) -> FlowBatch:
        """Copy the flows in `slots` to a contiguous batch."""
        return FlowBatch(self.flow.view(WHOLE_FLOW).take(slots).view(FLOW_ROW))

    def counts(self, slots: NDArray[np.int64]) -> Counts:
        """Packets and bytes that the NIC has counted for the flows' present rules."""
        return np.stack([self.packets[slots], self.bytes[slots]], axis=1)

    def end_counters(self, slots: NDArray[np.int64]) -> None:
        """Add the counts of rules that are gone to those of the flows' earlier rules."""
        self.past_packets[slots] += self.packets[slots]
        self.past_bytes[slots] += self.bytes[slots]
        self.packets[slots] = self.bytes[slots] = 0

    def _enter(
        self, batch: FlowBatch, slots: NDArray[np.int64], generations: NDArray[np.uint16], state: FlowState, now: float
    ) -> None:
        """Fill free slots. The caller updates the stack of free slots."""
        rows = np.ascontiguousarray(batch.rows)
        for name in _ZEROED:
            getattr(self, name)[slots] = 0
        self.flow.view(WHOLE_FLOW)[slots] = rows.view(WHOLE_FLOW)
        self.generation[slots] = generations
        self.state[slots] = state
        self.seen[slots] = now
        self.since[slots] = now
        self._index.insert(rows, slots)
        self._counts[FlowState.FREE] -= len(slots)
        self._counts[state] += len(slots)

    def _recount(self, slots: NDArray[np.int64], state: FlowState) -> None:
        """Update the counts of flows by state for a move of tracked flows to `state`. ValueError: a slot is free."""
        leaving = np.bincount(self.state[slots], minlength=len(FlowState))
        if leaving[FlowState.FREE]:
            free = slots[self.state[slots] == FlowState.FREE]
            raise ValueError(f"no flow is in slot {int(free[0])}")
        self._counts -= leaving
        self._counts[state] += len(slots)

    def _grow(self, size: int) -> None:
        """Lengthen the columns to `size`. Old free slots are used before new ones."""
        old, free = len(self.state), self.count(FlowState.FREE)
        for name, dtype in COLUMNS.items():
            column = np.zeros(size, dtype=dtype)
            column[:old].view(np.uint8)[:] = getattr(self, name).view(np.uint8)
            setattr(self, name, column)
        stack = np.empty(size, dtype=np.int32)
        stack[: size - old] = np.arange(size - 1, old - 1, -1, dtype=np.int32)
        stack[size - old : size - old + free] = self._free[:free]
        self._free = stack
        self._counts[FlowState.FREE] += size - old
