# SPDX-License-Identifier: Apache-2.0
"""Writes an inventory of VIPs and reals into the maps while packets are forwarded by them.

add: counters ─► entries of marks ─► reals ─► rings ─► VIPs          each before what leads to it
remove: VIPs ─► reals ─► entries of marks                            one write ends each
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import Address
from nfcore.api.steps import Steps
from nfcore.kernel import MapType, possible_cpus

from . import layouts as lay
from .inventory import Inventory, Numbering
from .maglev_kernel import RingBuilder
from .map_entries import holds_entries, replace_entries, write_entries
from .maps import BalancerMaps
from .mark_entries import MarkEntries
from .next_hops import Sending, device_rows
from .routing_maps import RoutingMaps


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
    sending: Sending
    """By what packets are sent from then on."""
    purge: bool
    """Whether connections or marks of removed VIPs or reals may exist."""

    @classmethod
    def between(
        cls, numbering: Numbering, before: Inventory | None, after: Inventory, sending: Sending, *, purge: bool
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
            sending=sending,
            purge=purge,
        )


class MapWriter:
    """Writes changes into a balancer's maps.

    marks: the entries of the marks; None without marks. macs: addresses beside the interfaces' own whose frames are
    taken.
    """

    def __init__(self, maps: BalancerMaps, marks: MarkEntries | None, macs: Sequence[bytes] = ()) -> None:
        self._maps, self._macs = maps, frozenset(macs)
        self._marks = marks
        self._rings = RingBuilder()
        self.routing = RoutingMaps(maps.maps, is_own=maps.is_own)

    def close(self) -> None:
        """Close the program that builds rings."""
        self._rings.close()

    def add(self, change: Change, generation: int) -> Steps[None]:
        """Write what is new, each thing before what leads to it. HostError when the kernel refuses a key.

        Rings are the work of a thread. From the first one on, packets may go to what is new.
        """
        inventory, maps = change.inventory, self._maps
        for names, new in (
            (("stats", "vip_slow_stats", "server_id_stats", "decap_vip_stats"), change.new_vips),
            (("reals_stats", "real_slow_stats"), change.new_reals),
        ):
            for name in maps.maps.keys() & set(names):
                zeros = np.zeros((len(new), possible_cpus()), dtype=maps[name].spec.value)
                write_entries(maps[name], np.array(sorted(new), dtype=np.uint32), zeros)
        if self._marks is not None:
            self._marks.give_generations(inventory, generation)
        self.send_by(change.sending, inventory)
        yield partial(self.routing.write, inventory)
        if change.rings:
            yield partial(self._rings.prepare, sum(len(inventory.vips[number].reals) for number in change.rings))
        for number in change.rings:
            yield partial(self._write_ring, inventory, number)
        prefixes = [number for number, vip in inventory.vips.items() if vip.is_prefix]
        single = [number for number, vip in inventory.vips.items() if not vip.is_prefix]
        for name, key_of, numbers in (
            ("vip_addresses", inventory.address_key, [*prefixes, *single]),
            ("vip_lpm_map", inventory.lpm_key, prefixes),
            ("vip_map", inventory.vip_definition, single),
        ):
            if name not in maps:
                continue
            keys, metas = np.zeros(len(numbers), maps[name].spec.key), np.zeros(len(numbers), lay.VIP_META)
            for row, number in enumerate(numbers):
                keys[row], metas[row] = key_of(number), self._vip_meta(inventory, number)
            write_entries(maps[name], keys, metas)

    def _vip_meta(self, inventory: Inventory, number: int) -> tuple[int, int]:
        return inventory.vip_meta(number)

    def send_by(self, sending: Sending, inventory: Inventory) -> None:
        """Write reals, and by what packets are sent to them. A group is complete before a real moves to it.

        The rows of groups that are no more stay: packets may be on their way by them.
        """
        maps, devices = self._maps, max(len(sending.devices), 1)
        self._write_devices(sending)
        slots = sending.slots()
        others = slots[slots >= devices]
        write_entries(maps["hw_accel_next_hops"], others, sending.rows[others])
        reals = maps["reals"].read_array()
        for address, number in inventory.reals.items():
            before = reals["next_hop"][number]
            reals[number] = inventory.real_definition(address)
            # Those of group 0 follow below: until then its addresses may be others.
            reals["next_hop"][number] = sending.groups[address] or before
        maps["reals"].write_array(0, reals)
        default = sending.rows[:devices].copy()
        maps["hw_accel_next_hops"].write_array(0, default)
        default["pad"] = 0
        maps["ctl_array"].write_array(0, default[:1])
        for address, number in inventory.reals.items():
            reals["next_hop"][number] = sending.groups[address]
        maps["reals"].write_array(0, reals)

    def sent_by_others(self) -> Sending:
        """Give the groups of a killed run, whose program may still forward by them: their numbers are not free."""
        numbers = np.unique(self._maps["reals"].read_array()["next_hop"])
        return Sending(members=dict.fromkeys(numbers[numbers != 0].tolist(), ()))

    def sends_by(self, sending: Sending, inventory: Inventory) -> bool:
        """Whether the maps are as :meth:`send_by` would leave them, whoever has written them."""
        maps, rows, used = self._maps, sending.rows, sending.slots()
        hops, default = maps["hw_accel_next_hops"].read_slice(0, len(rows)), maps["ctl_array"].read_slice(0, 1)
        reals = maps["reals"].read_array()["next_hop"]
        return (
            hops[used[1:]].tobytes() == rows[used[1:]].tobytes()
            and default["mac"].tobytes() == rows["mac"][:1].tobytes()
            and np.array_equal(
                reals[list(inventory.reals.values())], [sending.groups[real] for real in inventory.reals]
            )
            and holds_entries(maps["hw_accel_macs"], *self._mac_rows(sending))
            and holds_entries(maps["hw_accel_devices"], *self._device_rows(sending))
        )

    def macs_in_use(self, inventory: Inventory, devices: int) -> dict[Address, list[bytes]]:
        """Read to what MAC addresses the program sends packets for each real, per device; zeros: it drops them."""
        hops = self._maps["hw_accel_next_hops"].read_array()
        hops[0] = self._maps["ctl_array"].read_slice(0, 1)[0]
        reals = self._maps["reals"].read_array()["next_hop"]
        return {
            address: [hops["mac"][int(reals[number]) * devices + place].tobytes() for place in range(devices)]
            for address, number in inventory.reals.items()
        }

    def _write_devices(self, sending: Sending) -> None:
        """Write the devices' own addresses, and which ports receive their packets."""
        for name, rows in ("hw_accel_macs", self._mac_rows(sending)), ("hw_accel_devices", self._device_rows(sending)):
            replace_entries(self._maps[name], *rows)

    def _device_rows(self, sending: Sending) -> tuple[NDArray[np.uint32], NDArray[np.void]]:
        """Give the content of `hw_accel_devices`: one device is found without its ifindex."""
        keys, rows = device_rows(sending)
        one = self._maps["hw_accel_devices"].spec.type is MapType.ARRAY
        return (np.zeros(1, np.uint32), rows[:1]) if one else (keys, rows)

    def _mac_rows(self, sending: Sending) -> tuple[NDArray[Any], NDArray[np.uint32]]:
        """Give the content of `hw_accel_macs`: the ports of a bond may have addresses of their own."""
        macs = sorted(self._macs | {mac for facts in sending.devices for mac in facts.ports.values()})
        keys = np.zeros(len(macs), lay.CTL_VALUE)
        for key, mac in zip(keys, macs, strict=True):
            key["mac"] = list(mac)
        return keys, np.ones(len(macs), np.uint32)

    def _write_ring(self, inventory: Inventory, number: int) -> None:
        self._maps.write_ring(number, inventory.ring(number, self._rings.build))

    def remove(self, change: Change) -> None:
        """End what is gone: from then on no packet is sent by it."""
        self._remove_other_vips(change.inventory)
        self._end_reals(change.inventory)
        if self._marks is not None:
            self._marks.end(change.gone_vips, change.gone_reals)

    def _end_reals(self, inventory: Inventory) -> None:
        reals = self._maps["reals"].read_array()
        gone = np.ones(len(reals), dtype=bool)
        gone[list(inventory.reals.values())] = False
        reals["flags"][gone] |= np.uint8(lay.RealFlag.GONE)
        self._maps["reals"].write_array(0, reals)

    def _remove_other_vips(self, inventory: Inventory) -> None:
        """Remove VIPs that are not in the inventory, those of an earlier run included."""
        for name, key_of in (
            ("vip_map", inventory.vip_definition),
            ("vip_lpm_map", inventory.lpm_key),
            ("vip_addresses", inventory.address_key),
        ):
            if name not in self._maps:
                continue
            wanted = {key_of(number).tobytes() for number in inventory.vips}
            keys, _ = self._maps[name].lookup_all()
            self._maps[name].delete_batch(keys[[key.tobytes() not in wanted for key in keys]])
