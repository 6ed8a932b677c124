# SPDX-License-Identifier: Apache-2.0
"""The methods `flow.*` of the daemon's socket: docs/protocol.md describes them for authors of clients."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.config import Network
from nfcore.api.context import Services
from nfcore.api.flows import ADDRESS_BITS, fixed_bits, pack_address
from nfcore.api.json_rows import JsonRows
from nfcore.api.parameters import take_number, take_parameters
from nfcore.errors import ConfigError, Problem

from .entries import PARAMETERS, Entries, describe, parse_orders
from .facts import Facts
from .orders import Orders
from .overlaps import Indices
from .table import Owner

PROTOCOL = 1
"""Version of the methods and of what they mean. It grows when a client of the version before would go wrong."""
LINE_LIMIT = 1 << 17
"""Longest request, in bytes."""
MOST_BATCHES = 16
MOST_STAGED = 1_000_000
"""Entries and names in all batches together."""
BATCH_PATIENCE = 60.0
"""Seconds without a request after which a batch is dropped."""
BATCH_IDLE = 5.0
"""Seconds without a request after which a batch may be dropped when its place is needed."""
LONGEST_PAGE, PAGE = 10_000, 1_000


@dataclass
class _Batch:
    """A change that comes in several requests."""

    used: float
    """Time of its last request."""
    parts: list[Entries] = field(default_factory=list)
    added: int = 0
    delete: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.added + len(self.delete)


class FlowMethods:
    """The methods, over the entries of one network function."""

    def __init__(
        self,
        orders: Orders,
        facts: Callable[[Indices], Facts],
        settle: Callable[[], Awaitable[None]] | None = None,
        refresh: Callable[[], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`settle` waits until the NICs have followed the changes so far; a change is answered after it.

        `refresh` waits until the NICs' counters have been read, `facts` is asked after it.
        """
        self._orders = orders
        self._facts = facts
        self._settle = settle
        self._refresh = refresh
        self._clock = clock
        self._batches: dict[str, _Batch] = {}

    def register(self, services: Services) -> None:
        """Add the methods to the socket."""
        reads = {"hello": self.hello, "list": self.list, "show": self.show}
        orders = {
            "begin": self.begin,
            "put": self.put,
            "commit": self.commit,
            "abort": self.abort,
            "change": self.change,
            "clear": self.clear,
        }
        for name, method in reads.items():
            services.register_method(f"flow.{name}", method, reads=True)
        for name, method in orders.items():
            services.register_method(f"flow.{name}", method, orders=True)

    # Reading

    def hello(self, parameters: Mapping[str, Any]) -> Any:
        """Give the version of the protocol, and how many entries there are and fit."""
        take_parameters("flow.hello", parameters)
        table = self._orders.table
        return {
            "protocol": PROTOCOL,
            "entries": len(table),
            "capacity": table.capacity,
            "targets": len(table.targets),
            "target_capacity": table.most_targets,
            "longest_request": LINE_LIMIT,
            "actions": {action: sorted(keys) for action, keys in PARAMETERS.items()},
        }

    async def list(self, parameters: Mapping[str, Any]) -> Any:
        """Give a page of the entries, by slot."""
        match, action, owner, after, limit = take_parameters(
            "flow.list", parameters, "match", "action", "owner", "after", "limit"
        )
        after = take_number("flow.list", "after", after, -1, -1, 1 << 32)
        limit = take_number("flow.list", "limit", limit, PAGE, 1, LONGEST_PAGE)
        await self._refreshed()
        found = self._matching(match, action, owner)
        page = found[np.searchsorted(found, after, side="right") :][: limit + 1]
        more = len(page) > limit
        page = page[:limit]
        return {
            "entries": JsonRows(self._rows(page)),
            "next": int(page[-1]) if more else None,
            "matching": len(found),
            "total": len(self._orders.table),
        }

    async def show(self, parameters: Mapping[str, Any]) -> Any:
        """Give one entry, and the names of those that win over it on some of its packets."""
        (name,) = take_parameters("flow.show", parameters, "name")
        await self._refreshed()
        table = self._orders.table
        slot = table.slot_of(name) if isinstance(name, str) else None
        if slot is None:
            raise ConfigError("flow", [Problem("name", f"is {name!r:.80}; there is no such entry: nfcore flow list")])
        (row,) = self._rows(np.array([slot], dtype=np.int64))()
        return row | {"shadowed_by": table.shadowed_by(slot)}

    def _matching(self, match: object, action: object, owner: object) -> Indices:
        """Find the slots of entries that a filter lets through."""
        table = self._orders.table
        owners = {each.name.lower(): each for each in Owner}
        if owner is not None and not (isinstance(owner, str) and owner in owners):
            raise ConfigError("flow.list", [Problem("owner", f"is {owner!r:.80}; should be {' or '.join(owners)}")])
        if action is not None and not (isinstance(action, str) and action in PARAMETERS):
            raise ConfigError("flow.list", [Problem("action", f"is {action!r:.80}; known: {', '.join(PARAMETERS)}")])
        if not isinstance(match, str | None):
            raise ConfigError("flow.list", [Problem("match", f"is {match!r:.80}; should be a text")])
        slots = table.slots(owners[owner] if isinstance(owner, str) else None)
        if action is not None:
            numbers = [number for number, target in table.targets.items() if target.action == action]
            slots = slots[np.isin(table.rows["target"][slots], numbers)]
        if not match:
            return slots
        network = _network(match)
        if network is None:
            return np.array([slot for slot in slots.tolist() if match in table.name_of(slot)], dtype=np.int64)
        return slots[_touches(table.rows[slots], network)]

    def _rows(self, slots: Indices) -> Callable[[], Iterator[dict[str, Any]]]:
        """Copy all that the rows are made of, and give what makes them."""
        table, facts = self._orders.table, self._facts(slots)
        rows, names = table.rows[slots], [table.name_of(slot) for slot in slots]
        targets = {number: table.targets[number] for number in np.unique(rows["target"]).tolist()}
        owners, offload = table.owners[slots].tolist(), table.offload[slots].tolist()
        shadowed = (table.beaten_by[slots] > 0).tolist()
        lives = (table.expires[slots] - table.clock()).tolist()
        columns = (facts.packets.tolist(), facts.bytes.tolist(), facts.hardware_packets.tolist())
        idle, in_hardware, why = facts.idle.tolist(), facts.in_hardware.tolist(), list(facts.why)

        def make() -> Iterator[dict[str, Any]]:
            for index, keys in enumerate(describe(rows, targets)):
                yield {
                    "name": names[index],
                    **keys,
                    "offload": offload[index],
                    "owner": Owner(owners[index]).name.lower(),
                    "expires_seconds": max(lives[index], 0.0) if math.isfinite(lives[index]) else None,
                    "packets": columns[0][index],
                    "bytes": columns[1][index],
                    "hardware_packets": columns[2][index],
                    "seen_seconds": idle[index] if math.isfinite(idle[index]) else None,
                    "in_hardware": in_hardware[index],
                    "why": why[index],
                    "shadowed": shadowed[index],
                }

        return make

    # Changes

    async def change(self, parameters: Mapping[str, Any]) -> Any:
        """Add and delete entries, as a whole or not at all."""
        add, delete = take_parameters("flow.change", parameters, "add", "delete")
        entries = parse_orders([] if add is None else add)
        return await self._make(entries, _names("flow.change", delete))

    async def clear(self, parameters: Mapping[str, Any]) -> Any:
        """Delete all entries of applications."""
        take_parameters("flow.clear", parameters)
        change = self._orders.clear()
        await self._settled()
        return {"deleted": len(change.removed)}

    def begin(self, parameters: Mapping[str, Any]) -> Any:
        """Begin a change that comes in several requests."""
        take_parameters("flow.begin", parameters)
        self.drop_idle()
        if len(self._batches) >= MOST_BATCHES:
            self._make_room()
        token = secrets.token_hex(8)
        self._batches[token] = _Batch(self._clock())
        return {"batch": token}

    def put(self, parameters: Mapping[str, Any]) -> Any:
        """Add to a batch. When this fails, the batch is as before."""
        token, add, delete = take_parameters("flow.put", parameters, "batch", "add", "delete")
        batch = self._batch(token)
        names = _names("flow.put", delete)
        entries = parse_orders([] if add is None else add, first=batch.added)
        staged = sum(each.size for each in self._batches.values())
        if staged + len(entries) + len(names) > MOST_STAGED:
            text = f"is too large: at most {MOST_STAGED:,} entries and names fit in all batches together"
            raise ConfigError("flow.put", [Problem("batch", text)])
        batch.parts.append(entries)
        batch.added += len(entries)
        batch.delete += names
        return {"add": batch.added, "delete": len(batch.delete)}

    async def commit(self, parameters: Mapping[str, Any]) -> Any:
        """Make the change of a batch, as a whole or not at all. The batch ends in any case."""
        (token,) = take_parameters("flow.commit", parameters, "batch")
        batch = self._batch(token)
        del self._batches[str(token)]
        return await self._make(Entries.join(batch.parts), batch.delete)

    def abort(self, parameters: Mapping[str, Any]) -> Any:
        """Forget a batch."""
        (token,) = take_parameters("flow.abort", parameters, "batch")
        self._batch(token)
        del self._batches[str(token)]
        return {}

    def drop_idle(self) -> None:
        """Drop the batches of clients that are gone."""
        now = self._clock()
        self._batches = {token: batch for token, batch in self._batches.items() if now - batch.used < BATCH_PATIENCE}

    def _make_room(self) -> None:
        """Drop the batch that is idle for longest. ConfigError: all are in use."""
        token, batch = min(self._batches.items(), key=lambda item: item[1].used)
        if self._clock() - batch.used < BATCH_IDLE:
            text = f"{MOST_BATCHES} batches are open already; commit or abort one, or leave one for {BATCH_IDLE:.0f} s"
            raise ConfigError("flow.begin", [Problem("", text)])
        del self._batches[token]

    def _batch(self, token: object) -> _Batch:
        self.drop_idle()
        batch = self._batches.get(token) if isinstance(token, str) else None
        if batch is None:
            why = f"it has ended, was idle for {BATCH_PATIENCE:.0f} s, or for {BATCH_IDLE:.0f} s when others came"
            raise ConfigError("flow", [Problem("batch", f"is {token!r:.40}; there is no such batch (any more): {why}")])
        batch.used = self._clock()
        return batch

    async def _make(self, entries: Entries, delete: Sequence[str]) -> Any:
        change = self._orders.change(entries, delete)
        await self._settled()
        return {"added": len(change.added), "deleted": len(change.removed)}

    async def _refreshed(self) -> None:
        if self._refresh is not None:
            await self._refresh()

    async def _settled(self) -> None:
        if self._settle is not None:
            # The change is made: when the client goes away meanwhile, only the answer is lost.
            await asyncio.shield(asyncio.ensure_future(self._settle()))


def _names(method: str, value: object) -> Sequence[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(method, [Problem("delete", f"is {value!r:.80}; should be a list of names")])
    return value


def _network(match: str) -> Network | None:
    """Read an address or a prefix; None: it is a part of a name. ConfigError: it is a prefix with host bits."""
    try:
        network = ipaddress.ip_network(match, strict=False)
    except ValueError:
        return None
    if network.network_address == ipaddress.ip_interface(match).ip:
        return network
    text = f"is {match!r:.60}, which has host bits; should be {str(network)!r}"
    raise ConfigError("flow.list", [Problem("match", text)])


def _touches(rows: NDArray[np.void], network: Network) -> NDArray[np.bool_]:
    """Say for each row whether one of the ends that it gives overlaps a network."""
    bits = ADDRESS_BITS[network.version]
    wanted = np.frombuffer(pack_address(network.network_address), dtype=np.uint8)
    found = np.zeros(len(rows), dtype=bool)
    for end, is_open in (("src", rows["key"]["wild"][:, 0]), ("dst", rows["key"]["wild"][:, 1])):
        mask = fixed_bits(network.version, np.minimum(np.maximum(is_open, bits - network.prefixlen), bits))
        found |= (is_open < bits) & ~((rows["key"][end] ^ wanted) & mask).any(axis=1)
    found &= rows["family"] == network.version
    return found
