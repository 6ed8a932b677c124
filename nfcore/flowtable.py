# SPDX-License-Identifier: Apache-2.0
"""The one flow table: columns of numpy arrays and an index from a flow's identity to its slot."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from .flows import FLOW_ROW, FlowBatch


class FlowState(IntEnum):
    """Where a flow's rule is in its life."""

    FREE = 0
    PENDING = 1
    """Admitted; the rule is on its way to the NIC."""
    INSTALLED = 2
    DRAINING = 3
    """The rule is being removed, or gone with the grace period still running."""


TABLE_ROW = np.dtype(
    [
        ("flow", FLOW_ROW),
        ("mark", "<u4"),
        ("state", "u1"),
        ("backend", "u1"),
        ("generation", "<u2"),
        ("packets", "<u8"),
        ("bytes", "<u8"),
        ("seen", "<f8"),
    ]
)
"""One tracked flow. mark: in use for it. backend: index into its device's list. generation: how often the slot has
been used. packets, bytes: counted by the NIC. seen: when the NIC last counted one, seconds by the engine's clock."""


class FlowTable:
    """Flows with a rule or on the way to one. At most `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: NDArray[np.void] = np.zeros(min(capacity, 1024), dtype=TABLE_ROW)
        self._index: dict[bytes, int] = {}
        self._free: list[int] = list(range(len(self.rows) - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._index)

    @property
    def room(self) -> int:
        """How many more flows fit."""
        return self.capacity - len(self._index)

    def count(self, state: FlowState) -> int:
        """How many flows are in `state`."""
        return int(np.count_nonzero(self.rows["state"] == state))

    def slots_in(self, state: FlowState) -> NDArray[np.int64]:
        """Slots of the flows in `state`."""
        return np.flatnonzero(self.rows["state"] == state)

    def find(self, identities: list[bytes]) -> NDArray[np.int64]:
        """Slot of each flow, -1 where it is not tracked."""
        get = self._index.get
        return np.fromiter((get(identity, -1) for identity in identities), dtype=np.int64, count=len(identities))

    def insert(self, batch: FlowBatch, identities: list[bytes], marks: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Track the batch, whose flows are distinct and new, as PENDING; their slots. ValueError: no room."""
        if len(batch) > self.room:
            raise ValueError(f"{len(batch)} flows do not fit: there is room for {self.room}")
        while len(self._free) < len(batch):
            self._grow()
        taken = [self._free.pop() for _ in range(len(batch))]
        slots = np.array(taken, dtype=np.int64)
        generations = self.rows["generation"][slots]
        self.rows[slots] = np.zeros((), dtype=TABLE_ROW)
        self.rows["flow"][slots] = batch.rows
        self.rows["mark"][slots] = marks
        self.rows["state"][slots] = FlowState.PENDING
        self.rows["generation"][slots] = generations + np.uint16(1)
        self._index.update(zip(identities, taken, strict=True))
        return slots

    def adopt(
        self,
        batch: FlowBatch,
        marks: NDArray[np.uint32],
        slots: NDArray[np.int64],
        generations: NDArray[np.uint16],
    ) -> None:
        """Track flows of an earlier run as INSTALLED in the slots that their rules' cookies name.

        Flows and slots are distinct. ValueError: a slot is beyond the capacity or in use.
        """
        if len(slots) and int(slots.max()) >= self.capacity:
            raise ValueError(f"slot {int(slots.max())} is beyond the table's {self.capacity}")
        while len(slots) and int(slots.max()) >= len(self.rows):
            self._grow()
        if (self.rows["state"][slots] != FlowState.FREE).any():
            raise ValueError("a slot to adopt is in use")
        self.rows["flow"][slots] = batch.rows
        self.rows["mark"][slots] = marks
        self.rows["state"][slots] = FlowState.INSTALLED
        self.rows["generation"][slots] = generations
        self._index.update(zip(batch.identities(), slots.tolist(), strict=True))
        taken = set(slots.tolist())
        self._free = [slot for slot in self._free if slot not in taken]

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Forget the flows in `slots`."""
        for identity in self.batch(slots).identities():
            del self._index[identity]
        self.rows["state"][slots] = FlowState.FREE
        self._free.extend(slots.tolist())

    def batch(self, slots: NDArray[np.int64]) -> FlowBatch:
        """Give the flows in `slots` as a batch."""
        return FlowBatch(np.ascontiguousarray(self.rows["flow"][slots]))

    def _grow(self) -> None:
        old = len(self.rows)
        new = min(old * 2, self.capacity)
        rows = np.zeros(new, dtype=TABLE_ROW)
        rows[:old] = self.rows
        self.rows = rows
        self._free[:0] = range(new - 1, old - 1, -1)
