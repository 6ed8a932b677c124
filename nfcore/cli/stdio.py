# SPDX-License-Identifier: Apache-2.0
"""Standard output as every command finds it: open, of any character set, and with words for what goes wrong with it."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import Any, cast

from ..errors import HostError
from ..text import printable

_REPLACED = str.maketrans(
    {"→": ">", "←": "<", "↑": "^", "↓": "v", "▲": "^", "▼": "v", "–": "-", "…": "~", "×": "x", "█": "#", "░": "."}
    | dict.fromkeys("▁▂▃", "_")
    | dict.fromkeys("▄▅▆", "=")
    | {"▇": "#"}
)
"""What stands for characters that a terminal may not know, one for one: columns stay where they are."""
_ERRORS = "nfcore-replace"


class OutputError(HostError, OSError):
    """Standard output cannot be written."""


class _SafeStdout(io.FileIO):
    """Standard output's descriptor. What cannot be written is said once, and nothing of it is tried again."""

    def write(self, data: Any, /) -> int:
        try:
            # None: somebody who shares the descriptor has made it one that does not wait.
            while (written := cast("int | None", super().write(data))) is None:
                select.select([], [self], [])
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if isinstance(error, BrokenPipeError):
                raise
            words = "is closed" if error.errno == errno.EBADF else f"cannot be written: {error.strerror}"
            raise OutputError(f"standard output: {words}") from None
        return written


def prepare_streams() -> None:
    """Make the standard streams fit to be used, output in any case. Once, before anything else opens a file."""
    _occupy()
    codecs.register_error(_ERRORS, _replace)
    before = sys.stdout
    # Whoever closed it has no use for a character set.
    encoding = before.encoding if before is not None else "utf-8"
    at_once = bool(before is not None and (before.line_buffering or getattr(before, "write_through", False)))
    raw = _SafeStdout(1, "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=_ERRORS, newline="\n", line_buffering=at_once
    )
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors=_ERRORS, closefd=False)  # noqa: SIM115 - for good


def _occupy() -> None:
    """Let none of the first three descriptors be free: the next socket would get it, and what is printed would go
    there. Written to standard output that was closed fails, as it should.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            there = os.open(os.devnull, mode)
            if there != number:
                os.dup2(there, number)
                os.close(there)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_REPLACED)
    text = "".join("?" if char.isprintable() and not char.isascii() else char for char in text)
    return printable(text), error.end
