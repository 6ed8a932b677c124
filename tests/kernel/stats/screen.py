# SPDX-License-Identifier: Apache-2.0
"""A command on a pseudo-terminal, and what its screen shows: keys go in, an emulated terminal is looked at."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from typing import Any, Self

import pyte

PATIENCE = 20.0
"""Seconds until something that should be seen counts as missing."""


class Screen:
    """A context manager; the command is killed at its end if it still runs."""

    def __init__(self, command: Sequence[str], columns: int = 80, lines: int = 24, **variables: str) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self._master, slave = pty.openpty()
        self._slave = slave
        self._size(columns, lines)
        self.before: list[Any] = termios.tcgetattr(slave)
        environment = os.environ | {"TERM": "xterm-256color"} | variables
        environment.pop("COLUMNS", None)
        environment.pop("LINES", None)
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """Make the window another size, and tell the command as a terminal does."""
        self._screen.resize(lines, columns)
        self._size(columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def _look(self, seconds: float) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            with contextlib.suppress(OSError):
                data = os.read(self._master, 1 << 16)
                self.raw += data
                self._stream.feed(data)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def shows(self, *words: str, gone: Sequence[str] = ()) -> str:
        """Wait until the screen shows all the words and none of those that should be gone; its text."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self._look(0.1)
            text = self.text
            if all(word in text for word in words) and not any(word in text for word in gone):
                return text
            assert self.process.poll() is None or self._pending(), f"it has ended; its screen:\n{self.text}"
        raise AssertionError(f"{words} (without {gone}) is not on the screen:\n{self.text}")

    def _pending(self) -> bool:
        return bool(select.select([self._master], [], [], 0)[0])

    def wait(self) -> int:
        """Wait for the end of the command, taking what it writes; its exit status."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            self._look(0.1)
        status = self.process.wait(1)
        while self._pending():
            self._look(0)
        return status

    def is_restored(self) -> bool:
        """Whether the terminal is as it was: its modes, the cursor, the screen that was there before."""
        modes = termios.tcgetattr(self._slave) == self.before
        cursor = self.raw.rfind(b"\x1b[?25h") > self.raw.rfind(b"\x1b[?25l")
        return modes and cursor and self.raw.rfind(b"\x1b[?1049l") > self.raw.rfind(b"\x1b[?1049h")
