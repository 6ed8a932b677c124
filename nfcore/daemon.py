# SPDX-License-Identifier: Apache-2.0
"""`nfcore run`: one event loop that reads events and answers the socket, one worker thread per device."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path

from .config import Config
from .context import Context
from .control import ControlServer
from .engine import READ_LIMIT, Engine
from .errors import HostError
from .host import PluginHost
from .session import find_devices, make_context, make_engine, set_up
from .worker import DeviceWorker

log = logging.getLogger(__name__)

SHORTEST_NAP = 0.001
LONGEST_NAP = 0.016
"""Seconds between two looks at the event buffer. XDP wakes nobody, since that costs its packet microseconds; the
pause doubles while nothing comes, so that an idle daemon costs next to nothing."""
STOP_PATIENCE = 10.0
"""Seconds that a worker has to remove its rules when the daemon stops."""


def run(config: Config, host: PluginHost, announce: Callable[[str], None]) -> None:
    """Run until SIGINT or SIGTERM, then leave the machine as it was. HostError when something is in the way."""
    if not config.interfaces:
        raise HostError(f"{config.source}: interfaces: there is none; add a table [[interfaces]] with name and chain")
    devices = find_devices(config)
    context = make_context(config, host, devices)
    asyncio.run(_Daemon(context, host, announce).run())


class _Daemon:
    def __init__(self, context: Context, host: PluginHost, announce: Callable[[str], None]) -> None:
        self._context = context
        self._host = host
        self._announce = announce
        self._stop = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        server = ControlServer(Path(self._context.config.nf.socket), self._context.methods)
        await server.open()
        try:
            with set_up(self._context, self._host):
                await self._serve(loop)
        finally:
            await server.close()

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        def deliver(done: Callable[[], None]) -> None:
            loop.call_soon_threadsafe(done)

        workers = {device.ifindex: DeviceWorker(device.name, deliver) for device in self._context.devices}
        engine = make_engine(self._context, self._host, workers)
        attached: list[Callable[[], None]] = []
        try:
            engine.start()
            for nf in self._context.nfs:
                for device in self._context.devices_of(nf.name):
                    nf.attach(device)
                    attached.append(lambda nf=nf, device=device: nf.detach(device))  # type: ignore[misc]
            self._announce(self._describe())
            await self._pump(engine)
        finally:
            for detach in attached:
                detach()
            engine.remove_all()
            for worker in workers.values():
                if not await asyncio.to_thread(worker.stop, STOP_PATIENCE):
                    log.error("a device's worker did not finish in %.0f s: rules may be left", STOP_PATIENCE)

    async def _pump(self, engine: Engine) -> None:
        nap = SHORTEST_NAP
        while not self._stop.is_set():
            taken = engine.poll()
            engine.tick()
            if taken >= READ_LIMIT:
                nap = 0.0
            elif taken:
                nap = SHORTEST_NAP
            else:
                nap = min(max(nap * 2, SHORTEST_NAP), LONGEST_NAP)
            await asyncio.sleep(nap)

    def _describe(self) -> str:
        config, strategy = self._context.config, self._context.strategy
        parts = [f"{i.name}: {' → '.join(i.chain)}, offload {', '.join(i.offload)}" for i in config.interfaces]
        marks = f"{strategy.name} marks by {config.marking.carrier}" if strategy else "unaccelerated"
        return f"ready: {'; '.join(parts)}; {marks}; socket {config.nf.socket}"
