# SPDX-License-Identifier: Apache-2.0
"""VIPs and reals by number, as the maps know them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfcore.flows import Address, pack_address

from . import layouts as lay
from .maglev import Endpoint, build_ring
from .table import KatranTable, VipTable


@dataclass(frozen=True)
class Inventory:
    """The configuration's VIPs, numbered from 0, and reals, numbered from 1 in order of first appearance."""

    vips: tuple[VipTable, ...]
    reals: dict[Address, int]
    maglev: int

    @classmethod
    def of(cls, table: KatranTable) -> Inventory:
        """Number what the TOML names."""
        reals: dict[Address, int] = {}
        for vip in table.vips:
            for real in vip.reals:
                reals.setdefault(real.address, len(reals) + 1)
        return cls(tuple(table.vips), reals, table.maglev)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Give (VIP number, real number) in the TOML's order."""
        for number, vip in enumerate(self.vips):
            for real in vip.reals:
                yield number, self.reals[real.address]

    def shadowed(self) -> frozenset[int]:
        """VIPs part of whose packets belong to another VIP, which is found first.

        A mark of such a VIP's target could not tell them apart by address and port alone, so none is given.
        """
        return frozenset(
            number for number, vip in enumerate(self.vips) if any(vip.loses_to(other) for other in self.vips)
        )

    def real_name(self, number: int) -> str | None:
        """Give the address of a real number, if there is such a real."""
        return next((str(address) for address, known in self.reals.items() if known == number), None)

    def ring(self, vip_num: int) -> NDArray[np.uint32]:
        """Give the Maglev ring of a VIP, :data:`layouts.RING_SLOTS` real numbers; 0 where it has no real."""
        endpoints = [Endpoint(self.reals[real.address], real.address, real.weight) for real in self.vips[vip_num].reals]
        return build_ring(endpoints, version=self.maglev)

    def vip_definition(self, vip_num: int) -> NDArray[np.void]:
        """Give the key of a VIP in `vip_map`."""
        vip, key = self.vips[vip_num], np.zeros((), dtype=lay.VIP_DEFINITION)
        key["addr"], key["port"], key["proto"] = (
            pack_address(vip.address.network_address),
            vip.port,
            vip.proto,
        )
        return key

    def lpm_key(self, vip_num: int) -> NDArray[np.void]:
        """Give the key of a VIP in `vip_lpm_map`."""
        vip, key = self.vips[vip_num], np.zeros((), dtype=lay.VIP_LPM_KEY)
        key["prefixlen"] = 32 + vip.address.prefixlen
        key["addr"], key["port"], key["proto"] = (
            pack_address(vip.address.network_address),
            vip.port,
            vip.proto,
        )
        return key

    def vip_by_id(self, vip_num: int, generation: int) -> NDArray[np.void]:
        """Give the entry of a VIP in `vip_map_by_id`."""
        vip, entry = self.vips[vip_num], np.zeros((), dtype=lay.VIP_BY_ID)
        entry["addr"], entry["mask"] = (
            pack_address(vip.address.network_address),
            pack_address(vip.address.netmask),
        )
        entry["port"], entry["proto"], entry["family"] = vip.port, vip.proto, vip.address.version
        entry["flags"], entry["generation"] = vip.flag_bits, generation
        return entry

    def real_definitions(self) -> NDArray[np.void]:
        """Give `reals` from index 0, which is no real."""
        rows = np.zeros(len(self.reals) + 1, dtype=lay.REAL_DEFINITION)
        for address, number in self.reals.items():
            rows[number]["addr"] = pack_address(address)
            rows[number]["flags"] = lay.RealFlag.IPV6 if address.version == 6 else 0
        return rows
