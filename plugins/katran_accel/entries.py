# SPDX-License-Identifier: Apache-2.0
"""Server ids and source routes: hundreds of thousands of keys, each with its real, as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.config import Network
from nfcore.api.flows import Address, join_rows

SERVER_ID = np.dtype("<u4")
PREFIX = np.dtype([("family", "u1"), ("length", "u1"), ("addr", "u1", (16,))])
"""Clients, by a prefix of their addresses; an IPv4 address is in the first four bytes. The bits after it are 0."""


def prefix_key(network: Network) -> bytes:
    """Give a prefix as a key of type :data:`PREFIX`."""
    return bytes((network.version, network.prefixlen)) + network.network_address.packed.ljust(16, b"\0")


def key_text(key: Any) -> str:
    """Write a key as the TOML has it."""
    if not isinstance(key, np.void):
        return str(int(key))
    version, length = int(key["family"]), int(key["length"])
    address = ip_address(key["addr"].tobytes()[: 4 if version == 4 else 16])
    return str(address) if length == address.max_prefixlen else str(ip_network((address, length)))


@dataclass(frozen=True, eq=False)
class Entries:
    """Keys, ascending and each once, with the real of each. Arrays are not to be written to."""

    keys: NDArray[Any]
    """Of type :data:`SERVER_ID` or :data:`PREFIX`; prefixes are ordered by their bytes."""
    reals: NDArray[np.int64]
    """Where in `addresses` the real of each key is."""
    addresses: tuple[Address, ...]
    """Different ones, each of which some key has."""

    @classmethod
    def of(cls, keys: NDArray[Any], reals: Sequence[int] | NDArray[Any], addresses: Sequence[Address]) -> Entries:
        """Order keys; of equal ones the first counts. `reals`: places in `addresses`."""
        places: dict[Address, int] = {}
        same = np.array([places.setdefault(address, len(places)) for address in addresses], np.int64)
        _, first = np.unique(sortable(keys), return_index=True)
        used, numbers = np.unique(same[np.asarray(reals, np.int64)[first]], return_inverse=True)
        known = list(places)
        return cls(keys[first], numbers.reshape(-1), tuple(known[place] for place in used.tolist()))

    @classmethod
    def of_server_ids(cls, pairs: Iterable[tuple[int, Address]]) -> Entries:
        """Take ids with their reals."""
        ids, reals = _columns(pairs)
        return cls.of(np.array(ids, SERVER_ID), range(len(reals)), reals)

    @classmethod
    def of_routes(cls, pairs: Iterable[tuple[Network, Address]]) -> Entries:
        """Take prefixes with their reals."""
        prefixes, reals = _columns(pairs)
        keys = np.frombuffer(b"".join(map(prefix_key, prefixes)), PREFIX)
        return cls.of(keys, range(len(reals)), reals)

    def __len__(self) -> int:
        return len(self.keys)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Entries)
            and self.keys.dtype == other.keys.dtype
            and len(self) == len(other)
            and not self.differing(other).any()
        )

    def __hash__(self) -> int:
        return hash((len(self), frozenset(self.addresses)))

    @cached_property
    def _sortable(self) -> NDArray[Any]:
        return sortable(self.keys)

    def places(self, keys: NDArray[Any]) -> NDArray[np.int64]:
        """Where each of other keys is among these; -1: it is not."""
        wanted = sortable(keys)
        if not len(self):
            return np.full(len(wanted), -1)
        found = np.minimum(np.searchsorted(self._sortable, wanted), len(self) - 1)
        return np.where(self._sortable[found] == wanted, found, -1)

    def after(self, key: NDArray[Any]) -> int:
        """Count the keys up to and including one, which need not be among these; shape (1,)."""
        return int(np.searchsorted(self._sortable, sortable(key), side="right")[0])

    def joined(self, more: Entries) -> Entries:
        """Give these and others; where both have a key, these count."""
        if not len(self) or not len(more):
            return self if len(self) else more
        keys = join_rows((self.keys, more.keys), self.keys.dtype)
        reals = np.concatenate([self.reals, more.reals + len(self.addresses)])
        return Entries.of(keys, reals, (*self.addresses, *more.addresses))

    def select(self, wanted: NDArray[Any]) -> Entries:
        """Give some of these, by a mask or by ascending places."""
        used, numbers = np.unique(self.reals[wanted], return_inverse=True)
        return Entries(self.keys[wanted], numbers.reshape(-1), tuple(self.addresses[real] for real in used.tolist()))

    def without(self, keys: NDArray[Any]) -> Entries:
        """Give these without some keys."""
        gone = self.places(keys)
        wanted = np.ones(len(self), dtype=bool)
        wanted[gone[gone >= 0]] = False
        return self if wanted.all() else self.select(wanted)

    def differing(self, other: Entries) -> NDArray[np.bool_]:
        """Say which of these are not among others, or have another real there."""
        places = other.places(self.keys)
        theirs = {address: number for number, address in enumerate(other.addresses)}
        same = np.array([theirs.get(address, -1) for address in self.addresses], np.int64)
        if not len(other):
            return np.ones(len(self), dtype=bool)
        differing: NDArray[np.bool_] = (places < 0) | (other.reals[places] != same[self.reals])
        return differing

    def numbers(self, reals: Mapping[Address, int]) -> NDArray[np.uint32]:
        """Give the number of each key's real."""
        known = np.array([reals[address] for address in self.addresses], np.uint32)
        numbers: NDArray[np.uint32] = known[self.reals]
        return numbers

    def real(self, place: int) -> Address:
        """Give the real of one key."""
        return self.addresses[int(self.reals[place])]


def sortable(keys: NDArray[Any]) -> NDArray[Any]:
    """Give keys in a form that numpy can order: structured ones as opaque bytes."""
    if keys.dtype.names is None:
        return keys
    return np.ascontiguousarray(keys).view(np.dtype((np.void, keys.dtype.itemsize))).reshape(len(keys))


def _columns(pairs: Iterable[tuple[Any, Address]]) -> tuple[list[Any], list[Address]]:
    listed = list(pairs)
    return [key for key, _ in listed], [real for _, real in listed]
