# SPDX-License-Identifier: Apache-2.0
"""Writes what decides about packets beside VIPs and rings: server ids, source routes, down reals, tunnels' ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import pack_address
from nfcore.errors import HostError
from nfcore.kernel import Map, MapFlags, MapType

from . import layouts as lay
from .config import KatranTable
from .entries import Entries
from .features import U8, U32
from .inventory import Inventory
from .map_entries import delete_entries, replace_entries, write_entries

_EGRESS = 2
"""Flag of an address in `decap_dst`: what came in GUE goes out again."""


class RoutingMaps:
    """The maps of one program, as far as it has them. is_own: it is nfcore's, and knows nfcore's own flags."""

    def __init__(self, maps: Mapping[str, Map], *, is_own: bool = True) -> None:
        self._maps, self._is_own = maps, is_own
        self._ids: NDArray[np.uint32] | None = None
        """Server ids that an array without shared memory has; None: unknown."""

    def write(self, inventory: Inventory) -> None:
        """Let the maps say what the TOML says. The reals that they name are in `reals` before."""
        table = inventory.table
        for name, write in (
            ("pckt_srcs", self._write_sources),
            ("decap_dst", self._write_decap_addresses),
        ):
            if name in self._maps:
                write(self._maps[name], table)
        if "server_id_map" in self._maps:
            self._write_server_ids(inventory.routing.server_ids.keys, inventory.server_id_numbers())
        self._write_source_routes(inventory.routing.source_routes.keys, inventory.source_route_numbers())
        if "vip_to_down_reals_map" in self._maps:
            self._write_down_reals(inventory)

    @staticmethod
    def _write_sources(map_: Map, table: KatranTable) -> None:
        """Write those of the own addresses that are given, slot 0 that of IPv4."""
        rows = np.zeros(2, lay.REAL_DEFINITION)
        rows["flags"][1] = lay.RealFlag.IPV6
        for slot, address in enumerate((table.source_v4, table.source_v6)):
            if address:
                rows["addr"][slot] = pack_address(ip_address(address))
                map_.update(slot, rows[slot])

    def _write_decap_addresses(self, map_: Map, table: KatranTable) -> None:
        addresses = table.decap.addresses
        keys, flags = np.zeros(len(addresses), lay.ADDRESS), np.zeros(len(addresses), U32)
        for row, each in enumerate(addresses):
            keys["addr"][row] = pack_address(each.address)
            flags[row] = _EGRESS * each.egress | (lay.ONLY_FAMILY[each.address.version] if self._is_own else 0)
        replace_entries(map_, keys, flags)

    def change(self, before: Inventory, after: Inventory) -> None:
        """Write what differs in server ids and source routes, whose reals have the numbers that they had before.

        HostError when the kernel refuses one; then the maps are as before.
        """
        try:
            if "server_id_map" in self._maps:
                old, new = before.routing.server_ids, after.routing.server_ids
                self._change_server_ids(*_differences(old, before.server_id_numbers(), new, after.server_id_numbers()))
            old, new = before.routing.source_routes, after.routing.source_routes
            numbers = before.source_route_numbers(), after.source_route_numbers()
            self._change_source_routes(*_differences(old, numbers[0], new, numbers[1]))
        except HostError:
            self.write(before)
            raise

    def _write_server_ids(self, ids: NDArray[np.uint32], numbers: NDArray[np.uint32]) -> None:
        map_ = self._maps["server_id_map"]
        if map_.spec.type is MapType.HASH:
            replace_entries(map_, ids, numbers)
            return
        self._change_server_ids(ids, numbers, np.setdiff1d(self._held_ids(map_), ids).astype(U32))
        self._ids = ids

    def _held_ids(self, map_: Map) -> NDArray[Any]:
        """The ids that an array has. Reading one without shared memory takes seconds: once is enough."""
        if map_.spec.flags & MapFlags.MMAPABLE:
            return np.flatnonzero(map_.mmap())
        return np.flatnonzero(map_.read_array()) if self._ids is None else self._ids

    def _change_server_ids(self, ids: NDArray[Any], numbers: NDArray[np.uint32], gone: NDArray[Any]) -> None:
        map_ = self._maps["server_id_map"]
        if map_.spec.type is MapType.HASH:
            write_entries(map_, ids, numbers)
            delete_entries(map_, gone)
            return
        if not map_.spec.flags & MapFlags.MMAPABLE:
            write_entries(map_, np.concatenate([ids, gone]), np.concatenate([numbers, np.zeros(len(gone), U32)]))
            self._ids = None
            return
        elements = map_.mmap()
        elements[ids] = numbers
        elements[gone] = 0

    def _write_source_routes(self, prefixes: NDArray[np.void], numbers: NDArray[np.uint32]) -> None:
        for version, map_ in self._source_maps():
            chosen = prefixes["family"] == version
            replace_entries(map_, _source_keys(prefixes[chosen], map_), numbers[chosen])

    def _change_source_routes(
        self, prefixes: NDArray[np.void], numbers: NDArray[np.uint32], gone: NDArray[np.void]
    ) -> None:
        for version, map_ in self._source_maps():
            chosen = prefixes["family"] == version
            write_entries(map_, _source_keys(prefixes[chosen], map_), numbers[chosen])
            delete_entries(map_, _source_keys(gone[gone["family"] == version], map_))

    def _source_maps(self) -> Iterator[tuple[int, Map]]:
        for version, name in ((4, "lpm_src_v4"), (6, "lpm_src_v6")):
            if name in self._maps:
                yield version, self._maps[name]

    def _write_down_reals(self, inventory: Inventory) -> None:
        outer = self._maps["vip_to_down_reals_map"]
        assert outer.spec.inner is not None  # features.py gave it
        wanted = inventory.down_reals()
        for number, reals in wanted.items():
            with Map.create(outer.spec.inner) as inner:
                write_entries(inner, np.array(reals, U32), np.zeros(len(reals), U8))
                outer.update(inventory.vip_definition(number), inner)
        kept = {inventory.vip_definition(number).tobytes() for number in wanted}
        keys, _ = outer.lookup_all()
        for key in keys:
            if key.tobytes() not in kept:
                outer.delete(key)


def _source_keys(prefixes: NDArray[np.void], map_: Map) -> NDArray[np.void]:
    """Give prefixes of one family as keys of its map."""
    keys = np.zeros(len(prefixes), map_.spec.key)
    keys["prefixlen"] = prefixes["length"]
    keys["addr"] = prefixes["addr"][:, : keys["addr"].shape[1]]
    return keys


def _differences(
    before: Entries, old: NDArray[np.uint32], after: Entries, new: NDArray[np.uint32]
) -> tuple[NDArray[Any], NDArray[np.uint32], NDArray[Any]]:
    """Give the keys that are new or have another number, their numbers, and the keys that are gone."""
    places = before.places(after.keys)
    differing = places < 0
    differing[~differing] = old[places[~differing]] != new[~differing]
    return after.keys[differing], new[differing], before.keys[after.places(before.keys) < 0]
