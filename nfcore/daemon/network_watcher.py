# SPDX-License-Identifier: Apache-2.0
"""Has network functions look anew at the network when it may have changed: next hops, neighbours, addresses, ports.

A thread of its own listens to the kernel and looks, because that may wait for the kernel's RTNL lock. What has to be
done about it is done on the engine's thread.

    NetworkMonitor ──► thread: resolve() of each function, ports of devices ──► engine's thread: the result is applied
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from ..api.network_function import NetworkFunction
from ..api.rules import Device
from ..api.steps import Steps
from ..engine.event_kind import EventKind
from ..engine.state import EngineState
from ..kernel import Closing
from ..kernel.links import ports_of, read_link
from ..kernel.network_monitor import NetworkMonitor

log = logging.getLogger(__name__)
PERIOD = 5.0
"""Seconds between two looks without a notification. A look also has neighbours confirmed: the kernel does not notice
by itself that a router is gone to which XDP alone sends."""
SETTLE = 0.02
"""Seconds to wait for more after a notification: they come in bursts."""
SHARE = 4
"""The pause after a look is at least so many times as long as the look: a storm of routes must not take the CPU."""


class NetworkWatcher(Closing):
    """Looks at the network for as long as it is open. OSError: no netlink socket."""

    def __init__(self, state: EngineState, deliver: Callable[[Callable[[], None]], None]) -> None:
        """Listen from now on, and look for the ports of the devices. deliver: makes a call on the engine's thread."""
        self._state, self._deliver = state, deliver
        self._devices: Sequence[Device] = state.context.devices
        self._troubles: frozenset[str] = frozenset()
        self._monitor = NetworkMonitor([device.ifindex for device in self._devices])
        self._stopped, self._wake = False, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        state.ports = self._find_ports()
        self._thread = threading.Thread(target=self._run, name="network-watcher", daemon=True)

    def start(self) -> None:
        """Begin to look. The functions must be set up."""
        self._thread.start()

    def close(self) -> None:
        """Stop. Idempotent."""
        if not self._stopped:
            self._stopped = True
            os.eventfd_write(self._wake, 1)
            if self._thread.is_alive():
                self._thread.join()
            self._monitor.close()
            os.close(self._wake)

    def look_in_steps(self) -> Steps[list[str]]:
        """Look for a reload, in steps. Returns what has changed, a sentence each."""
        changes: list[str] = []
        for nf in self._state.context.nfs:
            try:
                apply = yield nf.resolve
                changes += [] if apply is None else self._apply(nf, apply)
            except Exception as error:
                log.error("%s: the network cannot be looked at: %s", nf.name, error)
                log.debug("traceback", exc_info=error)
        return changes

    # The thread

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._monitor, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        pause = 0.0
        while not self._stopped:
            self._wait(poll)
            time.sleep(max(SETTLE, pause))
            began = time.monotonic()
            self._drain()
            try:
                self._look()
            except Exception as error:
                log.error("the network cannot be looked at: %s", error)
                log.debug("traceback", exc_info=error)
            pause = SHARE * (time.monotonic() - began)

    def _wait(self, poll: select.poll) -> None:
        """Wait until something may have changed that matters, or the period is over."""
        due = time.monotonic() + PERIOD
        while not self._stopped and (left := due - time.monotonic()) > 0:
            ready = poll.poll(left * 1000)
            if any(fd == self._wake for fd, _ in ready) or (ready and self._monitor.poll()):
                return

    def _drain(self) -> None:
        self._monitor.poll()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _look(self) -> None:
        ports = self._find_ports()
        if ports != self._state.ports:
            self._deliver(lambda: self._take_ports(ports))
        for nf in self._state.context.nfs:
            apply = nf.resolve()
            if apply is not None:
                self._deliver(partial(self._report, nf, apply))

    def _find_ports(self) -> dict[int, int]:
        """Ifindex of a port → that of the device whose packets it receives."""
        found = {}
        for device in self._devices:
            link = read_link(device.ifindex)
            if link is not None and link.is_aggregate:
                found.update({port.ifindex: device.ifindex for port in ports_of(device.ifindex)})
        return found

    # The engine's thread

    def _take_ports(self, ports: dict[int, int]) -> None:
        self._state.ports = ports

    def _report(self, nf: NetworkFunction, apply: Callable[[], Sequence[str]]) -> None:
        try:
            self._apply(nf, apply)
        except Exception as error:
            log.error("%s: what was found in the network cannot be applied: %s", nf.name, error)
            log.debug("traceback", exc_info=error)

    def _apply(self, nf: NetworkFunction, apply: Callable[[], Sequence[str]]) -> list[str]:
        """Apply what a function has found, and report what has changed and what is wrong now."""
        changes = list(apply())
        for sentence in changes:
            log.warning("%s: %s", nf.name, sentence)
            self._state.events.note(EventKind.LINK, f"{nf.name}: {sentence}")
        troubles = frozenset(
            each for source in self._state.context.services.health.trouble_sources for each in source()
        )
        for trouble in sorted(troubles - self._troubles):
            log.error("%s", trouble)
            self._state.events.note(EventKind.LINK, trouble)
        if self._troubles and not troubles:
            log.warning("%s: all next hops are known again", nf.name)
        self._troubles = troubles
        return changes
