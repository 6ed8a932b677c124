# SPDX-License-Identifier: Apache-2.0
"""Looks after hooks that take too long: names the plugin while it still blocks, and breaks it off in the end.

The event loop reads reports, answers the socket and obeys SIGTERM: a hook that blocks it for good would take the
daemon down. A worker thread that waits for its NIC holds up its own device alone and is only named.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from ..api.hookspecs import ROLES, Runs
from .faults import Fault, HookTimeoutError
from .manager import SLOW, Call, PluginManager

PERIOD = SLOW / 2
"""Seconds between two looks."""
STUCK = 30.0
"""Seconds from which on a worker's hook is named. A table of a million rules takes a NIC less."""
INTERRUPT = signal.SIGALRM


class Watchdog:
    """Watches the hooks of `host` from a thread of its own while it is entered, which the main thread does.

    `patience`: seconds after which a hook on the event loop is broken off, while :meth:`guarding` it.
    """

    def __init__(self, plugins: PluginManager, patience: float) -> None:
        self._plugins = plugins
        self._patience = patience
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        # A signal gets through to what waits in the kernel, too.
        self._before = signal.signal(INTERRUPT, self._break_off)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        signal.signal(INTERRUPT, self._before)

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Take this thread for the event loop's: no hook may block it."""
        self._plugins.loop_thread = threading.get_ident()
        try:
            yield
        finally:
            self._plugins.loop_thread = None

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            now = time.monotonic()
            for thread, call in list(self._plugins.under_way.items()):
                self._look_at(thread, call, now - call.began)

    def _look_at(self, thread: int, call: Call, took: float) -> None:
        if self._plugins.is_on_loop(call, thread):
            if took >= SLOW and not call.reported:
                self._plugins.report_slow(call, took)
            if took >= self._patience:
                signal.pthread_kill(thread, INTERRUPT)
        elif took >= STUCK and not call.reported:
            call.reported = True
            waits = "rules of its device wait" if ROLES[call.hook].runs is Runs.WORKER else "everything waits"
            words = f"has not come back for {took:.0f} s; {waits} for it"
            self._plugins.report_fault(call.plugin, call.hook, Fault.STUCK, words)

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        """Runs on the loop's thread, within the hook or just behind it."""
        thread = threading.get_ident()
        call = self._plugins.under_way.get(thread)
        if call is None or not self._plugins.is_on_loop(call, thread):
            return
        took = time.monotonic() - call.began
        if took >= self._patience:
            raise HookTimeoutError(f"was broken off after {took:.1f} s ([nf] hook_patience)")
