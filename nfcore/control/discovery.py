# SPDX-License-Identifier: Apache-2.0
"""Finds the sockets of the daemons that run on this machine, whatever their TOMLs call them.

The kernel's list of listening Unix sockets is the source, and `/proc` tells whose they are; no daemon has to note
anything. Other users' processes do not show their descriptors: without root there may be fewer.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from .client import daemon_answers

_LISTENING = 0x10000
"""``__SO_ACCEPTCON`` in the column Flags of /proc/net/unix."""


def running_daemons() -> list[Path]:
    """The sockets of running daemons that answer, sorted: those in this network namespace, else those in any."""
    here: set[Path] = set()
    anywhere: set[Path] = set()
    own = Path("/proc/self/ns/net").stat()
    for process in _daemons():
        with contextlib.suppress(OSError):
            found = {path for path in _sockets(process) if daemon_answers(path)}
            anywhere |= found
            here |= found if os.path.samestat((process / "ns/net").stat(), own) else set()
    return sorted(here or anywhere)


def _daemons() -> Iterator[Path]:
    """Folders in /proc of the processes that are an `nfcore run`."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text(errors="surrogateescape").split("\0")
            if "run" in words and any(Path(word).name.startswith("nfcore") for word in words):
                yield process


def _sockets(process: Path) -> Iterator[Path]:
    """Paths of the sockets on which a process listens. OSError: it has ended, or does not show them."""
    inodes = set()
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(str(descriptor.readlink()))
    for line in (process / "net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path
        fields = re.split(r" +", line, maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & _LISTENING and f"socket:[{fields[6]}]" in inodes:
            yield Path(fields[7])
