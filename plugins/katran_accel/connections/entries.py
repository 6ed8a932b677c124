# SPDX-License-Identifier: Apache-2.0
"""The entries of one table as columns, whatever the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.kernel import Map

from ..connection_table import Connections
from ..maps import BalancerMaps


class Kind(IntEnum):
    """What a table is for."""

    CPU = 0
    """Connections of one forwarding CPU."""
    FALLBACK = 1
    """Connections of all other CPUs."""
    RULES = 2
    """Where flows with rules go, or that wait for one: `hw_accel_routes`."""

    @property
    def word(self) -> str:
        """The kind in JSON."""
        return self.name.lower()


@dataclass(frozen=True)
class Entries:
    """Entries of a table; each column has shape (n,)."""

    keys: NDArray[np.void]
    """Of connections: `connection_key()` of bpf/balancer/lru.h."""
    reals: NDArray[np.uint32]
    used: NDArray[np.uint64]
    """When the last packet came, on the kernel's monotonic clock, ns. 0: that is not known."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Table:
    """A table that decides where packets of known flows go."""

    kind: Kind
    cpu: int | None
    map: Map

    def read(self) -> Iterator[Entries]:
        """Read all entries, some ten thousand at a time, which may then be deleted."""
        for keys, values in self.map.lookup_chunks():
            yield self._columns(keys, values)

    def look_up(self, keys: NDArray[np.void]) -> Entries:
        """Read those of the keys that are there, one system call for each."""
        found, values = self.map.lookup_batch_keys(keys)
        return self._columns(keys[found], values[found])

    def _columns(self, keys: NDArray[Any], values: NDArray[Any]) -> Entries:
        if self.kind is Kind.RULES:
            return Entries(keys, values["real_key"], np.zeros(len(keys), np.uint64))
        return Entries(keys, values["pos"], values["atime"])


def connection_tables(connections: Connections) -> list[Table]:
    """Give the tables that the program fills: those of the CPUs, and the one that the other CPUs share."""
    return [Table(Kind.FALLBACK if cpu is None else Kind.CPU, cpu, table) for cpu, table in connections.tables()]


def all_tables(connections: Connections, maps: BalancerMaps) -> list[Table]:
    """Give the connection tables, and that of the flows with rules where there are marks."""
    routes = maps.maps.get("hw_accel_routes")
    rules = [] if routes is None else [Table(Kind.RULES, None, routes)]
    return connection_tables(connections) + rules
