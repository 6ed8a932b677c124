# SPDX-License-Identifier: Apache-2.0
"""The standard streams of every command: always open, any character set, one clear error when output fails."""

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
"""Replacements for characters that the output's encoding lacks. One for one, so that columns stay aligned."""
_ERRORS = "nfcore-replace"


class OutputError(HostError, OSError):
    """Standard output cannot be written."""


class _SafeStdout(io.FileIO):
    """Standard output's descriptor. After the first failed write it leads to /dev/null, so one error is reported."""

    def write(self, data: Any, /) -> int:
        try:
            # None: another process that shares the descriptor has made it non-blocking.
            while (written := cast("int | None", super().write(data))) is None:
                select.select([], [self], [])
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if isinstance(error, BrokenPipeError):
                raise
            reason = "is closed" if error.errno == errno.EBADF else f"cannot be written: {error.strerror}"
            raise OutputError(f"standard output: {reason}") from None
        return written


def prepare_streams() -> None:
    """Make the standard streams usable. Call it once, before anything else opens a file."""
    _open_missing_descriptors()
    codecs.register_error(_ERRORS, _replace)
    before = sys.stdout  # None when descriptor 1 was closed
    encoding = before.encoding if before is not None else "utf-8"
    by_line = bool(before is not None and (before.line_buffering or getattr(before, "write_through", False)))
    raw = _SafeStdout(1, "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=_ERRORS, newline="\n", line_buffering=by_line
    )
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - until the process ends
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors=_ERRORS, closefd=False)  # noqa: SIM115 - until the process ends


def stdout_is_closed() -> bool:
    """Whether standard output is a pipe whose reader has closed it; needs no write to find out."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _open_missing_descriptors() -> None:
    """Open /dev/null for each of the descriptors 0 to 2 that is closed.

    Otherwise the next socket would get its number, and output would go there. Standard output is opened read-only, so
    that a write to it still fails.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_REPLACED)
    text = "".join("?" if char.isprintable() and not char.isascii() else char for char in text)
    return printable(text), error.end
