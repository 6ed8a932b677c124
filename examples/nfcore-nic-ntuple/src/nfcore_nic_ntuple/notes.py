# SPDX-License-Identifier: Apache-2.0
"""Notes on the backend's own rules, with their cookies: the NIC cannot store cookies, so a file does.

The file has rows of fixed size and is mapped into memory, so that its content survives when the process is killed. A
note is written before its rule and erased after it. A rule at the noted location is an own one only if it has exactly
the content of the note: another program may have written there meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfcore.api.rules import RULE_ROW
from nfcore.folders import make_folder

from .flowspec import match_of
from .layouts import RX_CLS_LOC_ANY

NOTE = np.dtype([("rule", RULE_ROW), ("location", "<u4"), ("in_use", "<u4")])
"""rule: as requested. location: on the NIC, or :data:`UNKNOWN`. in_use: 1; 0 in a free row."""
UNKNOWN = RX_CLS_LOC_ANY
"""Location of a rule that may or may not have reached the NIC."""
_MAGIC = b"nfcore-nic-ntuple notes 2\n".ljust(NOTE.itemsize, b"\0")
"""Content of the first row."""
_FIRST = 256
"""Rows of a new file."""


class Notes:
    """The notes on one device. With a path they survive the process. OSError when they cannot be written."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._rows: NDArray[np.void] = np.zeros(0, dtype=NOTE)
        self._slots: dict[bytes, int] = {}
        self._free: list[int] = []
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        raw = path.read_bytes()
        rows = len(raw) // NOTE.itemsize
        if rows < 1 or raw[: NOTE.itemsize] != _MAGIC:
            # Of another version, or another program's file: it is not understood, so no rule is an own one.
            path.unlink()
            return
        self._map(rows)
        for slot in range(1, rows):
            row = self._rows[slot]
            if row["in_use"] == 1 and self._slots.setdefault(match_of(row["rule"]), slot) == slot:
                continue
            row["in_use"] = 0
            self._free.append(slot)

    def _map(self, rows: int) -> None:
        """Make room for so many rows. A file is allocated first: a write to a mapping cannot report a full disk."""
        if self._path is None:
            grown = np.zeros(rows, dtype=NOTE)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
            return
        make_folder(self._path.parent)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, rows * NOTE.itemsize)
            os.pwrite(fd, _MAGIC, 0)
            with os.fdopen(os.dup(fd), "r+b") as file:
                self._rows = np.memmap(file, dtype=NOTE, mode="r+", shape=(rows,))
        finally:
            os.close(fd)

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the slots of all notes."""
        return iter(list(self._slots.values()))

    def find(self, rule: np.void) -> int | None:
        """The slot of the note on a rule with the same match; None without one."""
        return self._slots.get(match_of(rule))

    def rule(self, slot: int) -> np.void:
        """The noted rule, a row of `RULE_ROW`."""
        rule: np.void = self._rows[slot]["rule"]
        return rule

    def rules(self, slots: Sequence[int]) -> NDArray[np.void]:
        """A copy of the noted rules."""
        return np.array(self._rows["rule"][np.array(slots, dtype=np.int64)], dtype=RULE_ROW)

    def location(self, slot: int) -> int:
        """The rule's location, or :data:`UNKNOWN`."""
        return int(self._rows[slot]["location"])

    def add(self, rule: np.void) -> int:
        """Note a rule before it is installed; return the slot. No note may have the same match. OSError."""
        if not self._free:
            before = max(len(self._rows), 1)
            self._map(max(_FIRST, 2 * before))
            self._free = list(range(len(self._rows) - 1, before - 1, -1))
        slot = self._free.pop()
        row = self._rows[slot]
        row["rule"], row["location"] = rule, UNKNOWN
        row["in_use"] = 1  # written last: until now the row is free
        self._slots[match_of(rule)] = slot
        return slot

    def set_location(self, slot: int, location: int) -> None:
        """Note the rule's location."""
        self._rows[slot]["location"] = location

    def set_cookie(self, slot: int, cookie: int) -> None:
        """Change the rule's cookie."""
        self._rows[slot]["rule"]["cookie"] = cookie

    def drop(self, slot: int) -> None:
        """Erase a note: its rule is gone, or was never installed."""
        del self._slots[match_of(self._rows[slot]["rule"])]
        self._rows[slot]["in_use"] = 0
        self._free.append(slot)

    def close(self) -> None:
        """Close the file; remove it if it has no notes. Idempotent."""
        if self._path is not None and not self._slots:
            self._path.unlink(missing_ok=True)
        self._rows = np.zeros(0, dtype=NOTE)
        self._slots, self._free = {}, []
        self._path = None
