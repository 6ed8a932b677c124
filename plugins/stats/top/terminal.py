# SPDX-License-Identifier: Apache-2.0
"""A terminal that is drawn on and read key by key, and is as it was afterwards, whatever happens."""

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
"""What ends a program unless it is caught: all that can be caught where the program itself is not at fault."""
_OTHERS = (signal.SIGWINCH, signal.SIGTSTP)


class Terminal:
    """A context in which the terminal is ours. Signals are noted and end nothing by themselves: `ended` has the first.

    Ctrl-Z gives the terminal back, stops, and takes it again.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.ended: int | None = None
        """The signal that asks for the end."""
        self._stop_wanted = False
        self._input = sys.stdin.fileno()
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._read, self._write = os.pipe()

    def __enter__(self) -> Self:
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, self._note) for number in (*_ENDS, *_OTHERS)}
        self._take()
        return self

    def __exit__(self, *about: object) -> None:
        self._give_back()
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

    def _give_back(self) -> None:
        # Also when the terminal is gone, which is no reason to say so.
        with contextlib.suppress(OSError):
            self.console.show_cursor(True)
            self.console.set_alt_screen(False)
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number in _ENDS and self.ended is None:
            self.ended = number
        self._stop_wanted |= number == signal.SIGTSTP

    def wake(self) -> None:
        """End a wait, from any thread."""
        with contextlib.suppress(OSError):  # full: it will wake anyway
            os.write(self._write, b"\0")

    def wait(self, seconds: float | None) -> bytes:
        """Wait for keys, a signal or :meth:`wake`; what was typed."""
        ready, _, _ = select.select([self._input, self._read], [], [], seconds)
        if self._read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 4096)
        if self._stop_wanted:
            self._stop_wanted = False
            self._give_back()
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
        """Columns and lines, as they are now."""
        try:
            size = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            return 80, 24
        return max(1, size.columns), max(1, size.lines)

    def show(self, lines: Sequence[Text]) -> None:
        """Draw lines from the top, no wider and no more than there is room for."""
        width, _ = self.size
        self.console.width = width
        with self.console.capture() as capture:
            self.console.print(Group(*lines), no_wrap=True, overflow="crop", end="")
        drawn = capture.get().removesuffix("\n").split("\n")
        # Erased before and not after it is written: behind a full line the cursor still stands on its last character.
        self.console.file.write("\x1b[H" + "\r\n".join(f"\x1b[2K{line}" for line in drawn))
        self.console.file.flush()
