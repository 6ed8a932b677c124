# SPDX-License-Identifier: Apache-2.0
"""Which of our rules has which handle, and what a rule had counted before it was replaced.

The kernel's dump is the truth; this is the memory of it that lets a rule be found by its match.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfcore.api.rules import RULE_ROW

_MATCH_BYTES = 44
"""Leading bytes of a rule (key and family) that tell one match from another."""
WHOLE_RULE = f"V{RULE_ROW.itemsize}"
"""Rows as opaque bytes: numpy copies a structured row field by field, many times slower."""


def matches_of(rows: NDArray[np.void]) -> list[bytes]:
    """Give what tells each rule's match from the others."""
    raw = rows.view(np.uint8).reshape(len(rows), RULE_ROW.itemsize)
    return np.ascontiguousarray(raw[:, :_MATCH_BYTES]).view(f"V{_MATCH_BYTES}").ravel().tolist()


class RuleIndex:
    """Rules by match and by handle. A handle is an index here, never 0."""

    def __init__(self) -> None:
        self._handles: dict[bytes, int] = {}
        self._free: list[int] = []
        self._next = 1
        self._rows = np.zeros(1024, dtype=RULE_ROW)
        self._used = np.zeros(1024, dtype=bool)
        self._before = np.zeros((1024, 2), dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._handles)

    def find(self, matches: list[bytes]) -> NDArray[np.uint32]:
        """Give the handle of each match, 0 where there is none."""
        if not self._handles:
            return np.zeros(len(matches), dtype=np.uint32)
        known = self._handles
        return np.array([known.get(match, 0) for match in matches], dtype=np.uint32)

    def rules(self, handles: NDArray[np.uint32]) -> NDArray[np.void]:
        """Give the rules behind handles in use."""
        return self._rows.take(handles)

    def handles(self) -> NDArray[np.uint32]:
        """Give all handles in use, in order."""
        return np.flatnonzero(self._used).astype(np.uint32)

    def holds(self, handles: NDArray[np.uint32], cookies: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of the handles are in use for the rule of that cookie."""
        inside = handles < len(self._rows)
        safe = np.where(inside, handles, 0)
        held: NDArray[np.bool_] = inside & self._used[safe] & (self._rows["cookie"].take(safe) == cookies)
        return held

    def add(self, rows: NDArray[np.void], matches: list[bytes]) -> NDArray[np.uint32]:
        """Give new rules, of different matches none of which is known, a handle each; counters begin at 0."""
        count = len(rows)
        reused = min(count, len(self._free))
        taken = [self._free.pop() for _ in range(reused)]
        taken += range(self._next, self._next + count - reused)
        self._next += count - reused
        handles = np.array(taken, dtype=np.uint32)
        self._enter(rows, matches, handles)
        return handles

    def adopt(self, rows: NDArray[np.void], handles: NDArray[np.uint32]) -> None:
        """Enter rules that the kernel holds by these handles."""
        if not len(handles):
            return
        inside = handles[handles < len(self._used)]
        self.forget(inside[self._used[inside]])
        top = int(handles.max())
        if top >= self._next:
            mine = set(handles.tolist())
            self._free += [handle for handle in range(self._next, top + 1) if handle not in mine]
            self._next = top + 1
        elif self._free:
            mine = set(handles.tolist())
            self._free = [handle for handle in self._free if handle not in mine]
        self._enter(rows, matches_of(rows), handles)

    def _enter(self, rows: NDArray[np.void], matches: list[bytes], handles: NDArray[np.uint32]) -> None:
        if self._next > len(self._rows):
            size = max(self._next, 2 * len(self._rows))
            for name in ("_rows", "_used", "_before"):
                old = getattr(self, name)
                new = np.zeros((size, *old.shape[1:]), dtype=old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)
        self._rows.view(WHOLE_RULE)[handles] = rows.view(WHOLE_RULE)
        self._used[handles], self._before[handles] = True, 0
        self._handles.update(zip(matches, handles.tolist(), strict=True))

    def forget(self, handles: NDArray[np.uint32], matches: list[bytes] | None = None) -> None:
        """Drop rules; their handles may be given again. Their matches need not be told."""
        if not len(handles):
            return
        known = self._handles
        for match in matches_of(self.rules(handles)) if matches is None else matches:
            known.pop(match, None)
        self._used[handles] = False
        self._free += handles.tolist()

    def carry(self, handles: NDArray[np.uint32], packets: NDArray[np.uint64], size: NDArray[np.uint64]) -> None:
        """Add packets and bytes to what these rules had counted before they were made."""
        self._before[handles, 0] += packets
        self._before[handles, 1] += size

    def before(self, handles: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Packets and bytes, shape (rules, 2), that the rules had counted before they were made."""
        return self._before[handles]
