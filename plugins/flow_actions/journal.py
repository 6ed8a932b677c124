# SPDX-License-Identifier: Apache-2.0
"""The journal: a file beside the socket by which entries survive the daemon, also when it is killed.

The first line names the format. Each other line is one change, written at once: what a killed daemon has written, the
kernel has. A line that was cut off is a change that nobody was told of. When the file has doubled, it is written anew
with one line for all entries. Lifetimes are kept as the time of day at which they end.

    {"delete": [names], "names": [names], "rows": "base64 of KEPT_ROW", "targets": {number: {"action": …}}}
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.config import NfTable
from nfcore.api.flows import FLOW_KEY
from nfcore.errors import HostError
from nfcore.folders import make_folder
from nfcore.refusals import explain

from .entries import Entries, Target, read_target
from .layouts import ENTRY
from .table import Change, Kept, Table

log = logging.getLogger(__name__)
FORMAT = 1
HEADER = json.dumps({"nfcore_flows": FORMAT}).encode() + b"\n"
SMALLEST = 1 << 16
"""Bytes below which the file is not written anew."""
KEPT_ROW = np.dtype(
    [
        ("key", FLOW_KEY),
        ("family", "<u4"),
        ("slot", "<u4"),
        ("target", "<u4"),
        ("precedence", "<u4"),
        ("expires", "<f8"),
        ("owner", "u1"),
        ("offload", "u1"),
    ]
)
"""An entry in the file. Another layout is another FORMAT."""
_Known = dict[str, tuple[bytes, Mapping[str, Any]]]
"""Name → row, keys of the target."""


class Journal:
    """The file. Without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1
        self._size = 0
        self._compacted = 0
        self._last = 0
        """Size before the last change."""

    def read(self, now: float) -> tuple[Entries, Kept]:
        """Read the entries of the run before, without those whose lifetime has ended."""
        known: _Known = {}
        try:
            lines = self._path.read_bytes().split(b"\n") if self._path is not None else [b""]
        except FileNotFoundError:
            lines = [b""]
        except OSError as error:
            raise HostError(
                f"the entries of flows in {self._path} cannot be read: {explain(error, self._path)}"
            ) from None
        damaged = len(lines[-1]) > 0  # what comes after the last line end
        if lines[:-1] and lines[0] + b"\n" != HEADER:
            log.error("%s is of another version of nfcore: the entries in it are lost", self._path)
            lines = [b""]
        for line in lines[1:-1]:
            try:
                _replay(line, known)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                damaged = True
        if damaged:
            log.warning("%s has a damaged line, of a change that was not finished: it is ignored", self._path)
        return _entries(known, now)

    def append(self, change: Change, table: Table) -> None:
        """Write a change, before it is made. HostError: it cannot be kept; then the file is as before."""
        if self._path is None:
            return
        if self._fd < 0:
            self.compact(table)
        targets = {number: change.new_targets.get(number) or table.targets[number] for number in _numbers(change.added)}
        rows = _kept_rows(change.added, change.expires, change.owners, change.offload)
        self._last = self._size
        try:
            self._write(_line(change.removed_names, change.added_names, rows, targets))
        except OSError as error:
            self.take_back()
            raise HostError(f"the change cannot be kept in {self._path}: {explain(error, self._path)}") from None

    def take_back(self) -> None:
        """Undo the last :meth:`append`: the change could not be made."""
        if self._fd >= 0:
            os.ftruncate(self._fd, self._last)
            self._size = self._last

    def compact_when_due(self, table: Table) -> None:
        """Write the file anew when it has doubled."""
        if self._fd >= 0 and self._size > 2 * max(self._compacted, SMALLEST):
            self.compact(table)

    def compact(self, table: Table) -> None:
        """Write the file anew: what is in the table. When that fails, the old file stays, and grows."""
        if self._path is None:
            return
        slots = table.slots()
        rows = _kept_rows(table.rows[slots], table.expires[slots], table.owners[slots], table.offload[slots])
        targets = {number: table.targets[number] for number in _numbers(table.rows[slots])}
        draft = self._path.with_name(self._path.name + ".new")
        try:
            make_folder(self._path.parent)
            content = HEADER + (_line((), table.names(), rows, targets) if len(slots) else b"")
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                _write_all(fd, content)
                draft.replace(self._path)
            except BaseException:
                os.close(fd)
                draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            message = f"the entries of flows cannot be kept in {self._path}: {explain(error, self._path)}"
            if self._fd < 0:
                raise HostError(message) from None
            log.error("%s", message)
            self._compacted = self._size  # not again at each change
            return
        self.close()
        self._fd, self._size, self._compacted = fd, len(content), len(content)

    def close(self) -> None:
        """Close the file; it stays. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def forget(self) -> None:
        """Remove the file: the next run begins without entries of applications."""
        self.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _write(self, line: bytes) -> None:
        _write_all(self._fd, line)
        self._size += len(line)


def journal_path(nf: NfTable) -> Path:
    """Give the path of the journal: beside the socket."""
    return nf.beside_socket(".flows")


def _write_all(fd: int, content: bytes) -> None:
    """Write all of it, in one call when the file system takes it so."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _numbers(rows: NDArray[np.void]) -> list[int]:
    found: list[int] = np.unique(rows["target"]).tolist()
    return found


def _kept_rows(
    rows: NDArray[np.void], expires: NDArray[np.float64], owners: NDArray[np.uint8], offload: NDArray[np.bool_]
) -> NDArray[np.void]:
    kept = np.zeros(len(rows), dtype=KEPT_ROW)
    for key in ("key", "family", "slot", "target", "precedence"):
        kept[key] = rows[key]
    kept["expires"], kept["owner"], kept["offload"] = expires, owners, offload
    return kept


def _line(deleted: Sequence[str], names: Sequence[str], rows: NDArray[np.void], targets: Mapping[int, Target]) -> bytes:
    record = {
        "delete": list(deleted),
        "names": list(names),
        "rows": base64.b64encode(rows.tobytes()).decode(),
        "targets": {number: target.parameters() for number, target in targets.items()},
    }
    return json.dumps(record).encode() + b"\n"


def _replay(line: bytes, known: _Known) -> None:
    """Make the change of a line. An exception: the line is damaged, and nothing of it was made."""
    record = json.loads(line)
    rows = np.frombuffer(base64.b64decode(record["rows"], validate=True), dtype=KEPT_ROW)
    names, deleted = [str(name) for name in record["names"]], [str(name) for name in record["delete"]]
    targets = {int(number): dict(keys) for number, keys in record["targets"].items()}
    added = {
        name: (row, targets[number])
        for name, row, number in zip(names, _each(rows), rows["target"].tolist(), strict=True)
    }
    for name in deleted:
        known.pop(name, None)
    known.update(added)


def _each(rows: NDArray[np.void]) -> list[bytes]:
    content, size = rows.tobytes(), KEPT_ROW.itemsize
    return [content[at : at + size] for at in range(0, len(content), size)]


def _entries(known: _Known, now: float) -> tuple[Entries, Kept]:
    """Convert what was read; what cannot be, or has ended, is left out."""
    rows = np.frombuffer(b"".join(row for row, _ in known.values()), dtype=KEPT_ROW)
    actions: dict[Target, int] = {}
    numbers: dict[str, int] = {}
    action = np.full(len(rows), -1, dtype=np.int64)
    for index, (name, (_, keys)) in enumerate(known.items()):
        text = json.dumps([keys, name if keys.get("action") == "police" else ""])
        if text not in numbers:
            try:
                numbers[text] = actions.setdefault(read_target(keys, name), len(actions))
            except ValueError:
                numbers[text] = -1
                log.error("an action of flows that was kept is not known here: its entries are lost")
        action[index] = numbers[text]
    good = np.flatnonzero((rows["expires"] > now) & (action >= 0))
    rows, names = rows[good], list(known)
    entry_rows = np.zeros(len(rows), dtype=ENTRY)
    for key in ("key", "family", "precedence"):
        entry_rows[key] = rows[key]
    lives, offload = rows["expires"] - now, rows["offload"].astype(bool)
    entries = Entries([names[index] for index in good], entry_rows, lives, offload, list(actions), action[good])
    slots, targets = rows["slot"].astype(np.int64), rows["target"].astype(np.int64)
    return entries, Kept(slots, targets, rows["expires"].copy(), rows["owner"].copy())
