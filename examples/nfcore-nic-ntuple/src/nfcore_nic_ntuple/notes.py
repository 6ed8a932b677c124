# SPDX-License-Identifier: Apache-2.0
"""Which rules on the NIC are ours, and their cookies: the NIC keeps no cookie, so they are kept beside it.

A file of fixed rows, mapped into memory: what was written there stands when the process is killed. A note is written
before its rule and erased after it. It claims a rule of exactly its content, so that a location which by now holds
somebody else's rule, or none, is not taken for ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfcore.api.rules import RULE_ROW

from .flowspec import match_of
from .layouts import RX_CLS_LOC_ANY

NOTE = np.dtype([("rule", RULE_ROW), ("location", "<u4"), ("stands", "<u4")])
"""rule: as it was to be installed. location: where, or :data:`UNKNOWN`. stands: 1; 0 in a row that is free."""
UNKNOWN = RX_CLS_LOC_ANY
"""Location of a rule of which it is not known whether the NIC has got it."""
_MAGIC = b"nfcore-nic-ntuple notes 1\n".ljust(NOTE.itemsize, b"\0")
"""The first row."""
_FIRST = 256
"""Rows of a new file."""


class Notes:
    """The notes on one device. With a path they survive the process. OSError when they cannot be kept."""

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
            # Of another version, or none of ours: what it says is not understood, so nothing is claimed.
            path.unlink()
            return
        self._map(rows)
        for slot in range(1, rows):
            row = self._rows[slot]
            if row["stands"] == 1 and self._slots.setdefault(match_of(row["rule"]), slot) == slot:
                continue
            row["stands"] = 0
            self._free.append(slot)

    def _map(self, rows: int) -> None:
        """Have so many rows: in a file whose room is taken beforehand, since a mapped file cannot say "full"."""
        if self._path is None:
            grown = np.zeros(rows, dtype=NOTE)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
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
        """Give the slots of all notes."""
        return iter(list(self._slots.values()))

    def find(self, rule: np.void) -> int | None:
        """Give the slot of the note on a rule with the same match."""
        return self._slots.get(match_of(rule))

    def rule(self, slot: int) -> np.void:
        """Give the rule that is noted, a row of `RULE_ROW`."""
        rule: np.void = self._rows[slot]["rule"]
        return rule

    def rules(self, slots: Sequence[int]) -> NDArray[np.void]:
        """Give the rules that are noted, a copy."""
        return np.array(self._rows["rule"][np.array(slots, dtype=np.int64)], dtype=RULE_ROW)

    def location(self, slot: int) -> int:
        """Give where the rule is, or :data:`UNKNOWN`."""
        return int(self._rows[slot]["location"])

    def add(self, rule: np.void) -> int:
        """Note a rule that is about to be installed; its slot. There must be none of its match. OSError."""
        if not self._free:
            before = max(len(self._rows), 1)
            self._map(max(_FIRST, 2 * before))
            self._free = list(range(len(self._rows) - 1, before - 1, -1))
        slot = self._free.pop()
        row = self._rows[slot]
        row["rule"], row["location"] = rule, UNKNOWN
        row["stands"] = 1  # last: until now the row is free
        self._slots[match_of(rule)] = slot
        return slot

    def settle(self, slot: int, location: int) -> None:
        """Note where the rule got to."""
        self._rows[slot]["location"] = location

    def rename(self, slot: int, cookie: int) -> None:
        """Give the rule another cookie."""
        self._rows[slot]["rule"]["cookie"] = cookie

    def drop(self, slot: int) -> None:
        """Erase a note: its rule is gone, or was never there."""
        del self._slots[match_of(self._rows[slot]["rule"])]
        self._rows[slot]["stands"] = 0
        self._free.append(slot)

    def close(self) -> None:
        """Let go; a file without notes is removed. Idempotent."""
        if self._path is not None and not self._slots:
            self._path.unlink(missing_ok=True)
        self._rows = np.zeros(0, dtype=NOTE)
        self._slots, self._free = {}, []
        self._path = None
