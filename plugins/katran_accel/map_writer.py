# SPDX-License-Identifier: Apache-2.0
"""From one inventory of VIPs and reals to the next, in maps by which packets are forwarded meanwhile.

add: counters ─► entries of marks ─► reals ─► rings ─► VIPs          each before whatever leads to it
remove: VIPs ─► reals ─► entries of marks                            each stops steering by one write
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
    """From one inventory to the next: what the maps have to be told."""

    inventory: Inventory
    rings: list[int]
    """Numbers of the VIPs that get a new ring."""
    new_vips: frozenset[int]
    new_reals: frozenset[int]
    gone_vips: frozenset[int]
    gone_reals: frozenset[int]
    gateway: str | None
    """MAC address; None: as it is."""
    purge: bool
    """Whether connections or marks may be of something that is gone."""

    @classmethod
    def between(
        cls, numbering: Numbering, before: Inventory | None, after: Inventory, gateway: str | None, *, purge: bool
    ) -> Change:
        """Compare a plan with what is numbered now. Changes nothing."""
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
    """Writes changes into a balancer's maps. `marks`: what marks mean, where there are any."""

    def __init__(self, maps: BalancerMaps, marks: MarkEntries | None) -> None:
        self._maps = maps
        self._marks = marks
        self._rings = RingBuilder()

    def close(self) -> None:
        """Let go of what builds rings."""
        self._rings.close()

    def add(self, change: Change, generation: int) -> None:
        """Write what is new, each thing before whatever leads there. HostError when the kernel refuses a key."""
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
                nothing = np.zeros((len(new), possible_cpus()), dtype=maps[name].spec.value)
                _write(maps[name], np.array(sorted(new), dtype=np.uint32), nothing)
        if self._marks is not None:
            self._marks.bring_to_life(inventory, generation)
        reals = maps["reals"].read_array()
        for address, number in inventory.reals.items():
            reals[number] = inventory.real_definition(address)
        maps["reals"].write_array(0, reals)
        self._write_rings(inventory, change.rings)
        for name, key_of, prefixes in (
            ("vip_lpm_map", inventory.lpm_key, True),
            ("vip_map", inventory.vip_definition, False),
        ):
            numbers = [number for number, vip in inventory.vips.items() if vip.is_prefix == prefixes]
            keys, metas = np.zeros(len(numbers), maps[name].spec.key), np.zeros(len(numbers), lay.VIP_META)
            for place, number in enumerate(numbers):
                keys[place], metas[place] = key_of(number), (inventory.vips[number].flag_bits, number)
            _write(maps[name], keys, metas)

    def _write_rings(self, inventory: Inventory, numbers: list[int]) -> None:
        self._rings.prepare(sum(len(inventory.vips[number].reals) for number in numbers))
        for number in numbers:
            self._maps.write_ring(number, inventory.ring(number, self._rings.build))

    def remove(self, change: Change) -> None:
        """Stop what is gone from steering."""
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
        """Remove the VIPs that the inventory does not name, whoever wrote them."""
        for name, key_of in (("vip_map", inventory.vip_definition), ("vip_lpm_map", inventory.lpm_key)):
            wanted = {key_of(number).tobytes() for number in inventory.vips}
            keys, _ = self._maps[name].lookup_all()
            self._maps[name].delete_batch(keys[[key.tobytes() not in wanted for key in keys]])


def _write(map_: Map, keys: NDArray[Any], values: NDArray[Any]) -> None:
    """Set many keys. HostError when the kernel refuses one."""
    result = map_.update_batch(keys, values)
    if result.errno:
        raise HostError(f"cannot set key {keys[result.done]} of map {map_.spec.name}: {os.strerror(result.errno)}")
