# SPDX-License-Identifier: Apache-2.0
"""Finds the handle of a rule by its match, and keeps what a rule had counted before it was replaced by itself.

The index is a copy of the kernel's dump, which is the truth.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nfcore.api.rules import RULE_ROW

_MATCH_BYTES = 48
"""Leading bytes of a rule that make its match: key, family and VLAN tags."""
WHOLE_RULE = f"V{RULE_ROW.itemsize}"
"""dtype of rows as opaque bytes: numpy copies structured rows field by field, many times slower."""


def matches_of(rows: NDArray[np.void]) -> list[bytes]:
    """Return the match of each rule as bytes."""
    raw = rows.view(np.uint8).reshape(len(rows), RULE_ROW.itemsize)
    return np.ascontiguousarray(raw[:, :_MATCH_BYTES]).view(f"V{_MATCH_BYTES}").ravel().tolist()


class RuleIndex:
    """Rules by match and by handle. Handles begin at 1 and are the indexes of the arrays here."""

    def __init__(self) -> None:
        self._handles: dict[bytes, int] = {}
        self._free: list[int] = []
        self._avoided: set[int] = set()
        """Handles that filters of other programs have, at any of our prios."""
        self._next = 1
        self._rows = np.zeros(1024, dtype=RULE_ROW)
        self._used = np.zeros(1024, dtype=bool)
        self._earlier = np.zeros((1024, 2), dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._handles)

    def find(self, matches: list[bytes]) -> NDArray[np.uint32]:
        """Return the handle of each match, 0 where there is none."""
        if not self._handles:
            return np.zeros(len(matches), dtype=np.uint32)
        known = self._handles
        return np.array([known.get(match, 0) for match in matches], dtype=np.uint32)

    def rules(self, handles: NDArray[np.uint32]) -> NDArray[np.void]:
        """Return the rules of handles in use."""
        return self._rows.take(handles)

    def handles(self) -> NDArray[np.uint32]:
        """Return all handles in use, in order."""
        return np.flatnonzero(self._used).astype(np.uint32)

    def holds(self, handles: NDArray[np.uint32], cookies: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of the handles are in use for a rule with that cookie."""
        inside = handles < len(self._rows)
        safe = np.where(inside, handles, 0)
        held: NDArray[np.bool_] = inside & self._used[safe] & (self._rows["cookie"].take(safe) == cookies)
        return held

    def add(self, rows: NDArray[np.void], matches: list[bytes]) -> NDArray[np.uint32]:
        """Add new rules, of different matches none of which is known; returns their handles. Counters begin at 0."""
        count = len(rows)
        reused = min(count, len(self._free))
        chosen = [self._free.pop() for _ in range(reused)]
        while (missing := count - len(chosen)) > 0:
            chosen += self._without_avoided(range(self._next, self._next + missing))
            self._next += missing
        handles = np.array(chosen, dtype=np.uint32)
        self._store(rows, matches, handles)
        return handles

    def avoid(self, handles: set[int]) -> None:
        """Give no new rule one of these handles: other programs have them now."""
        if handles != self._avoided:
            self._avoided = handles
            self._free = self._without_avoided(self._free)

    def _without_avoided(self, handles: Iterable[int]) -> list[int]:
        return [handle for handle in handles if handle not in self._avoided] if self._avoided else list(handles)

    def adopt(self, rows: NDArray[np.void], handles: NDArray[np.uint32]) -> None:
        """Add rules that the kernel already holds by these handles."""
        if not len(handles):
            return
        inside = handles[handles < len(self._used)]
        self.forget(inside[self._used[inside]])
        highest, adopted = int(handles.max()), set(handles.tolist())
        if highest >= self._next:
            unused = self._without_avoided(range(self._next, highest + 1))
            self._free += [handle for handle in unused if handle not in adopted]
            self._next = highest + 1
        elif self._free:
            self._free = [handle for handle in self._free if handle not in adopted]
        self._store(rows, matches_of(rows), handles)

    def _store(self, rows: NDArray[np.void], matches: list[bytes], handles: NDArray[np.uint32]) -> None:
        if self._next > len(self._rows):
            size = max(self._next, 2 * len(self._rows))
            for name in ("_rows", "_used", "_earlier"):
                old = getattr(self, name)
                new = np.zeros((size, *old.shape[1:]), dtype=old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)
        self._rows.view(WHOLE_RULE)[handles] = rows.view(WHOLE_RULE)
        self._used[handles], self._earlier[handles] = True, 0
        self._handles.update(zip(matches, handles.tolist(), strict=True))

    def forget(self, handles: NDArray[np.uint32], matches: list[bytes] | None = None) -> None:
        """Remove rules; their handles are free again. `matches` saves computing the matches of the rules."""
        if not len(handles):
            return
        known = self._handles
        for match in matches_of(self.rules(handles)) if matches is None else matches:
            known.pop(match, None)
        self._used[handles] = False
        self._free += self._without_avoided(handles.tolist())

    def add_earlier(
        self, handles: NDArray[np.uint32], packets: NDArray[np.uint64], byte_counts: NDArray[np.uint64]
    ) -> None:
        """Add packets and bytes that these rules had counted before they were replaced by themselves."""
        self._earlier[handles, 0] += packets
        self._earlier[handles, 1] += byte_counts

    def earlier(self, handles: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Packets and bytes, shape (rules, 2), that the rules had counted before they were replaced by themselves."""
        return self._earlier[handles]
