# SPDX-License-Identifier: Apache-2.0
"""`nfcore run`: one event loop that reads events and answers the socket, one worker thread per device."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import queue
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from ..api.carriers import Carrier, require_carrier
from ..api.config import Config
from ..api.context import Context
from ..control.server import ControlServer, group_number, refuse_second
from ..devices.worker import DeviceWorker
from ..engine.engine import READ_LIMIT, Engine
from ..engine.event_log import EventKind
from ..errors import ConfigError, NfcoreError, Problem
from ..hooks.manager import PluginHost
from ..hooks.watchdog import Watchdog
from ..kernel.link_monitor import LinkWatch
from ..logs import AUDIT
from .bootstrap import find_devices, make_context, make_engine, set_up
from .control_methods import register_orders
from .program_monitor import ProgramWatch
from .reload import reload

log = logging.getLogger(AUDIT)

SHORTEST_NAP = 0.001
LONGEST_NAP = 0.016
"""Seconds between two looks at the event buffer. XDP wakes nobody, since that costs its packet microseconds; the
pause doubles while nothing comes, so that an idle daemon costs next to nothing."""
STOP_PATIENCE = 10.0
"""Seconds that a worker has to remove its rules when the daemon stops."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP tells of a terminal that is gone; a daemon without one reads its configuration again instead."""
Results = queue.SimpleQueue[Callable[[], None]]
"""What workers have finished, to be run on the event loop's thread."""


def run(config: Config, host: PluginHost, announce: Callable[[str], None]) -> None:
    """Run until SIGINT or SIGTERM, then leave the machine as it was. HostError when something is in the way."""
    if not config.interfaces:
        raise ConfigError(config.source, [Problem("interfaces", "there is none; add a table with name and chain")])
    context = make_context(config, host, find_devices(config))
    socket = Path(config.nf.socket)
    refuse_second(socket)
    require_carrier(Carrier(config.marking.carrier), context.devices)
    if config.nf.socket_group:
        group_number(config.nf.socket_group)
    with StopSwitch() as stop:
        try:
            with (
                context.claims,
                Watchdog(host, config.nf.hook_patience) as watchdog,
                set_up(context, host, stop.check),
                _engine(context, host, stop) as (engine, results),
            ):
                register_orders(engine, host)
                group = config.nf.socket_group
                server = ControlServer(socket, context.methods, context.questions, group)
                context.figures.append(server.collect)
                daemon = _Daemon(engine, results, server)
                with watchdog.guarding():
                    asyncio.run(daemon.run(stop, lambda: announce(_describe(context))))
        except StoppedError:
            log.info("stopped before it was ready")
        except NfcoreError:
            # Ctrl-C reaches the compiler, too: what it says then is not the user's concern.
            if not stop.noted:
                raise


class StoppedError(BaseException):
    """A stop signal came before the daemon was ready. No Exception: who goes on after those must not go on."""


class StopSwitch:
    """Takes note of SIGINT, SIGTERM and SIGHUP, and stops where it is asked: what is half done would be left behind.

    While the event loop runs it has handlers of its own.
    """

    def __init__(self) -> None:
        self.noted = False

    def __enter__(self) -> StopSwitch:
        self._before = [signal.signal(number, self._note) for number in STOP_SIGNALS]
        return self

    def __exit__(self, *about: object) -> None:
        for number, handler in zip(STOP_SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise StoppedError if a signal came."""
        if self.noted:
            raise StoppedError

    def resume(self) -> None:
        """Take note again after the event loop has had the signals."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Nothing is read again that is only just being read.
        self.noted |= number != signal.SIGHUP or sys.stderr.isatty()


@contextmanager
def _engine(context: Context, host: PluginHost, stop: StopSwitch) -> Iterator[tuple[Engine, Results]]:
    """Start the engine with its workers and attach the programs; undo all of it in reverse."""
    results: Results = queue.SimpleQueue()
    workers = {device.ifindex: DeviceWorker(device.name, results.put, stop.check) for device in context.devices}
    engine = make_engine(context, host, workers)
    context.soon = results.put
    context.health.workers = {device.name: workers[device.ifindex].busy_seconds for device in context.devices}
    with ExitStack() as leaving, LinkWatch(workers) as engine.links:
        leaving.callback(_stop_workers, engine, workers)
        engine.programs = ProgramWatch(engine.floor, context.health)
        stop.check()
        engine.start()
        for nf in context.nfs:
            for device in context.devices_of(nf.name):
                stop.check()
                leaving.callback(nf.detach, device)
                nf.attach(device)
                engine.programs.add(device.ifindex)
        yield engine, results


def _stop_workers(engine: Engine, workers: dict[int, DeviceWorker]) -> None:
    engine.remove_all()
    for worker in workers.values():
        if not worker.stop(STOP_PATIENCE):
            log.error("a device's worker did not finish in %.0f s: rules may be left", STOP_PATIENCE)


class _Daemon:
    """The event loop's part: the socket and the pump."""

    def __init__(self, engine: Engine, results: Results, server: ControlServer) -> None:
        self._engine = engine
        self._results = results
        self._server = server

    async def run(self, switch: StopSwitch, announce: Callable[[], None]) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, stop.set)
        if not sys.stderr.isatty():
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            switch.check()  # what came until the loop had its handlers
            await self._server.open()
            for start in self._engine.context.starters:
                start()
            # What is there now stays: to look through all of it for garbage, again and again, would take a tenth of a
            # second and more of a turn each time.
            gc.collect()
            gc.freeze()
            self._engine.floor.events.note(EventKind.DAEMON, "ready")
            announce()
            await self._pump(stop)
        finally:
            await self._server.close()
            # Blocked meanwhile: between the two kinds of handlers a signal would kill.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)
            switch.resume()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _reload(self) -> None:
        try:
            reload(self._engine, self._engine.host)
        except NfcoreError as error:
            log.error("the configuration stays as it was: %s", error)
        except Exception as error:
            log.error("the configuration could not be read again: %s", error)
            log.debug("traceback", exc_info=error)

    async def _pump(self, stop: asyncio.Event) -> None:
        nap = SHORTEST_NAP
        wake, loop = asyncio.Event(), asyncio.get_running_loop()
        for nf in self._engine.context.nfs:
            for fd in nf.wake_fds():
                loop.add_reader(fd, wake.set)
        health = self._engine.context.health
        while not stop.is_set():
            health.turn(nap)
            wake.clear()
            taken = self._engine.poll()
            self._deliver()
            self._engine.tick()
            if taken >= READ_LIMIT or not self._results.empty():
                nap = 0.0
            elif taken:
                nap = SHORTEST_NAP
            else:
                nap = min(max(nap * 2, SHORTEST_NAP), LONGEST_NAP)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), nap)

    def _deliver(self) -> None:
        # What these jobs put there in turn waits until reports have been read again.
        for _ in range(self._results.qsize()):
            self._results.get_nowait()()


def _describe(context: Context) -> str:
    config, strategy = context.config, context.strategy
    parts = [f"{i.name}: {' → '.join(i.chain)}, offload {', '.join(i.offload)}" for i in config.interfaces]
    marks = f"{strategy.name} marks by {config.marking.carrier}" if strategy else "unaccelerated"
    return f"ready: {'; '.join(parts)}; {marks}; socket {config.nf.socket}"
