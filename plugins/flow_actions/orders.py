# SPDX-License-Identifier: Apache-2.0
"""The one way by which entries change: planned, written to the journal, then made in data plane and table.

A change is made as a whole or not at all. When the data plane refuses it, the journal forgets it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .entries import Entries, EntryError, EntryTable, check_machine, convert
from .journal import Journal
from .table import TOML_PLACE, Change, Owner, Table
from .targets import unusable

log = logging.getLogger(__name__)


class Apply(Protocol):
    """Makes a change in the data plane and commits it to the table, on the event loop, at once."""

    def __call__(self, change: Change) -> None:
        """Make the change. HostError: it cannot be made; nothing of it is in effect, and it is not committed."""


class Orders:
    """Changes of the entries: by applications, by the TOML, by time."""

    def __init__(self, table: Table, journal: Journal, apply: Apply, source: str = "flow_actions") -> None:
        """`source`: the TOML file, for messages."""
        self.table = table
        self._source = source
        self._journal = journal
        self._apply = apply

    def start(self, toml: Sequence[EntryTable], *, check: bool = True) -> None:
        """Begin with the entries of the run before and with those of the TOML. EntryError: the TOML's are wrong.

        check: the interfaces and CPUs of new entries must be there.
        """
        table = self.table
        entries, kept = self._journal.read(table.clock())
        change, left_out = table.plan_restored(entries, kept)
        if left_out:
            log.error("%d entries of the run before do not fit any more: %s", len(left_out), _some(left_out))
        if not change.is_empty:
            self._apply(change)
        change = self._plan_toml(toml, others_yield=True, check=check)
        yielding = [name for name in change.removed_names if self._is_of_application(name)]
        if yielding:
            log.warning("entries of applications give way to the TOML's: %s", _some(yielding))
        if not change.is_empty:
            self._apply(change)
        table.note_toml([entry.name for entry in toml])
        self._journal.compact(table)

    def change(self, add: Entries, delete: Sequence[str] = ()) -> Change:
        """Make a change of an application; what is deleted goes first. EntryError: all problems; nothing changes."""
        if len(add):
            check_machine(add, "add", interfaces_here(), online_cpus(), unusable=unusable_interfaces(add))
        change = self.table.plan(add, delete)
        self._make(change)
        return change

    def reload(self, toml: Sequence[EntryTable]) -> Change:
        """Make the TOML's entries these. EntryError: all problems; nothing changes."""
        change = self._plan_toml(toml)
        self._make(change)
        self.table.note_toml([entry.name for entry in toml])
        return change

    def expire(self) -> Change | None:
        """Remove the entries whose lifetime has ended, if there are any."""
        if self.table.next_end() > self.table.clock():
            return None
        change = self.table.plan_expired()
        self._make(change)
        return change

    def clear(self) -> Change:
        """Remove all entries of applications."""
        change = self.table.plan(Entries.join([]), self.table.names(Owner.APPLICATION))
        self._make(change)
        return change

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _make(self, change: Change) -> None:
        if change.is_empty:
            return
        self._journal.append(change, self.table)
        try:
            self._apply(change)
        except BaseException:
            self._journal.take_back()
            raise
        self._journal.compact_when_due(self.table)

    def _plan_toml(self, toml: Sequence[EntryTable], *, others_yield: bool = False, check: bool = True) -> Change:
        try:
            entries = convert(toml, TOML_PLACE)
            if check and len(entries):
                fresh = np.flatnonzero(self.table.unchanged(entries) < 0)
                deaf = unusable_interfaces(entries)
                check_machine(entries, TOML_PLACE, interfaces_here(), online_cpus(), fresh, deaf)
            return self.table.plan_toml(entries, others_yield=others_yield)
        except EntryError as error:
            raise error.within(self._source) from None

    def _is_of_application(self, name: str) -> bool:
        slot = self.table.slot_of(name)
        return slot is not None and self.table.owners[slot] == Owner.APPLICATION


def interfaces_here() -> set[str]:
    """Give the names of the interfaces of this network namespace."""
    return {name for _, name in socket.if_nameindex()}


def unusable_interfaces(entries: Entries) -> dict[str, str]:
    """Give the interfaces of redirects that cannot have packets now, and why."""
    present = {name: index for index, name in socket.if_nameindex()}
    names = {target.interface for target in entries.actions if target.action == "redirect"}
    return {name: why for name in names if (why := unusable(name, present.get(name)))}


def online_cpus(path: Path = Path("/sys/devices/system/cpu/online")) -> Collection[int]:
    """Give the numbers of the CPUs that are online."""
    cpus: set[int] = set()
    for part in path.read_text(encoding="ascii").strip().split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:10])
    return f"{shown} and {len(names) - 10:,} more" if len(names) > 10 else shown
