# SPDX-License-Identifier: Apache-2.0
"""Which files this process has open, to show that none is left open."""

from __future__ import annotations

import gc
from contextlib import suppress
from pathlib import Path


def open_files() -> set[tuple[str, str]]:
    """Return number and target of each open file. What earlier tests left to the garbage collector is closed first."""
    gc.collect()
    files = set()
    for each in Path("/proc/self/fd").iterdir():
        # The one that reads this folder is closed by now.
        with suppress(FileNotFoundError):
            files.add((each.name, str(each.readlink())))
    return files
