# SPDX-License-Identifier: Apache-2.0
"""Watches whether the program is still at the egress: nothing announces that another tool has detached it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from nfcore.errors import HostError
from nfcore.kernel import Closing, egress_programs, interface_exists

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
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="healthcheck", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._stop.set()
        self._thread.join()

    def warnings(self) -> Iterator[str]:
        """Give a warning, for `/healthz`, when the program is gone, or nobody can tell."""
        if self._trouble:
            yield self._trouble

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD):
            there, trouble = self._look()
            if trouble and trouble != self._trouble:
                log.error("%s", trouble)
            self.attached, self._trouble = there, trouble

    def _look(self) -> tuple[bool, str]:
        """Say whether the program is there, as far as is known, and what is wrong."""
        program = f"{self._interface}: the program of health checks"
        try:
            there = is_attached(self._ifindex, self._program)
        except (HostError, OSError) as error:  # such as too many open files
            return self.attached, f"{program} cannot be looked for: {error}"
        return there, "" if there else f"{program} is no longer at the egress: restart nfcore"


def is_attached(ifindex: int, program: int) -> bool:
    """Whether the program is at the egress of the interface now. HostError: the kernel does not tell."""
    try:
        return interface_exists(ifindex) and program in egress_programs(ifindex, FILTER_PRIORITY)
    except HostError:
        if interface_exists(ifindex):
            raise
        return False  # it has just gone
