# SPDX-License-Identifier: Apache-2.0
"""Watches whether the program is still at the egress: nothing announces that another tool has detached it."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator

from nfcore.errors import HostError
from nfcore.kernel import Closing, egress_programs

from .program import FILTER_PRIORITY

log = logging.getLogger(__name__)
PERIOD = 2.0
"""Seconds between two looks."""


class Presence(Closing):
    """Looks in a thread of its own, because the kernel's answer may wait for its RTNL lock."""

    def __init__(self, interface: str, ifindex: int, program: int) -> None:
        """Begin to watch an attached program."""
        self._interface, self._ifindex, self._program = interface, ifindex, program
        self.attached = True
        """Whether the program was there at the last look."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="healthcheck", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._stop.set()
        self._thread.join()

    def warnings(self) -> Iterator[str]:
        """Give a warning, for `/healthz`, when the program is gone."""
        if not self.attached:
            yield self._message

    @property
    def _message(self) -> str:
        return f"{self._interface}: the program of health checks is no longer at the egress: restart nfcore"

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD):
            there = is_attached(self._ifindex, self._program)
            if self.attached and not there:
                log.error("%s", self._message)
            self.attached = there


def is_attached(ifindex: int, program: int) -> bool:
    """Whether the program is at the egress of the interface now."""
    try:
        return exists(ifindex) and program in egress_programs(ifindex, FILTER_PRIORITY)
    except HostError:  # the interface has just gone
        return False


def exists(ifindex: int) -> bool:
    """Whether there is an interface with this index."""
    return ifindex in {index for index, _ in socket.if_nameindex()}
