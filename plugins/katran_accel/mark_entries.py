# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the entries of marks in memory that XDP shares: bpf/balancer/mark_entry.h from user space.

An entry is live while its generations equal those of its VIP and its real; generation 0 is never live.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import FlowBatch
from nfcore.api.mark_pools import CpuPools
from nfcore.api.marks import MarkMeaning
from nfcore.api.steps import Steps

from .connection_table import VipFinder
from .inventory import Inventory
from .maps import BalancerMaps


class MarkEntries:
    """The maps `vip_map_by_id`, `hw_accel_reals` and that of the entries."""

    def __init__(self, maps: BalancerMaps, meaning: MarkMeaning, cpus: list[int]) -> None:
        self.meaning = meaning
        self._vips, self._reals = maps["vip_map_by_id"].mmap(), maps["hw_accel_reals"].mmap()
        self.pools: CpuPools | None = None
        if meaning is MarkMeaning.FLOW:
            self._entries = maps["hw_accel_mapping"].mmap()
            self.pools = CpuPools(maps["markid_pool_mapping"].mmap(), cpus)
        else:
            self._entries = maps["hw_accel_targets"].mmap()

    # VIPs and reals

    @property
    def newest_generation(self) -> int:
        """The largest generation in the maps."""
        return max(int(self._vips["generation"].max()), int(self._reals.max()))

    def forget(self) -> None:
        """Erase all entries and all generations."""
        for shared in (self._entries, self._vips, self._reals):
            shared[:] = np.zeros((), dtype=shared.dtype)

    def give_generations(self, inventory: Inventory, generation: int) -> None:
        """Give `generation`, which no entry has, to the VIPs and reals that have none."""
        for number in inventory.vips:
            if not self._vips["generation"][number]:
                self._vips[number] = inventory.vip_by_id(number, 0)
                self._vips["generation"][number] = generation
        for number in inventory.reals.values():
            if not self._reals[number]:
                self._reals[number] = generation

    def end(self, vips: Iterable[int], reals: Iterable[int]) -> None:
        """Set the generations of VIPs and reals to 0, so that no mark leads to them any more."""
        for number in vips:
            self._vips["generation"][number] = 0
        for number in reals:
            self._reals[number] = 0

    def erase_other(self, targets: NDArray[np.uint64], finder: VipFinder) -> Steps[None]:
        """Erase entries of other targets than these, and of flows that belong to another VIP by now.

        All are read in a step; meanwhile entries are written, so those to erase are compared again.
        """

        def find() -> NDArray[np.intp]:
            return self._of_others(np.flatnonzero(self._entries["vip_generation"]), targets, finder)

        self._entries["vip_generation"][self._of_others((yield find), targets, finder)] = 0

    def _of_others(self, used: NDArray[np.intp], targets: NDArray[np.uint64], finder: VipFinder) -> NDArray[np.intp]:
        entries = self._entries[used]
        vips = entries["vip_num"].astype(np.uint64)
        valid = np.isin(vips << np.uint64(32) | entries["real_key"].astype(np.uint64), targets)
        if self.meaning is MarkMeaning.FLOW:
            valid &= finder.owners(entries["flow"], entries["family"]) == vips.astype(np.int64)
        return used[~valid]

    # Marks

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Fill in the targets of an earlier run's marks; True where the entry is live (flow-id: in pinned maps)."""
        live: NDArray[np.bool_] = marks < len(self._entries)
        entries = self._entries[np.where(live, marks, 0)]
        vips, reals = entries["vip_num"].astype(np.int64), entries["real_key"].astype(np.int64)
        live &= self._are_live(entries, vips, reals)
        batch.rows["target"] = vips.astype(np.uint64) << np.uint64(32) | reals.astype(np.uint64)
        if self.meaning is MarkMeaning.FLOW:
            live &= entries["flow"] == batch.rows["key"]
            live &= entries["family"] == batch.rows["family"]
        return live

    def publish(self, batch: FlowBatch, marks: NDArray[np.uint32], targets: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Write the entries of the marks (dest-id), or check those of XDP (flow-id); True where the entry is live."""
        vips = (batch.rows["target"] >> np.uint64(32)).astype(np.int64)
        reals = (batch.rows["target"] & np.uint64(0xFFFF_FFFF)).astype(np.int64)
        live: NDArray[np.bool_] = np.isin(batch.rows["target"], targets)
        vips, reals = np.where(live, vips, 0), np.where(live, reals, 0)  # other numbers may be of nothing
        if self.meaning is MarkMeaning.FLOW:
            entries = self._entries[marks]
            live &= (entries["flow"] == batch.rows["key"]) & (entries["family"] == batch.rows["family"])
            live &= self._are_live(entries, vips, reals)
            return live
        as_wanted = self._are_live(self._entries[marks], vips, reals)
        for name, wanted in (("vip_num", vips), ("real_key", reals)):
            as_wanted &= self._entries[name][marks] == wanted
        for row in _first_per_mark(marks, live & ~as_wanted):
            self._write_target(int(marks[row]), int(vips[row]), int(reals[row]))
        return live

    def _are_live(
        self, entries: NDArray[np.void], vips: NDArray[np.int64], reals: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether the generations in each entry are not 0 and equal those of its VIP and real."""
        generations = entries["vip_generation"]
        live: NDArray[np.bool_] = (generations != 0) & (generations == self._vips["generation"][vips])
        live &= entries["real_generation"] == self._reals[reals]
        return live

    def _write_target(self, mark: int, vip_num: int, real: int) -> None:
        entry = self._entries[mark : mark + 1]
        generation, real_generation = self._vips["generation"][vip_num], self._reals[real]
        wanted = (vip_num, real, generation, real_generation)
        if tuple(entry[0]) == wanted:
            return
        # The generation is cleared first and set last: a packet in between takes the slow path.
        entry["vip_generation"] = 0
        entry["vip_num"], entry["real_key"], entry["real_generation"] = vip_num, real, real_generation
        entry["vip_generation"] = generation

    def retire(self, marks: NDArray[np.uint32]) -> None:
        """Erase the entries of the marks."""
        self._entries["vip_generation"][marks] = 0


def _first_per_mark(marks: NDArray[np.uint32], wanted: NDArray[np.bool_]) -> list[int]:
    rows = np.flatnonzero(wanted)
    return [int(rows[first]) for first in np.unique(marks[rows], return_index=True)[1]]
