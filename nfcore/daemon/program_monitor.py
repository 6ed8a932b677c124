# SPDX-License-Identifier: Apache-2.0
"""Whether the programs that were attached still are: looked after when a link changes, and every few seconds.

What somebody took off is not put back, and what somebody put in its place stays: it may have been meant. It is said
loudly instead. A device's worker asks, since the kernel answers under the lock under which drivers are changed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from ..api.health import Attachment, Health, make_way
from ..devices.device_state import DeviceState
from ..engine.event_kind import EventKind
from ..engine.state import EngineState
from ..errors import HostError
from ..kernel import AttachedXdp, attached_xdp

log = logging.getLogger(__name__)
PERIOD = 5.0
"""Seconds between two looks at a link about which nothing was announced: not every way to attach is."""


@dataclass
class _Watched:
    device: DeviceState
    expected: AttachedXdp
    due: float
    asking: bool = False


class ProgramMonitor:
    """Follows the programs of devices, for `health` to know. For the engine's thread."""

    def __init__(self, state: EngineState, health: Health) -> None:
        self._state, self._health = state, health
        self._watched: dict[int, _Watched] = {}

    def add(self, ifindex: int) -> None:
        """Follow what is attached to a device of the engine now. HostError when the kernel does not tell."""
        device, attached = self._state.devices[ifindex], attached_xdp(ifindex)
        if attached is not None:
            self._watched[ifindex] = _Watched(device, attached, self._state.clock() + PERIOD)
            self._health.attached[device.name] = Attachment(attached.id)

    def run(self, changed: Collection[int]) -> None:
        """Have it looked at where it is due, or where the link has `changed`; never waits."""
        now = self._state.clock()
        for ifindex, watched in self._watched.items():
            if ifindex in changed:
                watched.due = now
            if now >= watched.due and not watched.asking:
                self._ask(ifindex, watched, now + PERIOD)

    def _ask(self, ifindex: int, watched: _Watched, following: float) -> None:
        def done(found: AttachedXdp | Exception | None) -> None:
            watched.asking = False
            self._take(watched, found)

        # The answer may come before `submit` returns.
        watched.asking = True
        if watched.device.worker.submit(lambda: attached_xdp(ifindex), done):
            watched.due = following
        else:
            watched.asking = False

    def _take(self, watched: _Watched, found: AttachedXdp | Exception | None) -> None:
        name, expected = watched.device.name, watched.expected
        before = self._health.attached[name]
        other = None if found == expected or not isinstance(found, AttachedXdp) else found.id
        now = Attachment(expected.id, there=found == expected, other=other)
        self._health.attached[name] = now
        # Without the interface there is no program, which has been said by whoever follows the links.
        if now == before or isinstance(found, HostError):
            return
        words = "the program is attached again" if now.there else f"{now.trouble}; {_advice(now, name)}"
        log.log(logging.WARNING if now.there else logging.ERROR, "%s: %s", name, words)
        self._state.events.note(EventKind.LINK, words, name)


def _advice(attachment: Attachment, name: str) -> str:
    """What to do when a program of ours is not where it was."""
    first = "" if attachment.other is None else f"{make_way(name)}, and "
    return f"no packet reaches it; to have it back {first}restart nfcore"
