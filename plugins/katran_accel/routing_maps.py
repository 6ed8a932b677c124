# SPDX-License-Identifier: Apache-2.0
"""Writes what decides about packets beside VIPs and rings: server ids, source routes, down reals, tunnels' ends."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

import numpy as np
from numpy.typing import NDArray

from nfcore.api.config import Network
from nfcore.api.flows import pack_address
from nfcore.kernel import Map, MapFlags, MapType

from . import layouts as lay
from .config import KatranTable
from .features import U8, U32
from .inventory import Inventory
from .map_entries import replace_entries, write_entries

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
            self._write_server_ids(inventory.server_ids)
        self._write_source_routes(inventory.source_routes)
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

    def _write_server_ids(self, reals: Mapping[int, int]) -> None:
        map_ = self._maps["server_id_map"]
        ids = np.fromiter(reals.keys(), U32, len(reals))
        numbers = np.fromiter(reals.values(), U32, len(reals))
        if map_.spec.type is MapType.HASH:
            replace_entries(map_, ids, numbers)
            return
        if not map_.spec.flags & MapFlags.MMAPABLE:
            known = np.flatnonzero(map_.read_array()) if self._ids is None else self._ids
            others = np.setdiff1d(known, ids).astype(U32)
            write_entries(map_, np.concatenate([ids, others]), np.concatenate([numbers, np.zeros_like(others)]))
            self._ids = ids
            return
        elements = map_.mmap()
        others = np.setdiff1d(np.flatnonzero(elements), ids)
        elements[ids] = numbers
        elements[others] = 0

    def _write_source_routes(self, routes: Mapping[Network, int]) -> None:
        for version, name in ((4, "lpm_src_v4"), (6, "lpm_src_v6")):
            if name not in self._maps:
                continue
            chosen = [(network, real) for network, real in routes.items() if network.version == version]
            map_ = self._maps[name]
            keys = np.zeros(len(chosen), map_.spec.key)
            keys["prefixlen"] = [network.prefixlen for network, _ in chosen]
            for row, (network, _) in enumerate(chosen):
                keys["addr"][row] = list(network.network_address.packed)
            replace_entries(map_, keys, np.array([real for _, real in chosen], U32))

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
