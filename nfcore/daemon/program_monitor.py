# SPDX-License-Identifier: Apache-2.0
"""Checks whether nfcore's XDP programs are attached, and chains whole: when a link changes, and every few seconds.

A program that was detached is not attached again, and another program in its place stays: either may be intended. The
daemon reports it as an error instead. The device's worker calls the kernel, because that call may wait for the kernel's
RTNL lock.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from ..api.health import Attachment, Health
from ..api.rules import Device
from ..devices.device_state import DeviceState
from ..engine.event_kind import EventKind
from ..engine.state import EngineState
from ..errors import HostError
from ..kernel import AttachedXdp, attached_xdp, removal_advice
from .chain import Chains

log = logging.getLogger(__name__)
PERIOD = 5.0
"""Seconds between two checks of a link without an announced change: not every way to attach is announced."""


@dataclass(frozen=True)
class _Found:
    """What a check has found."""

    attached: AttachedXdp | None
    missing: tuple[str, ...]
    """Functions that the device's chain has lost."""
    advice: str = ""
    """How to remove the program that is there instead."""


@dataclass
class _Watched:
    device: DeviceState
    chain: Device
    expected: AttachedXdp
    due: float
    """Time of the next check."""
    checking: bool = False
    told: int | None = None
    """Id of the program in its place that was reported last."""


class ProgramMonitor:
    """Checks the programs of devices, and writes the results to `health`. For the engine's thread."""

    def __init__(self, state: EngineState, health: Health, chains: Chains) -> None:
        self._state, self._health, self._chains = state, health, chains
        self._watched: dict[int, _Watched] = {}

    def add(self, device: Device) -> None:
        """Monitor the program that is attached to a device now. HostError when the kernel does not name it."""
        attached = attached_xdp(device.ifindex)
        if attached is not None:
            state, due = self._state.devices[device.ifindex], self._state.clock() + PERIOD
            self._watched[device.ifindex] = _Watched(state, device, attached, due)
            self._health.attached[device.name] = Attachment(attached.id)

    def run(self, changed: Collection[int]) -> None:
        """Let the workers check the devices that are due or whose link has `changed`; never waits."""
        now = self._state.clock()
        for ifindex, watched in self._watched.items():
            if ifindex in changed:
                watched.due = now
            if now >= watched.due and not watched.checking:
                self._check(ifindex, watched, now + PERIOD)

    def _check(self, ifindex: int, watched: _Watched, next_check: float) -> None:
        def look() -> _Found:
            there, missing = attached_xdp(ifindex), tuple(self._chains.missing(watched.chain))
            other = there is not None and there.id not in (watched.expected.id, watched.told)
            return _Found(there, missing, removal_advice(ifindex) if other else "")

        def done(found: _Found | Exception) -> None:
            watched.checking = False
            self._take_result(watched, found)

        # Set first: `done` may be called before `submit` returns.
        watched.checking = True
        if watched.device.worker.submit(look, done):
            watched.due = next_check
        else:
            watched.checking = False

    def _take_result(self, watched: _Watched, found: _Found | Exception) -> None:
        """Note what is attached now, and report a change."""
        name, expected = watched.device.name, watched.expected
        before = self._health.attached[name]
        attached, missing = (found.attached, found.missing) if isinstance(found, _Found) else (None, ())
        other = None if attached in (expected, None) else attached.id
        now = Attachment(expected.id, there=attached == expected, other=other, missing=missing)
        self._health.attached[name] = now
        # HostError: the interface is gone, which the daemon has reported already.
        if now == before or isinstance(found, HostError):
            return
        watched.told = other
        advice = found.advice if isinstance(found, _Found) else ""
        message = "the program is attached again" if now.works else f"{now.message}; {_advice(now, advice)}"
        log.log(logging.WARNING if now.works else logging.ERROR, "%s: %s", name, message)
        self._state.events.note(EventKind.LINK, message, name)


def _advice(attachment: Attachment, removal: str) -> str:
    """What to do when nfcore's program is not attached any more, or its chain is not whole."""
    if attachment.there:
        return "no packet reaches it or what comes after it; to have it back restart nfcore"
    first = f"{removal}, and " if removal else ""
    return f"no packet reaches it; to have it back {first}restart nfcore"
