# SPDX-License-Identifier: Apache-2.0
"""`nfcore run`: startup, the event loop that runs the engine and serves the socket, and shutdown."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..api.config import NO_BACKEND, Config
from ..api.context import Context
from ..control.server import ControlServer
from ..devices.worker import DeviceWorker
from ..engine.engine import READ_LIMIT, Engine
from ..engine.event_kind import EventKind
from ..errors import ConfigError, NfcoreError, Problem
from ..hooks.manager import PluginManager
from ..hooks.watchdog import Watchdog
from ..kernel.ethtool import namespace_with
from ..kernel.link_monitor import LinkMonitor
from ..logs import AUDIT, report_unexpected
from .attachment import Attachments
from .bootstrap import find_devices, make_context, make_engine, set_up
from .chain import Chains
from .control_methods import register_methods
from .network_watcher import NetworkWatcher
from .preconditions import preconditions, require
from .program_monitor import ProgramMonitor
from .reload import Look, Reloader, look_nowhere
from .signals import STOP_SIGNALS, StoppedError, StopSwitch

log = logging.getLogger(AUDIT)

SHORTEST_NAP = 0.001
LONGEST_NAP = 0.016
"""Seconds between two reads of the reports. XDP does not wake the daemon for them, because that costs the packet some
microseconds. The pause doubles while no report comes: an idle daemon needs almost no CPU time."""
STOP_PATIENCE = 10.0
"""Seconds that each worker has for the removal of its rules when the daemon stops."""
Results = queue.SimpleQueue[Callable[[], None]]
"""Calls that take the results of the workers' jobs; they are made on the event loop's thread."""


def run(config: Config, plugins: PluginManager, announce: Callable[[str], None]) -> None:
    """Run until SIGINT or SIGTERM, then leave the machine as it was. HostError: the machine is not as needed."""
    if not config.interfaces:
        raise ConfigError(config.source, [Problem("interfaces", "there is none; add a table with name and chain")])
    for remark in config.remarks:
        log.warning("%s: %s", config.source, remark)
    results: Results = queue.SimpleQueue()
    context = make_context(config, plugins, find_devices(config), call_soon=results.put)
    socket, group = Path(config.nf.socket), config.nf.socket_group
    with StopSwitch() as stop, context.locks:
        require(preconditions(context, plugins))
        try:
            with (
                Watchdog(plugins, config.nf.hook_patience) as watchdog,
                Chains(context) as chains,
                set_up(context, plugins, stop.check),
                _running(context, plugins, results, stop, chains) as daemon,
            ):
                register_methods(daemon.engine, daemon.reloader)
                services = context.services
                rights = (services.read_methods, group, services.order_methods, config.nf.order_group)
                server = ControlServer(socket, services.methods, *rights)
                services.metric_sources.append(server.collect)
                with watchdog.guarding():
                    asyncio.run(daemon.serve(server, stop, lambda: announce(_describe(context, daemon.engine))))
        except StoppedError:
            log.info("stopped before it was ready")
        except NfcoreError:
            # Ctrl-C also interrupts the compiler: its error is then no news to the user.
            if not stop.noted:
                raise


@contextmanager
def _running(
    context: Context, plugins: PluginManager, results: Results, stop: StopSwitch, chains: Chains
) -> Iterator[_Daemon]:
    """Start the workers and the engine and attach the programs; at the end, undo all of this in reverse order."""
    workers = {device.ifindex: DeviceWorker(device.name, results.put, stop.check) for device in context.devices}
    engine = make_engine(context, plugins, workers)
    health = context.services.health
    health.workers = {device.name: workers[device.ifindex].busy_seconds for device in context.devices}
    with (
        ExitStack() as cleanup,
        LinkMonitor(workers) as links,
        NetworkWatcher(engine.state, results.put) as network,
    ):
        cleanup.callback(_stop_workers, engine, workers)
        programs = ProgramMonitor(engine.state, health, chains)
        stop.check()
        engine.start()
        chains.link()
        attachments = cleanup.enter_context(Attachments.of(context))
        for device in context.devices:
            stop.check()
            cleanup.callback(attachments.detach, device)
            attachments.attach(device, chains.program(device))
            for nf in chains.functions(device):
                nf.attached(device)
            programs.add(device)
        chains.remove_earlier()
        network.start()
        yield _Daemon(engine, links, programs, results, network.look_in_steps)


def _stop_workers(engine: Engine, workers: dict[int, DeviceWorker]) -> None:
    engine.remove_all()
    for worker in workers.values():
        if not worker.stop(STOP_PATIENCE):
            log.error("a device's worker did not finish in %.0f s: rules may be left", STOP_PATIENCE)
    engine.keep_last_counts()


@dataclass
class _Daemon:
    """What runs on the event loop."""

    engine: Engine
    links: LinkMonitor
    programs: ProgramMonitor
    results: Results
    look: Look = look_nowhere
    _reloads: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.reloader = Reloader(self.engine, self.engine.plugins, self.look)

    async def serve(self, server: ControlServer, switch: StopSwitch, announce: Callable[[], None]) -> None:
        """Serve the socket and run the engine until a stop signal comes."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.set_exception_handler(_report_unexpected)
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, stop.set)
        if not sys.stderr.isatty():
            loop.add_signal_handler(signal.SIGHUP, self._start_reload)
        try:
            switch.check()  # for a signal that came before the loop had its handlers
            await server.open()
            for start in self.engine.context.services.starters:
                start()
            # The present objects stay. Without this each full collection would search them, for 0.1 s or more.
            gc.collect()
            gc.freeze()
            self.engine.state.events.note(EventKind.DAEMON, "ready")
            announce()
            await self._main_loop(stop)
        finally:
            await server.close()
            _return_signals(loop, switch)

    def _start_reload(self) -> None:
        # The event loop itself does not keep a task.
        task = asyncio.get_running_loop().create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        try:
            await self.reloader.reload()
        except NfcoreError as error:
            log.error("the configuration stays as it was: %s", error)
        except Exception as error:
            log.error("the configuration could not be read again: %s", error)
            log.debug("traceback", exc_info=error)

    async def _main_loop(self, stop: asyncio.Event) -> None:
        nap = SHORTEST_NAP
        wake, loop = asyncio.Event(), asyncio.get_running_loop()
        context = self.engine.context
        for nf in context.nfs:
            for fd in nf.wake_fds():
                loop.add_reader(fd, wake.set)
        while not stop.is_set():
            context.services.health.turn(nap)
            wake.clear()
            reports = self.engine.poll()
            self._deliver_results()
            self._tick()
            if reports >= READ_LIMIT or not self.results.empty():
                nap = 0.0
            elif reports:
                nap = SHORTEST_NAP
            else:
                nap = min(max(nap * 2, SHORTEST_NAP), LONGEST_NAP)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), nap)

    def _deliver_results(self) -> None:
        # Results that are added during these calls wait until reports have been read again.
        for _ in range(self.results.qsize()):
            self.results.get_nowait()()

    def _tick(self) -> None:
        """Read the changes of links, and let the program monitor and the engine do what is due."""
        self.links.watch_qdiscs(self.engine.hindered)
        changed = self.links.poll()
        for link in changed.values():
            status = _whereabouts(link.name) if link.gone else "up" if link.up else "down"
            text = "its qdisc for filters was added or removed" if link.qdisc else f"changed: it is {status}"
            self.engine.state.events.note(EventKind.LINK, text, link.name)
            if link.gone:
                log.error("%s: the interface is %s: restart nfcore once it is back", link.name, status)
        self.programs.run(changed)
        self.engine.tick([ifindex for ifindex, link in changed.items() if not link.gone])


def _whereabouts(name: str) -> str:
    """Say what has become of an interface that is not in this network namespace any more."""
    moved = namespace_with(name)
    if moved is None:
        return "gone, and with it the program"
    # A program stays on an interface that moves.
    return (
        f"in network namespace {moved.name}, with the program (nsenter --net={moved} nfcore cleanup CONFIG removes it)"
    )


def _report_unexpected(loop: asyncio.AbstractEventLoop, about: dict[str, Any]) -> None:
    """Log what was raised on the event loop where nobody caught it; the daemon goes on."""
    error = about.get("exception")
    if isinstance(error, Exception):
        report_unexpected(about["message"], error)
    else:
        log.error("%s", about["message"])


def _return_signals(loop: asyncio.AbstractEventLoop, switch: StopSwitch) -> None:
    """Give the stop signals back to `switch`. They are blocked meanwhile: without a handler they end the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for number in STOP_SIGNALS:
        loop.remove_signal_handler(number)
    switch.resume()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _describe(context: Context, engine: Engine) -> str:
    """Say what runs: with the backends that are in use, which may be fewer than the TOML names."""
    config, strategy = context.config, context.strategy
    parts, accelerated = [], False
    for interface, device in zip(config.interfaces, context.devices, strict=True):
        used = engine.state.devices[device.ifindex].able
        accelerated |= bool(used)
        shown = [name for name in interface.offload if name in used or (used and name == NO_BACKEND)]
        offload = f"offload {', '.join(shown)}" if used else "no offload"
        parts.append(f"{interface.name}: {' → '.join(interface.chain)}, {offload}")
    marks = f"{strategy.name} marks by {config.marking.carrier}" if strategy and accelerated else "unaccelerated"
    return f"ready: {'; '.join(parts)}; {marks}; socket {config.nf.socket}"
