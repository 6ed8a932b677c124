# SPDX-License-Identifier: Apache-2.0
"""The terminal of `nfcore top`: drawn on, read key by key, and restored in the end whatever happens."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType
from typing import Any, Self

from rich.console import Console, Group
from rich.text import Text

_ENDS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGPOLL,
    signal.SIGPWR,
    signal.SIGXCPU,
    signal.SIGABRT,
)
"""All signals that would end the program and can be caught, except those of its own faults such as SIGSEGV."""
_OTHERS = (signal.SIGWINCH, signal.SIGTSTP)


class Terminal:
    """Context in which the program has the terminal. Signals do not end it; `ended` is set to the first of them.

    Ctrl-Z restores the terminal and stops the program; when it continues it takes the terminal again.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.ended: int | None = None
        """The first signal that should end the program."""
        self._stop_wanted = False
        self._input = sys.stdin.fileno()
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._read, self._write = os.pipe()

    def __enter__(self) -> Self:
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in (*_ENDS, *_OTHERS)}
        self._take()
        return self

    def __exit__(self, *about: object) -> None:
        self._restore()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def _take(self) -> None:
        self._before = termios.tcgetattr(self._input)
        tty.setcbreak(self._input)
        self.console.set_alt_screen(True)
        self.console.show_cursor(False)

    def _restore(self) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.console.show_cursor(True)
            self.console.set_alt_screen(False)
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number in _ENDS and self.ended is None:
            self.ended = number
        self._stop_wanted |= number == signal.SIGTSTP

    def wake(self) -> None:
        """End :meth:`wait`, from any thread."""
        with contextlib.suppress(OSError):  # the pipe is full, so it wakes anyway
            os.write(self._write, b"\0")

    def wait(self, seconds: float | None) -> bytes:
        """Wait for keys, a signal or :meth:`wake`; returns the bytes of the keys."""
        ready, _, _ = select.select([self._input, self._read], [], [], seconds)
        if self._read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 4096)
        if self._stop_wanted:
            self._stop_wanted = False
            self._restore()
            os.kill(os.getpid(), signal.SIGSTOP)
            self._take()
        if self._input not in ready:
            return b""
        try:
            data = os.read(self._input, 4096)
        except OSError:
            data = b""
        if not data and self.ended is None:  # the terminal is gone
            self.ended = signal.SIGHUP
        return data

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines at present."""
        try:
            size = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            return 80, 24
        return max(1, size.columns), max(1, size.lines)

    def show(self, lines: Sequence[Text]) -> None:
        """Draw lines from the top; what is wider than the terminal is cut off."""
        width, _ = self.size
        self.console.width = width
        with self.console.capture() as capture:
            self.console.print(Group(*lines), no_wrap=True, overflow="crop", end="")
        drawn = capture.get().removesuffix("\n").split("\n")
        # Each line is erased before it is written: after a full line the cursor is still on its last character.
        self.console.file.write("\x1b[H" + "\r\n".join(f"\x1b[2K{line}" for line in drawn))
        self.console.file.flush()
