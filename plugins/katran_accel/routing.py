# SPDX-License-Identifier: Apache-2.0
"""What leads packets to reals beside the rings: server ids and source routes, as they are in effect.

They begin as the TOML and its files have them, are changed at run time (routing_changes.py), and are the TOML's again
after a reload. An id that is not valid keeps its real, and so the real its number, but leads nowhere meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import Address

from .config import KatranTable
from .entries import SERVER_ID, Entries


@dataclass(frozen=True)
class Routing:
    """Server ids and source routes."""

    server_ids: Entries
    source_routes: Entries
    invalid: NDArray[np.bool_]
    """Whether each of `server_ids` is invalid now."""

    @classmethod
    def of(cls, table: KatranTable) -> Routing:
        """Take what a TOML and its files say."""
        ids = Entries.of_server_ids((each.id, each.real) for each in table.server_ids)
        routes = Entries.of_routes((each.prefix, each.real) for each in table.source_routes)
        if table.server_ids_file is not None:
            ids = ids.joined(table.server_ids_file.entries)
        if table.source_routes_file is not None:
            routes = routes.joined(table.source_routes_file.entries)
        return cls(ids, routes, np.zeros(len(ids), dtype=bool))

    @property
    def invalid_ids(self) -> NDArray[np.uint32]:
        """The ids that are invalid now."""
        ids: NDArray[np.uint32] = self.server_ids.keys[self.invalid]
        return ids

    def with_invalid(self, ids: NDArray[np.uint32]) -> Routing:
        """Let these ids be invalid, as far as they exist, and no others."""
        invalid = np.zeros(len(self.server_ids), dtype=bool)
        places = self.server_ids.places(ids.astype(SERVER_ID))
        invalid[places[places >= 0]] = True
        return replace(self, invalid=invalid)

    @property
    def reals(self) -> Iterable[Address]:
        """The reals to which they lead."""
        return (*self.server_ids.addresses, *self.source_routes.addresses)


def all_reals(table: KatranTable, routing: Routing) -> list[Address]:
    """Give the different reals of a table's VIPs, then those to which nothing but server ids and routes leads."""
    return list(dict.fromkeys((*_of_vips(table), *routing.reals)))


def reals_of_table(table: KatranTable) -> list[Address]:
    """Give the different reals that a TOML and its files name. Cheap, however many entries there are."""
    of_ids, of_routes = (each.real for each in table.server_ids), (each.real for each in table.source_routes)
    files = [file for file in (table.server_ids_file, table.source_routes_file) if file is not None]
    of_files = (real for file in files for real in file.entries.addresses)
    return list(dict.fromkeys((*_of_vips(table), *of_ids, *of_routes, *of_files)))


def _of_vips(table: KatranTable) -> Iterator[Address]:
    return (real.address for vip in table.vips for real in vip.reals)
