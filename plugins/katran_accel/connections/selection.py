# SPDX-License-Identifier: Apache-2.0
"""Which entries of the connection tables are meant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfcore.api.config import Network
from nfcore.api.flows import pack_address, take_rows

from ..connection_table import VipFinder, families_of_entries
from ..inventory import Inventory
from .entries import Entries


@dataclass(frozen=True)
class Selection:
    """Entries of one VIP, to one real, of clients in one prefix; None: any."""

    vip: int | None = None
    """Its number."""
    real: int | None = None
    """Its number."""
    client: Network | None = None

    def find(self, entries: Entries, finder: VipFinder) -> NDArray[np.intp]:
        """Give the places of the entries that are meant, ascending."""
        chosen = np.arange(len(entries)) if self.real is None else np.flatnonzero(entries.reals == self.real)
        if self.client is not None:
            chosen = chosen[_have_client(take_rows(entries.keys, chosen), self.client)]
        if self.vip is not None:
            chosen = chosen[finder.are_of(self.vip, take_rows(entries.keys, chosen))]
        return chosen

    def targets(self, inventory: Inventory) -> NDArray[np.uint64]:
        """Give the targets of such flows."""
        targets = inventory.targets()
        if self.vip is not None:
            targets = targets[targets >> np.uint64(32) == self.vip]
        if self.real is not None:
            targets = targets[targets & np.uint64(0xFFFF_FFFF) == self.real]
        return targets


def _have_client(keys: NDArray[np.void], network: Network) -> NDArray[np.bool_]:
    """Which connections come from an address of a network."""
    mask, base = pack_address(network.netmask).view(np.uint64), pack_address(network.network_address).view(np.uint64)
    words = np.ascontiguousarray(keys["src"]).view(np.uint64).reshape(len(keys), 2)
    from_there: NDArray[np.bool_] = ((words & mask) == base).all(axis=1)
    likely = np.flatnonzero(from_there)
    from_there[likely] = families_of_entries(take_rows(keys, likely)) == network.version
    return from_there
