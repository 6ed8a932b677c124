# SPDX-License-Identifier: Apache-2.0
"""What maps and programs have in common: an open descriptor, a pin, an end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from ..errors import HostError
from ..refusals import Capability, explain
from .pins import obj_pin
from .syscall import Command, fd_by_id


class Closing:
    """A context manager that is closed at its end."""

    def close(self) -> None:
        """Give up what it holds. Idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class KernelObject(Closing):
    """A map or program behind a file descriptor, which it owns."""

    _label = ""
    """What it is, with its name, for messages."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        """The open file descriptor; ValueError after close()."""
        if self._fd < 0:
            raise ValueError(f"{self._label} is closed")
        return self._fd

    def pin(self, path: Path) -> None:
        """Pin it at ``path`` on a bpf file system, where it outlives the process. HostError."""
        obj_pin(self.fd, path)

    def close(self) -> None:
        """Close the descriptor. Attachments, programs, pins and memory mappings keep the object alive. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __repr__(self) -> str:
        return f"<{self._label}{' closed' if self._fd < 0 else ''}>"


def open_by_id(command: Command, identifier: int, kind: str) -> tuple[int, str]:
    """Open the object with this id: its descriptor, and its description for messages. HostError."""
    place = f"the {kind} with id {identifier}"
    try:
        return fd_by_id(command, identifier), place
    except OSError as error:
        raise HostError(f"cannot open {place}: {explain(error, needs=[Capability.SYS_ADMIN])}") from error
