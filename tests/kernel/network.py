# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of tests: entered for a moment, and removed with all that is in them. Frames into them."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000


@contextmanager
def enter(namespace: str) -> Iterator[None]:
    """This thread in another network namespace for a moment."""
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{namespace}").open() as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def _setns(fd: int) -> None:
    # Python has os.setns() from 3.12 on.
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def namespaces(*names: str) -> Iterator[None]:
    """Make network namespaces, and remove them at the end."""
    made = []
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            made.append(name)
        yield
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=True)


def ip(namespace: str, *arguments: str) -> str:
    """Run `ip` in a namespace; what it printed."""
    command = ["ip", "-n", namespace, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def send_frame(sender: socket.socket, frame: bytes) -> None:
    """Send a frame, again and again while the link is busy."""
    for _ in range(1000):
        try:
            sender.send(frame)
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            time.sleep(0.001)
    raise AssertionError("the link was busy for a second")
