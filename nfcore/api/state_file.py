# SPDX-License-Identifier: Apache-2.0
"""The state file: values that a run leaves for the next one, in a small JSON file beside the socket.

It may be lost at any time. What is in the kernel says itself whose it is (:mod:`nfcore.kernel.ownership`).
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

from ..folders import make_folder, write_file
from ..refusals import explain

log = logging.getLogger(__name__)


class StateFile:
    """Numbers and texts by name. Without a path nothing is written."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._values: dict[str, int | str] = {}
        self._has_failed = False
        if path is not None:
            # A missing or damaged file is an empty one.
            with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):
                read = json.loads(path.read_text(encoding="utf-8"))
                self._values = {str(key): _checked(value) for key, value in read.items()}

    def get_number(self, name: str) -> int | None:
        """Give the number under `name`, or None."""
        value = self._values.get(name)
        return value if isinstance(value, int) else None

    def get_text(self, name: str) -> str | None:
        """Give the text under `name`, or None."""
        value = self._values.get(name)
        return value if isinstance(value, str) else None

    def set(self, name: str, value: int | str) -> None:
        """Keep a number or a text for the next run."""
        self._values[name] = value
        self._write()

    def remove(self, name: str) -> None:
        """Remove a number or a text; an empty file is deleted."""
        self._values.pop(name, None)
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            self._write_to(self._path)
        except OSError as error:
            if not self._has_failed:
                log.error("state file %s cannot be written: %s", self._path, explain(error, self._path))
            self._has_failed = True
            # The old file is wrong now. Without a file the next run relies on nothing.
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _write_to(self, path: Path) -> None:
        if not self._values:
            path.unlink(missing_ok=True)
            return
        make_folder(path.parent)
        draft = path.with_name(path.name + ".new")
        write_file(draft, json.dumps(self._values).encode())
        draft.replace(path)


def _checked(value: object) -> int | str:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    raise TypeError(f"a state file holds numbers and texts, not {value!r:.60}")
