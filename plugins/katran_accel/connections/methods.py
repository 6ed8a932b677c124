# SPDX-License-Identifier: Apache-2.0
"""The methods `connections.*` of the daemon's socket: docs/protocol.md describes them for authors of clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from nfcore.api.context import Services
from nfcore.api.flows import FLOW_KEY, FlowMatch
from nfcore.api.json_rows import materialize
from nfcore.api.parameters import take_number, take_parameters
from nfcore.api.rules import Device
from nfcore.api.steps import Steps, run_beside
from nfcore.errors import ConfigError, Problem

from .. import layouts as lay
from ..balancer import Balancer
from ..connection_table import NO_VIP, entry_keys
from .entries import Table, all_tables
from .names import find_clients, find_flow, find_real, find_vip, refuse_stray
from .removal import Removed, remove_flow, remove_selected
from .rows import Rows
from .search import FIRST, PLACES, Page, fill_of, find, kernel_now, search
from .selection import Selection

log = logging.getLogger(__name__)
PAGE, LONGEST_PAGE = 1_000, 50_000
_BYPASS = "has the flag lru_bypass: nothing is stored for its connections"


class ConnectionMethods:
    """The methods, over one balancer. One request reads whole tables at a time, and one removes connections."""

    def __init__(self, balancer: Balancer, services: Services, devices: Sequence[Device]) -> None:
        self._balancer, self._services, self._devices = balancer, services, devices
        self._reading, self._removing = asyncio.Lock(), asyncio.Lock()

    def register(self) -> None:
        """Add the methods to the socket."""
        for name, method in {"list": self.list, "find": self.find, "fill": self.fill}.items():
            self._services.register_method(f"connections.{name}", method, reads=True)
        for name, change in {"delete": self.delete, "purge": self.purge}.items():
            self._services.register_method(f"connections.{name}", change)

    # Reading

    async def list(self, parameters: Mapping[str, Any]) -> Any:
        """Give a page of the entries of a VIP, to a real, of clients; without any of them, of all."""
        method = "connections.list"
        vip, real, client, after, limit = take_parameters(method, parameters, "vip", "real", "client", "after", "limit")
        selection = self._selection(method, vip, real, client)
        after = take_number(method, "after", after, FIRST, FIRST, PLACES)
        limit = take_number(method, "limit", limit, PAGE, 1, LONGEST_PAGE)
        async with self._reading:
            return await run_beside(self._page(selection, after, limit), "connections")

    async def find(self, parameters: Mapping[str, Any]) -> Any:
        """Give the entries of one flow, and the real that the ring has for it now."""
        (text,) = take_parameters("connections.find", parameters, "flow")
        flow = find_flow("connections.find", text)
        key = np.array([flow.to_key()], dtype=FLOW_KEY)
        family, finder = np.array([flow.family]), self._balancer.finder
        vips = finder.owners(key, family)
        tables = self._tables()
        hits = find(tables, entry_keys(key, family), finder)
        if vips[0] == NO_VIP and not len(hits):
            raise refuse_stray("connections.find", self._balancer.inventory, flow)
        return {
            "flow": str(flow),
            **self._by_ring(int(vips[0]), key, family),
            "entries": materialize(self._rows(hits, tables).json()),
            "notes": self._notes(int(vips[0])),
        }

    async def fill(self, parameters: Mapping[str, Any]) -> Any:
        """Say how full each table is, and how old its entries are."""
        take_parameters("connections.fill", parameters)

        def read_all() -> Steps[list[dict[str, Any]]]:
            found = []
            for table in self._tables():
                found.append((yield partial(fill_of, table, kernel_now())))
            return found

        async with self._reading:
            return {"tables": await run_beside(read_all(), "connections")}

    def _page(self, selection: Selection, after: int, limit: int) -> Steps[dict[str, Any]]:
        tables = self._tables()
        page: Page = yield partial(search, tables, selection, self._balancer.finder, after, limit)
        return {
            "entries": self._rows(page.hits, tables).json(),
            "next": page.following,
            "matching": page.matching,
            "total": page.total,
            "notes": self._notes(selection.vip),
        }

    # Removing

    async def delete(self, parameters: Mapping[str, Any]) -> Any:
        """Remove one connection: the flow's next packet is decided anew."""
        (text,) = take_parameters("connections.delete", parameters, "flow")
        flow = find_flow("connections.delete", text)
        if not self._goes_to_vip(flow):
            raise refuse_stray("connections.delete", self._balancer.inventory, flow)
        return await self._remove(remove_flow(self._balancer, self._services, flow), f"of {flow}", [])

    async def purge(self, parameters: Mapping[str, Any]) -> Any:
        """Remove all connections of a VIP, to a real, or both."""
        vip, real = take_parameters("connections.purge", parameters, "vip", "real")
        if vip is None and real is None:
            raise ConfigError("connections.purge", [Problem("", "should name what to remove: vip, real, or both")])
        selection = self._selection("connections.purge", vip, real, None)
        what = " ".join(f"{kind} {text}" for kind, text in (("VIP", vip), ("real", real)) if text is not None)
        steps = remove_selected(self._balancer, self._services, selection)
        return await self._remove(steps, f"of {what}", self._notes(selection.vip))

    async def _remove(self, steps: Steps[Removed], what: str, notes: Sequence[str]) -> Any:
        async with self._removing:
            removed = await run_beside(steps, "connections")
        log.info("connections %s: %d entries and %d rules removed", what, removed.deleted, removed.rules_ended)
        return {**asdict(removed), "notes": notes}

    # What they share

    def _tables(self) -> Sequence[Table]:
        return all_tables(self._balancer.connections, self._balancer.maps)

    def _rows(self, hits: Any, tables: Sequence[Table]) -> Rows:
        return Rows(hits, tables, self._balancer, self._services, self._devices)

    def _selection(self, method: str, vip: object, real: object, client: object) -> Selection:
        inventory = self._balancer.inventory
        number = None if vip is None else find_vip(method, inventory, vip)
        return Selection(
            number,
            None if real is None else find_real(method, inventory, real, number),
            None if client is None else find_clients(method, client),
        )

    def _goes_to_vip(self, flow: FlowMatch) -> bool:
        key = np.array([flow.to_key()], dtype=FLOW_KEY)
        return bool(self._balancer.finder.owners(key, np.array([flow.family]))[0] != NO_VIP)

    def _by_ring(self, vip: int, key: Any, family: Any) -> dict[str, str | None]:
        """Name the VIP of a flow, and the real in its slot of the ring."""
        if vip == NO_VIP:
            return {"vip": None, "ring_real": None}
        vips = np.array([vip])
        slots = self._balancer.finder.slots(key, vips, family)
        real = int(self._balancer.connections.ring_reals(vips, slots)[0])
        named = self._balancer.describe(vip << 32 | real)
        return {"vip": named["vip"], "ring_real": named["real"] if real else None}

    def _notes(self, vip: int | None) -> Sequence[str]:
        table = None if vip is None else self._balancer.inventory.vips.get(vip)
        bypasses = table is not None and table.flag_bits & lay.VipFlag.LRU_BYPASS
        return [f"{table.name} {_BYPASS}"] if table is not None and bypasses else []
