# SPDX-License-Identifier: Apache-2.0
"""The methods of flow_actions behind a real socket, with a data plane that only notes what it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.context import Services
from nfcore.control.server import ControlServer
from nfcore.errors import HostError
from nfcore.plugins.flow_actions.facts import Facts
from nfcore.plugins.flow_actions.journal import Journal
from nfcore.plugins.flow_actions.methods import FlowMethods
from nfcore.plugins.flow_actions.orders import Orders
from nfcore.plugins.flow_actions.table import Change, Table


class NullDataPlane:
    """Takes each change, or refuses it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.refuses = False
        self.changes: list[Change] = []

    def __call__(self, change: Change) -> None:
        if self.refuses:
            raise HostError("the map is full")
        self.changes.append(change)
        self.table.commit(change)


def no_facts(slots: NDArray[np.int64]) -> Facts:
    """Give the facts of entries whose packets nobody has counted."""
    zeros = np.zeros(len(slots), dtype=np.uint64)
    never = np.full(len(slots), np.inf)
    why = ["it has no backend"] * len(slots)
    return Facts(
        packets=zeros, bytes=zeros, idle=never, in_hardware=zeros.astype(bool), hardware_packets=zeros, why=why
    )


@dataclass
class Daemon:
    """What the tests see of the daemon."""

    path: Path
    orders: Orders
    data_plane: NullDataPlane
    methods: FlowMethods
    server: ControlServer


@contextmanager
def serve(
    path: Path, entries: int = 1000, targets: int = 64, *, keep: bool = False, order_group: str = "", group: str = ""
) -> Iterator[Daemon]:
    """Serve `flow.*` from an event loop of its own, until the block ends."""
    table = Table(entries, targets)
    data_plane = NullDataPlane(table)
    orders = Orders(table, Journal(Path(f"{path}.flows") if keep else None), data_plane)
    orders.start([])
    methods, services = FlowMethods(orders, no_facts), Services()
    methods.register(services)
    rights = (services.read_methods, group, services.order_methods, order_group)
    server = ControlServer(path, services.methods, *rights)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait(what: Any) -> None:
        asyncio.run_coroutine_threadsafe(what, loop).result(timeout=10)

    try:
        wait(server.open())
        yield Daemon(path, orders, data_plane, methods, server)
    finally:
        wait(server.close())
        wait(_end_others())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        orders.close()


async def _end_others() -> None:
    """Let connections that a test left open end."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
