# SPDX-License-Identifier: Apache-2.0
"""The methods `katran_accel.server_ids.…` and `katran_accel.source_routes.…`: docs/protocol.md describes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from nfcore.api.context import Services
from nfcore.api.json_rows import JsonRows
from nfcore.api.parameters import take_parameters
from nfcore.api.steps import run_beside
from nfcore.errors import ConfigError, HostError, Problem

from .balancer import Balancer
from .config import NAME
from .entries import Entries, key_text
from .entry_checks import SERVER_IDS, SOURCE_ROUTES, Kind
from .hosts import server_address, try_to
from .routing import Routing
from .routing_changes import PARAMETERS, STATES, RoutingChange, key_of, take_page

log = logging.getLogger(__name__)
PAGE, LONGEST_PAGE = 1_000, 10_000
NEEDED = {
    SERVER_IDS.name: ("server_id_map", "no VIP has the flag 'quic' or 'udp_stable_routing', and tcp_server_ids is off"),
    SOURCE_ROUTES.name: ("lpm_src_v4", "no VIP has the flag 'src_routing'"),
}
"""Of a kind: the map that a program has if it reads them, and why it does not."""


class RoutingMethods:
    """The methods, over one balancer."""

    def __init__(self, balancer: Balancer, services: Services, followed: Callable[[], None]) -> None:
        """`followed` is called after each change: reals may have come or gone."""
        self._balancer, self._services, self._followed = balancer, services, followed
        self._toml = balancer.table, Routing.of(balancer.table)

    def register(self) -> None:
        """Add the methods to the socket."""
        for kind in (SERVER_IDS, SOURCE_ROUTES):
            name = f"{NAME}.{kind.name}"
            self._services.register_method(f"{name}.list", partial(self._list, kind), reads=True)
            self._services.register_method(f"{name}.change", partial(self._change, kind))

    async def _change(self, kind: Kind, parameters: Mapping[str, Any]) -> Any:
        method = f"{NAME}.{kind.name}.change"
        take_parameters(method, parameters, *PARAMETERS, *(STATES if kind is SERVER_IDS else ()))
        map_, why = NEEDED[kind.name]
        if map_ not in self._balancer.maps.maps:
            if (program := self._balancer.table.program) is not None:
                raise HostError(f"the program reads no {kind.word}s: {program} has no map {map_}")
            raise HostError(f"the program reads no {kind.word}s: {why}; change the TOML and restart nfcore")
        async with self._services.turn:
            change = RoutingChange(kind, parameters, self._balancer.table, method)
            await run_beside(self._balancer.change_routing(change.apply), "routing")
            if change.counts["added"] or change.counts["removed"]:
                self._services.changed_at_run_time.add(NAME)
            self._followed()
        done = ", ".join(f"{count:,} {what}" for what, count in change.counts.items())
        log.info("%ss: %s", kind.word, done)
        return change.counts

    def _list(self, kind: Kind, parameters: Mapping[str, Any]) -> Any:
        method = f"{NAME}.{kind.name}.list"
        take_parameters(method, parameters, "real", "after", "limit")
        routing, limit = self._balancer.inventory.routing, parameters.get("limit", PAGE)
        if not (type(limit) is int and 1 <= limit <= LONGEST_PAGE):
            problem = Problem("limit", f"is {limit!r:.40}; should be a number from 1 to {LONGEST_PAGE:,}")
            raise ConfigError(method, [problem])
        entries = routing.server_ids if kind is SERVER_IDS else routing.source_routes
        chosen = _of_real(method, entries, parameters.get("real"))
        after = parameters.get("after")
        page, last = take_page(entries, chosen, None if after is None else key_of(kind, after, method), limit)
        invalid = routing.invalid[page] if kind is SERVER_IDS else None
        return {
            kind.name: JsonRows(partial(_rows, kind, entries.select(page), self._of_toml(kind), invalid)),
            "next": None if last is None else _plain(entries, last),
            "matching": int(np.count_nonzero(chosen)),
            "total": len(entries),
        }

    def _of_toml(self, kind: Kind) -> Entries:
        """Give the entries that the TOML has."""
        table = self._balancer.table
        if self._toml[0] is not table:
            self._toml = table, Routing.of(table)
        routing = self._toml[1]
        return routing.server_ids if kind is SERVER_IDS else routing.source_routes


def _rows(kind: Kind, entries: Entries, of_toml: Entries, invalid: Any) -> Iterator[dict[str, Any]]:
    added, name = entries.differing(of_toml).tolist(), next(iter(kind.model.model_fields))
    for place in range(len(entries)):
        row: dict[str, Any] = {name: _plain(entries, place), "real": str(entries.real(place))}
        row["owner"] = "run time" if added[place] else "toml"
        yield row if invalid is None else row | {"valid": not invalid[place]}


def _plain(entries: Entries, place: int) -> int | str:
    """Give a key as JSON has it."""
    key = entries.keys[place]
    return key_text(key) if isinstance(key, np.void) else int(key)


def _of_real(method: str, entries: Entries, real: object) -> Any:
    """Say which entries lead to a real; all, when it is None."""
    if real is None:
        return np.ones(len(entries), dtype=bool)
    address = try_to(server_address, real)
    if address is None:
        raise ConfigError(method, [Problem("real", f"is {real!r:.80}; should be the address of a real")])
    wanted = [number for number, known in enumerate(entries.addresses) if known == address]
    return np.isin(entries.reals, wanted)
