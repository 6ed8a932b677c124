# SPDX-License-Identifier: Apache-2.0
"""Pins of maps by which programs call each other.

The kernel empties such a map when no process and no pin has it any more. So each run pins its own one, and what it has
attached goes on when it is killed. The id of the map is in the pin's name: the next run needs no gap to replace it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .maps import Map
from .pins import ensure_bpffs, remove_bpffs


class CallPin:
    """The pin of one map of one run. Several maps share a folder, each by its name."""

    def __init__(self, folder: Path, name: str) -> None:
        """`folder`: of a bpf file system, or where one may be mounted. `name` begins the names of the map's pins."""
        self._folder, self._name = folder, name
        self._pin: Path | None = None

    def pin(self, programs: Map) -> None:
        """Pin this run's map. HostError."""
        ensure_bpffs(self._folder)
        path = self._folder / f"{self._name}_{programs.id}"
        programs.pin(path)
        self._pin = path

    def remove_earlier(self) -> None:
        """Remove the pins of killed runs. To be called when no program of theirs is attached any more. HostError."""
        for pin in _pins(self._folder, self._name):
            if pin != self._pin:
                pin.unlink(missing_ok=True)
        if self._pin is None:
            remove_bpffs(self._folder)

    def remove(self) -> None:
        """Remove this run's pin, and the folder with the last one. Idempotent. HostError."""
        if self._pin is not None:
            self._pin.unlink(missing_ok=True)
            self._pin = None
            remove_bpffs(self._folder)


def remove_call_pins(folder: Path, name: str) -> Iterator[Path]:
    """Remove the pins that killed runs have left of a map, whose programs are detached; yields each. HostError."""
    for pin in _pins(folder, name):
        pin.unlink()
        yield pin
    remove_bpffs(folder)


def _pins(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}_[0-9]*")) if folder.is_dir() else []
