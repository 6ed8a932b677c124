# SPDX-License-Identifier: Apache-2.0
"""Writes an inventory of VIPs and reals into the maps while packets are forwarded by them.

add: counters ─► entries of marks ─► reals ─► rings ─► VIPs          each before what leads to it
remove: VIPs ─► reals ─► entries of marks                            one write ends each
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.errors import HostError
from nfcore.kernel import Map, possible_cpus

from . import layouts as lay
from .inventory import Inventory, Numbering
from .maglev_kernel import RingBuilder
from .maps import BalancerMaps
from .mark_entries import MarkEntries


@dataclass(frozen=True)
class Change:
    """What is different between two inventories, and has to be written into the maps."""

    inventory: Inventory
    rings: list[int]
    """Numbers of the VIPs that get a new ring."""
    new_vips: frozenset[int]
    new_reals: frozenset[int]
    gone_vips: frozenset[int]
    gone_reals: frozenset[int]
    gateway: str | None
    """MAC address; None: unchanged."""
    purge: bool
    """Whether connections or marks of removed VIPs or reals may exist."""

    @classmethod
    def between(
        cls, numbering: Numbering, before: Inventory | None, after: Inventory, gateway: str | None, *, purge: bool
    ) -> Change:
        """Compare a plan with the current numbers. Changes nothing."""
        vips, reals = set(numbering.vips.taken.values()), set(numbering.reals.taken.values())
        rings = [
            number
            for number in after.vips
            if before is None or number not in before.vips or before.shares(number) != after.shares(number)
        ]
        return cls(
            inventory=after,
            rings=rings,
            new_vips=frozenset(after.vips) - vips,
            new_reals=frozenset(after.reals.values()) - reals,
            gone_vips=frozenset(vips - set(after.vips)),
            gone_reals=frozenset(reals - set(after.reals.values())),
            gateway=gateway,
            purge=purge,
        )


class MapWriter:
    """Writes changes into a balancer's maps. `marks`: the entries of the marks; None without marks."""

    def __init__(self, maps: BalancerMaps, marks: MarkEntries | None) -> None:
        self._maps = maps
        self._marks = marks
        self._rings = RingBuilder()

    def close(self) -> None:
        """Close the program that builds rings."""
        self._rings.close()

    def add(self, change: Change, generation: int) -> None:
        """Write what is new, each thing before what leads to it. HostError when the kernel refuses a key."""
        inventory, maps = change.inventory, self._maps
        if change.gateway is not None:
            ctl = np.zeros(1, dtype=lay.CTL_VALUE)
            ctl["mac"][0] = np.frombuffer(bytes.fromhex(change.gateway.replace(":", "")), dtype=np.uint8)
            maps["ctl_array"].write_array(0, ctl)
        for names, new in (
            (("stats", "vip_slow_stats"), change.new_vips),
            (("reals_stats", "real_slow_stats"), change.new_reals),
        ):
            for name in names:
                zeros = np.zeros((len(new), possible_cpus()), dtype=maps[name].spec.value)
                _write(maps[name], np.array(sorted(new), dtype=np.uint32), zeros)
        if self._marks is not None:
            self._marks.give_generations(inventory, generation)
        reals = maps["reals"].read_array()
        for address, number in inventory.reals.items():
            reals[number] = inventory.real_definition(address)
        maps["reals"].write_array(0, reals)
        self._write_rings(inventory, change.rings)
        prefixes = [number for number, vip in inventory.vips.items() if vip.is_prefix]
        single = [number for number, vip in inventory.vips.items() if not vip.is_prefix]
        for name, key_of, numbers in (
            ("vip_addresses", inventory.address_key, [*prefixes, *single]),
            ("vip_lpm_map", inventory.lpm_key, prefixes),
            ("vip_map", inventory.vip_definition, single),
        ):
            keys, metas = np.zeros(len(numbers), maps[name].spec.key), np.zeros(len(numbers), lay.VIP_META)
            for row, number in enumerate(numbers):
                keys[row], metas[row] = key_of(number), inventory.vip_meta(number)
            _write(maps[name], keys, metas)

    def _write_rings(self, inventory: Inventory, numbers: list[int]) -> None:
        self._rings.prepare(sum(len(inventory.vips[number].reals) for number in numbers))
        for number in numbers:
            self._maps.write_ring(number, inventory.ring(number, self._rings.build))

    def remove(self, change: Change) -> None:
        """End what is gone: from then on no packet is sent by it."""
        inventory = change.inventory
        self._remove_other_vips(inventory)
        reals = self._maps["reals"].read_array()
        gone = np.ones(len(reals), dtype=bool)
        gone[list(inventory.reals.values())] = False
        reals["flags"][gone] |= np.uint8(lay.RealFlag.GONE)
        self._maps["reals"].write_array(0, reals)
        if self._marks is not None:
            self._marks.end(change.gone_vips, change.gone_reals)

    def _remove_other_vips(self, inventory: Inventory) -> None:
        """Remove VIPs that are not in the inventory, those of an earlier run included."""
        for name, key_of in (
            ("vip_map", inventory.vip_definition),
            ("vip_lpm_map", inventory.lpm_key),
            ("vip_addresses", inventory.address_key),
        ):
            wanted = {key_of(number).tobytes() for number in inventory.vips}
            keys, _ = self._maps[name].lookup_all()
            self._maps[name].delete_batch(keys[[key.tobytes() not in wanted for key in keys]])


def _write(map_: Map, keys: NDArray[Any], values: NDArray[Any]) -> None:
    """Set keys. HostError when the kernel refuses one."""
    result = map_.update_batch(keys, values)
    if result.errno:
        raise HostError(f"cannot set key {keys[result.done]} of map {map_.spec.name}: {os.strerror(result.errno)}")
