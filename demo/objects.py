# SPDX-License-Identifier: Apache-2.0
"""The BPF programs and maps that the demo loads, and whether they are gone in the end."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass

from nfcore.kernel import Program
from nfcore.kernel.syscall import Command, fd_by_id

from .lab import Lab

_GONE_WITHIN = 10.0
"""Seconds. The kernel removes a deleted namespace, with its XDP programs, in the background."""


@dataclass(frozen=True)
class KernelObjects:
    """Ids of programs and of the maps that they use."""

    programs: frozenset[int]
    maps: frozenset[int]

    @classmethod
    def of(cls, lab: Lab) -> KernelObjects:
        """Return the programs that are attached to the lab's interfaces, and their maps."""
        programs = set()
        for role in lab.roles:
            for link in json.loads(lab.run(role, ["ip", "-json", "link", "show"]).stdout):
                if "xdp" in link:
                    programs.add(int(link["xdp"]["prog"]["id"]))
        maps: set[int] = set()
        for number in programs:
            with Program.from_id(number) as program:
                maps.update(program.map_ids())
        return cls(frozenset(programs), frozenset(maps))

    def left(self) -> list[str]:
        """Wait up to 10 s for them to go; returns those that are left, such as ``BPF map 17``."""
        deadline = time.monotonic() + _GONE_WITHIN
        while True:
            found = [f"BPF program {number}" for number in self.programs if _exists(Command.PROG_GET_FD_BY_ID, number)]
            found += [f"BPF map {number}" for number in self.maps if _exists(Command.MAP_GET_FD_BY_ID, number)]
            if not found or time.monotonic() > deadline:
                return sorted(found)
            time.sleep(0.05)


def _exists(command: Command, number: int) -> bool:
    with contextlib.suppress(OSError):
        os.close(fd_by_id(command, number))
        return True
    return False
