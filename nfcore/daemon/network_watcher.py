# SPDX-License-Identifier: Apache-2.0
"""Has network functions look anew at the network when it may have changed: next hops, neighbours, addresses, ports.

A thread of its own listens to the kernel and looks, because that may wait for the kernel's RTNL lock. What has to be
done about it is done on the engine's thread.

    NetworkMonitor ──► thread: resolve() of each function, ports of devices ──► engine's thread: the result is applied

A function's looks come one after another: the next begins when the result of the last has been applied.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
LATE = 30.0
"""Seconds without a look that has worked, the pause not counted, after which the daemon is not well."""
NOTIFICATIONS, INTERFACES = "notifications", "interfaces"
"""What listening and a look at ports are called in messages, where others have the name of a function."""


class NetworkWatcher(Closing):
    """Looks at the network for as long as it is open. OSError: no netlink socket."""

    def __init__(self, state: EngineState, deliver: Callable[[Callable[[], None]], None]) -> None:
        """Listen from now on, and look for the ports of the devices. deliver: makes a call on the engine's thread."""
        self._state, self._deliver = state, deliver
        self._devices: Sequence[Device] = state.context.devices
        self._troubles: frozenset[str] = frozenset()
        self._monitor = NetworkMonitor([device.ifindex for device in self._devices])
        self._stopped, self._wake = False, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._turn, self._looks = threading.Condition(), dict[str, object]()
        """Name of a function → its look whose result has not been applied yet."""
        self._pause = SETTLE
        self._looked: dict[str, float] = {}
        """What was looked at → when that has worked last."""
        self._errors: dict[str, str] = {}
        state.ports = self._find_ports()
        self._thread = threading.Thread(target=self._run, name="network-watcher", daemon=True)

    def start(self) -> None:
        """Begin to look. The functions must be set up."""
        names = [NOTIFICATIONS, INTERFACES, *(nf.name for nf in self._state.context.nfs)]
        self._looked = dict.fromkeys(names, time.monotonic())
        self._state.context.services.health.trouble_sources.append(self._late)
        self._thread.start()

    def close(self) -> None:
        """Stop. Idempotent."""
        if not self._stopped:
            with self._turn:
                self._stopped = True
                self._turn.notify_all()
            os.eventfd_write(self._wake, 1)
            if self._thread.is_alive():
                self._thread.join()
            self._monitor.close()
            os.close(self._wake)

    def look_in_steps(self) -> Steps[list[str]]:
        """Look for a reload, in steps. Returns what has changed, a sentence each."""
        changes: list[str] = []
        for nf in self._state.context.nfs:
            look = object()
            try:
                apply = yield partial(self._resolve, nf, look)
                changes += [] if apply is None else self._apply(nf, apply)
            except Exception as error:
                log.error("%s: the network cannot be looked at: %s", nf.name, error)
                log.debug("traceback", exc_info=error)
            finally:
                self._end(nf, look)
        return changes

    def _resolve(self, nf: NetworkFunction, look: object) -> Callable[[], Sequence[str]] | None:
        """Let a function look once its last look is over; until `_end` no other one begins."""
        with self._turn:
            # Not for ever: at a stop the event loop applies nothing more, and waits for a reload that looks.
            self._turn.wait_for(lambda: self._stopped or nf.name not in self._looks, PERIOD)
            if self._stopped:
                return None
            self._looks[nf.name] = look
        return nf.resolve()

    def _end(self, nf: NetworkFunction, look: object) -> None:
        with self._turn:
            if self._looks.get(nf.name) is look:
                del self._looks[nf.name]
                self._turn.notify_all()

    def _late(self) -> Iterator[str]:
        """Say what has not been looked at for long. Any thread calls it."""
        for name, looked in self._looked.items():
            if (seconds := time.monotonic() - looked) > LATE + self._pause:
                why = f": {self._errors[name]}" if name in self._errors else ""
                yield f"{name}: the network has not been looked at for {seconds:.0f} s{why}"

    # The thread

    def _run(self) -> None:
        while not self._stopped:
            if not self._try(NOTIFICATIONS, self._wait):
                self._sleep(PERIOD)
            began = time.monotonic()
            self._try(INTERFACES, self._look_for_ports)
            for nf in self._state.context.nfs:
                self._try(nf.name, partial(self._look, nf))
            self._pause = max(SETTLE, SHARE * (time.monotonic() - began))

    def _wait(self) -> None:
        """Wait until something may have changed that matters, or the period is over, and a pause for more."""
        poll = select.poll()
        poll.register(self._monitor, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        due = time.monotonic() + PERIOD
        while not self._stopped and (left := due - time.monotonic()) > 0:
            if poll.poll(left * 1000) and self._monitor.poll():
                break
        self._sleep(self._pause)
        self._monitor.poll()  # what has come meanwhile is looked at, too

    def _sleep(self, seconds: float) -> None:
        """Let time pass, unless it is stopped."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.poll(seconds * 1000)

    def _try(self, name: str, look: Callable[[], None]) -> bool:
        """Look, unless it is stopped; whether that has worked. What fails is said when it begins to fail."""
        if self._stopped:
            return False
        try:
            look()
        except Exception as error:
            if self._errors.get(name) != str(error):
                log.error("%s: the network cannot be looked at: %s", name, error)
                log.debug("traceback", exc_info=error)
            self._errors[name] = str(error)
            return False
        self._errors.pop(name, None)
        self._looked[name] = time.monotonic()
        return True

    def _look(self, nf: NetworkFunction) -> None:
        look = object()
        try:
            apply = self._resolve(nf, look)
        except Exception:
            self._end(nf, look)
            raise
        if apply is None:
            self._end(nf, look)
        else:
            self._deliver(partial(self._report, nf, look, apply))

    def _look_for_ports(self) -> None:
        ports = self._find_ports()
        if ports != self._state.ports:
            self._deliver(lambda: self._take_ports(ports))

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

    def _report(self, nf: NetworkFunction, look: object, apply: Callable[[], Sequence[str]]) -> None:
        try:
            self._apply(nf, apply)
        except Exception as error:
            log.error("%s: what was found in the network cannot be applied: %s", nf.name, error)
            log.debug("traceback", exc_info=error)
        finally:
            self._end(nf, look)

    def _apply(self, nf: NetworkFunction, apply: Callable[[], Sequence[str]]) -> list[str]:
        """Apply what a function has found, and report what has changed and what is wrong now."""
        changes = list(apply())
        for sentence in changes:
            log.warning("%s: %s", nf.name, sentence)
            self._state.events.note(EventKind.LINK, f"{nf.name}: {sentence}")
        sources = self._state.context.services.health.trouble_sources
        troubles = frozenset(each for source in sources if source != self._late for each in source())
        for trouble in sorted(troubles - self._troubles):
            log.error("%s", trouble)
            self._state.events.note(EventKind.LINK, trouble)
        if self._troubles and not troubles:
            log.warning("all is well again; what was wrong: %s", "; ".join(sorted(self._troubles)))
        self._troubles = troubles
        return changes
