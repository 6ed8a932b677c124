# SPDX-License-Identifier: Apache-2.0
"""What a daemon must know of the run before it: a small JSON file beside its socket.

Kernel object ids never repeat until the next boot, and /run does not outlive one: an id found here is that object
or gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

log = logging.getLogger(__name__)


class StateFile:
    """Numbers and texts by name. Without a path nothing is kept."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._values: dict[str, int | str] = {}
        self._failed = False
        if path is not None:
            try:
                read = json.loads(path.read_text(encoding="utf-8"))
                self._values = {str(key): _checked(value) for key, value in read.items()}
            except (OSError, ValueError, AttributeError, TypeError, RecursionError):
                self._values = {}

    def recall(self, name: str) -> int | None:
        """Give the number that was remembered, or None."""
        value = self._values.get(name)
        return value if isinstance(value, int) else None

    def recall_text(self, name: str) -> str | None:
        """Give the text that was remembered, or None."""
        value = self._values.get(name)
        return value if isinstance(value, str) else None

    def remember(self, name: str, value: int | str) -> None:
        """Keep a number or a text for the next run."""
        self._values[name] = value
        self._write()

    def forget(self, name: str) -> None:
        """Drop a number or a text; an empty file is removed."""
        self._values.pop(name, None)
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            self._write_to(self._path)
        except OSError as error:
            if not self._failed:
                log.error("notes for the next run cannot be kept in %s: %s", self._path, error.strerror or error)
            self._failed = True
            # What is there is no longer true: without it the next run trusts nothing.
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _write_to(self, path: Path) -> None:
        if not self._values:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(self._values), encoding="utf-8")
        draft.replace(path)


def _checked(value: object) -> int | str:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    raise TypeError(f"a note holds numbers and texts, not {value!r:.60}")
