# SPDX-License-Identifier: Apache-2.0
"""Reports hooks that take too long while they still run, and interrupts those that block the event loop for good.

The event loop reads reports, serves the socket and handles SIGTERM: without it the daemon does nothing more. A worker's
thread that waits for its NIC blocks only its own device; its hook is reported, but not interrupted.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from ..api.hookspecs import ROLES, Runs
from .faults import Fault, HookTimeoutError
from .manager import SLOW, Call, PluginManager

PERIOD = SLOW / 2
"""Seconds between two checks."""
STUCK = 30.0
"""Seconds after which a hook that is not on the event loop is reported. A NIC needs less for a million rules."""
INTERRUPT = signal.SIGALRM


class Watchdog:
    """Watches the hooks of `plugins` from its own thread, as a context manager that the main thread enters.

    `patience`: seconds after which a hook on the event loop is interrupted, within :meth:`guarding`.
    """

    def __init__(self, plugins: PluginManager, patience: float) -> None:
        self._plugins = plugins
        self._patience = patience
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        # A signal also interrupts a hook that waits in the kernel.
        self._before = signal.signal(INTERRUPT, self._interrupt)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        signal.signal(INTERRUPT, self._before)

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Treat this thread as that of the event loop, which no hook may block."""
        self._plugins.loop_thread = threading.get_ident()
        try:
            yield
        finally:
            self._plugins.loop_thread = None

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            now = time.monotonic()
            for thread, call in list(self._plugins.under_way.items()):
                self._check(thread, call, now - call.began)

    def _check(self, thread: int, call: Call, seconds: float) -> None:
        if self._plugins.is_on_loop(call, thread):
            if seconds >= SLOW and not call.reported:
                self._plugins.report_slow(call, seconds)
            if seconds >= self._patience:
                signal.pthread_kill(thread, INTERRUPT)
        elif seconds >= STUCK and not call.reported:
            call.reported = True
            waiting = "rules of its device wait" if ROLES[call.hook].runs is Runs.WORKER else "everything waits"
            text = f"has not returned for {seconds:.0f} s; {waiting} for it"
            self._plugins.report_fault(call.plugin, call.hook, Fault.STUCK, text)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Raise into the hook; as a signal handler on the loop's thread, it may also run just after the hook's end."""
        thread = threading.get_ident()
        call = self._plugins.under_way.get(thread)
        if call is None or not self._plugins.is_on_loop(call, thread):
            return
        seconds = time.monotonic() - call.began
        if seconds >= self._patience:
            raise HookTimeoutError(f"was interrupted after {seconds:.1f} s ([nf] hook_patience)")
