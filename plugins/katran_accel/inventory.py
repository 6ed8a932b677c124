# SPDX-License-Identifier: Apache-2.0
"""The numbers of VIPs and reals in the maps. A VIP or real keeps its number when the TOML changes.

TOML ──► Numbering.plan ──► Inventory ──► maps
             ▲ │ take                            (plan changes nothing; take makes a plan the current one)
       note ─┘ └► note in the state file, for the next run with the same pins
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import Address, pack_address
from nfcore.errors import NfcoreError

from . import layouts as lay
from .config import NAME, KatranTable, VipTable
from .maglev import BuildRing, Endpoint, build_ring
from .routing import Routing, all_reals

NUMBERING = f"{NAME}.numbering"
"""State-file key: which VIP or real each number in the pinned maps stands for."""


class NumbersExhaustedError(NfcoreError):
    """There are more new VIPs or reals than free numbers."""


class Numbers:
    """Gives names the numbers from `first` to `end` - 1.

    A name keeps its number for as long as it is wanted; a new name gets the lowest free one. A number that :meth:`take`
    gives up is free again after `rest` seconds of `clock`.
    """

    def __init__(self, first: int, end: int, rest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rest = rest
        self.taken: dict[str, int] = {}
        self._first, self._end, self._clock = first, end, clock
        self._rests_until: dict[int, float] = {}
        """Number → when it is free again."""

    @property
    def resting(self) -> list[int]:
        """Numbers that rest now, ascending."""
        now = self._clock()
        return sorted(number for number, until in self._rests_until.items() if now < until)

    def plan(self, wanted: Iterable[str]) -> dict[str, int]:
        """Number each name. Changes nothing. NumbersExhaustedError when too few numbers are free."""
        names = list(dict.fromkeys(wanted))
        unavailable = {*self.taken.values(), *self.resting}
        free = (number for number in range(self._first, self._end) if number not in unavailable)
        plan: dict[str, int] = {}
        for name in names:
            number = self.taken.get(name)
            if number is None:
                number = next(free, None)
            if number is None:
                size = self._end - self._first
                raise NumbersExhaustedError(
                    f"there are {size} numbers, of which {size - len(unavailable)} are free for new ones; "
                    f"the number of a removed one rests for {self.rest:g} s"
                )
            plan[name] = number
        return plan

    def take(self, plan: dict[str, int]) -> None:
        """Make a plan the current one; numbers that it leaves out rest from now on."""
        kept = set(plan.values())
        self._let_rest(number for number in self.taken.values() if number not in kept)
        self.taken = dict(plan)

    def resume(self, taken: dict[str, int], resting: Iterable[int]) -> None:
        """Continue where another run stopped. Numbers that rested then rest for the full time again."""
        self.taken = dict(taken)
        self._let_rest(resting)

    def _let_rest(self, numbers: Iterable[int]) -> None:
        until = self._clock() + self.rest
        self._rests_until = {number: self._rests_until[number] for number in self.resting}
        self._rests_until |= dict.fromkeys(numbers, until)


def identity(vip: VipTable) -> str:
    """What makes a VIP the same one in two TOMLs: address, port, protocol and flags."""
    return f"{vip.name} {vip.flag_bits}"


class Numbering:
    """The numbers of VIPs, by :func:`identity` from 0, and of reals, by address from 1."""

    def __init__(self, rest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.vips = Numbers(0, lay.MAX_VIPS, rest, clock)
        self.reals = Numbers(1, lay.MAX_REALS, rest, clock)

    def let_rest_for(self, rest: float) -> None:
        """Set for how many seconds numbers rest that are given up from now on."""
        self.vips.rest = self.reals.rest = rest

    def plan(self, table: KatranTable, routing: Routing | None = None) -> Inventory:
        """Number the VIPs and reals of a TOML. Changes nothing. NumbersExhaustedError says which do not fit.

        routing: what is in effect instead of the TOML's server ids and source routes.
        """
        routing = Routing.of(table) if routing is None else routing
        vips = self._plan_numbers(self.vips, "VIPs", [identity(vip) for vip in table.vips])
        addresses = all_reals(table, routing)
        reals = self._plan_numbers(self.reals, "reals", [str(address) for address in addresses])
        return Inventory(
            {vips[identity(vip)]: vip for vip in table.vips},
            {address: reals[str(address)] for address in addresses},
            table,
            routing,
        )

    @staticmethod
    def _plan_numbers(numbers: Numbers, what: str, wanted: list[str]) -> dict[str, int]:
        try:
            return numbers.plan(wanted)
        except NumbersExhaustedError as error:
            raise NumbersExhaustedError(f"{what}: {error}") from None

    def take(self, inventory: Inventory) -> None:
        """Make a plan the current one; numbers that it leaves out rest from now on."""
        self.vips.take(inventory.vip_numbers)
        self.reals.take(inventory.real_numbers)

    def note(self, planned: Inventory | None = None) -> dict[str, object]:
        """Give the numbers, and those that rest, as JSON values; with `planned`, also those of a plan to be applied."""
        vips, reals = (planned.vip_numbers, planned.real_numbers) if planned else ({}, {})
        return {
            "vips": self.vips.taken | vips,
            "reals": self.reals.taken | reals,
            "resting": {"vips": self.vips.resting, "reals": self.reals.resting},
        }

    def resume(self, note: dict[str, object]) -> None:
        """Continue where the run that wrote the note stopped. ValueError, and no change, when the note is not valid."""
        resting = note.get("resting")
        if not isinstance(resting, dict):
            raise ValueError("the note has no resting numbers")
        found = {}
        for kind, first, end in (("vips", 0, lay.MAX_VIPS), ("reals", 1, lay.MAX_REALS)):
            taken, rest = note.get(kind), resting.get(kind)
            if not isinstance(taken, dict) or not isinstance(rest, list):
                raise ValueError(f"the note has no {kind}")
            numbers = [*taken.values(), *rest]
            in_range = all(type(number) is int and first <= number < end for number in numbers)
            if not in_range or len(set(numbers)) != len(numbers):
                raise ValueError(f"the note has invalid numbers of {kind}")
            found[kind] = taken, rest
        self.vips.resume(*found["vips"])
        self.reals.resume(*found["reals"])


def _overlaps(vips: list[VipTable]) -> NDArray[np.bool_]:
    """Whether each VIP has an address in common with each other; shape (n, n)."""
    # numpy has no integers of 128 bits: compare the ranks of the addresses instead.
    bounds = [
        [(vip.address.version, int(end)) for end in (vip.address.network_address, vip.address.broadcast_address)]
        for vip in vips
    ]
    ranks = {bound: rank for rank, bound in enumerate(sorted({each for pair in bounds for each in pair}))}
    first, last = np.array([[ranks[each] for each in pair] for pair in bounds]).T
    overlaps: NDArray[np.bool_] = (first[:, None] <= last) & (first <= last[:, None])
    return overlaps


@dataclass(frozen=True)
class Inventory:
    """The VIPs and reals of one TOML with their numbers."""

    vips: dict[int, VipTable]
    """In the TOML's order."""
    reals: dict[Address, int]
    """In order of first appearance."""
    table: KatranTable
    routing: Routing

    @property
    def vip_numbers(self) -> dict[str, int]:
        """Number of each VIP, by identity."""
        return {identity(vip): number for number, vip in self.vips.items()}

    @property
    def real_numbers(self) -> dict[str, int]:
        """Number of each real, by the text of its address."""
        return {str(address): number for address, number in self.reals.items()}

    @cached_property
    def _numbers(self) -> dict[int, list[int]]:
        """VIP number → the numbers of its reals, in the TOML's order. Cached: the hash of an address is slow."""
        return {number: [self.reals[real.address] for real in vip.reals] for number, vip in self.vips.items()}

    @cached_property
    def _local_reals(self) -> frozenset[Address]:
        return frozenset(real.address for vip in self.vips.values() for real in vip.reals if real.local)

    def server_id_numbers(self) -> NDArray[np.uint32]:
        """Give the number of the real of each server id; 0 while the id is invalid."""
        return np.where(self.routing.invalid, np.uint32(0), self.routing.server_ids.numbers(self.reals))

    def source_route_numbers(self) -> NDArray[np.uint32]:
        """Give the number of the real of each source route."""
        return self.routing.source_routes.numbers(self.reals)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Give each (VIP number, real number) in the TOML's order."""
        for number, reals in self._numbers.items():
            for real in reals:
                yield number, real

    @cached_property
    def _targets(self) -> NDArray[np.uint64]:
        counts = [len(reals) for reals in self._numbers.values()]
        vips = np.repeat(np.array(list(self._numbers), dtype=np.uint64), counts)
        reals = np.fromiter((real for reals in self._numbers.values() for real in reals), np.uint64, sum(counts))
        return vips << np.uint64(32) | reals

    def targets(self) -> NDArray[np.uint64]:
        """Give :meth:`pairs` as targets. Not to be written to."""
        return self._targets

    @cached_property
    def winners(self) -> dict[int, frozenset[str]]:
        """VIPs that lose some of their packets to other VIPs: number → identities of the others."""
        vips, names = list(self.vips.values()), list(self.vip_numbers)
        found = {
            number: frozenset(names[other] for other in np.flatnonzero(row) if vip.loses_to(vips[other]))
            for (number, vip), row in zip(self.vips.items(), _overlaps(vips), strict=True)
            if vip.is_prefix or not vip.port  # the others lose no packets
        }
        return {number: others for number, others in found.items() if others}

    def shadowed(self) -> frozenset[int]:
        """Numbers of VIPs that lose some of their packets to another VIP.

        The check of a dest-id mark compares a packet with the mark's VIP alone and would accept those packets, so the
        targets of such a VIP get no marks.
        """
        return frozenset(self.winners)

    def vips_with(self, flags: lay.VipFlag) -> Iterator[int]:
        """Give the numbers of VIPs with one of the flags."""
        return (number for number, vip in self.vips.items() if vip.flag_bits & flags)

    def down_reals(self) -> dict[int, list[int]]:
        """Give the numbers of VIPs whose UDP flows migrate, each with its reals that are down."""
        migrating = {number: vip for number, vip in self.vips.items() if vip.flag_bits & lay.VipFlag.UDP_FLOW_MIGRATION}
        down = {n: [self.reals[real.address] for real in vip.reals if real.down] for n, vip in migrating.items()}
        return {number: reals for number, reals in down.items() if reals}

    def left_targets(self) -> NDArray[np.uint64]:
        """Give the targets that no packet is sent to, although they exist: flows leave reals that are down."""
        left = [lay.make_target(number, real) for number, reals in self.down_reals().items() for real in reals]
        return np.array(left, np.uint64)

    def shares(self, vip_num: int) -> dict[int, int]:
        """Give the weight of each real of a VIP by the real's number: all that the ring depends on."""
        numbered = zip(self._numbers[vip_num], self.vips[vip_num].reals, strict=True)
        return {number: real.share for number, real in numbered}

    def real_name(self, number: int) -> str | None:
        """Give the address of a real number, if there is such a real."""
        return next((str(address) for address, known in self.reals.items() if known == number), None)

    def ring(self, vip_num: int, build: BuildRing = build_ring) -> NDArray[np.uint32]:
        """Give the Maglev ring of a VIP, :data:`layouts.RING_SLOTS` real numbers; 0 where it has no real."""
        numbered = zip(self._numbers[vip_num], self.vips[vip_num].reals, strict=True)
        endpoints = [Endpoint(number, real.address, real.share) for number, real in numbered]
        return build(endpoints, version=self.table.maglev)

    def vip_definition(self, vip_num: int) -> NDArray[np.void]:
        """Give the key of a VIP in `vip_map`."""
        return self._vip_struct(vip_num, lay.VIP_DEFINITION)

    def lpm_key(self, vip_num: int) -> NDArray[np.void]:
        """Give the key of a VIP in `vip_lpm_map`."""
        key = self._vip_struct(vip_num, lay.VIP_LPM_KEY)
        key["prefixlen"] = 32 + self.vips[vip_num].address.prefixlen
        return key

    def address_key(self, vip_num: int) -> NDArray[np.void]:
        """Give the key of a VIP's address in `vip_addresses`."""
        vip, key = self.vips[vip_num], np.zeros((), dtype=lay.VIP_ADDRESS_KEY)
        key["prefixlen"], key["family"] = 32 + vip.address.prefixlen, vip.address.version
        key["proto"], key["addr"] = vip.proto, pack_address(vip.address.network_address)
        return key

    def vip_meta(self, vip_num: int) -> tuple[int, int]:
        """Give the value of a VIP in `vip_map` or `vip_lpm_map`: flags, with nfcore's own, and number."""
        vip = self.vips[vip_num]
        return vip.flag_bits | lay.ONLY_FAMILY[vip.address.version] | self._beneath(vip) << lay.BENEATH_SHIFT, vip_num

    def _beneath(self, vip: VipTable) -> int:
        """Length, and one, of the longest prefix VIP of the other family that has a prefix VIP's bits; 0: none."""
        if not vip.is_prefix:
            return 0
        lengths = [0, *(1 + other.address.prefixlen for other in self.vips.values() if other.lies_beneath(vip))]
        return max(lengths)

    def vip_by_id(self, vip_num: int, generation: int) -> NDArray[np.void]:
        """Give the entry of a VIP in `vip_map_by_id`."""
        vip, entry = self.vips[vip_num], self._vip_struct(vip_num, lay.VIP_BY_ID)
        entry["mask"], entry["family"] = pack_address(vip.address.netmask), vip.address.version
        entry["flags"], entry["generation"] = vip.flag_bits, generation
        return entry

    def _vip_struct(self, vip_num: int, layout: np.dtype[np.void]) -> NDArray[np.void]:
        """A struct with the VIP's address, port and protocol."""
        vip, struct = self.vips[vip_num], np.zeros((), dtype=layout)
        struct["addr"] = pack_address(vip.address.network_address)
        struct["port"], struct["proto"] = vip.port, vip.proto
        return struct

    def real_definition(self, address: Address) -> NDArray[np.void]:
        """Give the entry of a real in `reals`."""
        entry = np.zeros((), dtype=lay.REAL_DEFINITION)
        entry["addr"] = pack_address(address)
        is_v6, is_local = address.version == 6, address in self._local_reals
        entry["flags"] = lay.RealFlag.IPV6 * is_v6 | lay.RealFlag.LOCAL * is_local
        return entry
