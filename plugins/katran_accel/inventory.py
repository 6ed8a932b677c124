# SPDX-License-Identifier: Apache-2.0
"""VIPs and reals by number, as the maps know them, and numbers that stay the same while the TOML changes.

TOML ──► Numbering.plan ──► Inventory ──► maps
             ▲ │ take                            (plan changes nothing; take makes the plan the present)
     a note ─┘ └► a note, for the next run with the same pins
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
from .config import KatranTable, VipTable
from .maglev import BuildRing, Endpoint, build_ring


class NumbersExhaustedError(NfcoreError):
    """More VIPs or reals are wanted than there are numbers that are free and have rested."""


class Numbers:
    """Numbers from `first` up to and without `end`, given to texts.

    A text keeps its number for as long as it is wanted. A new one gets the lowest number that is free and has rested
    for `rest` seconds, by `clock`, since :meth:`take` gave it up.
    """

    def __init__(self, first: int, end: int, rest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rest = rest
        self.taken: dict[str, int] = {}
        self._first, self._end, self._clock = first, end, clock
        self._rested: dict[int, float] = {}
        """Number → when it may be given again."""

    @property
    def resting(self) -> list[int]:
        """Numbers that may not be given yet, ascending."""
        now = self._clock()
        return sorted(number for number, until in self._rested.items() if now < until)

    def plan(self, wanted: Iterable[str]) -> dict[str, int]:
        """Number each text. NumbersExhaustedError when the numbers do not suffice; nothing is changed."""
        names = list(dict.fromkeys(wanted))
        barred = {*self.taken.values(), *self.resting}
        free = (number for number in range(self._first, self._end) if number not in barred)
        plan: dict[str, int] = {}
        for name in names:
            number = self.taken.get(name)
            if number is None:
                number = next(free, None)
            if number is None:
                size = self._end - self._first
                raise NumbersExhaustedError(
                    f"there are {size} numbers, of which {size - len(barred)} are free for what is new; "
                    f"the number of what is removed rests for {self.rest:g} s"
                )
            plan[name] = number
        return plan

    def take(self, plan: dict[str, int]) -> None:
        """Make a plan the present; what it leaves out rests from now on."""
        kept = set(plan.values())
        self._let_rest(number for number in self.taken.values() if number not in kept)
        self.taken = dict(plan)

    def resume(self, taken: dict[str, int], resting: Iterable[int]) -> None:
        """Go on where another run stopped; what was resting then does so all over again."""
        self.taken = dict(taken)
        self._let_rest(resting)

    def _let_rest(self, numbers: Iterable[int]) -> None:
        until = self._clock() + self.rest
        self._rested = {number: self._rested[number] for number in self.resting}
        self._rested |= dict.fromkeys(numbers, until)


def identity(vip: VipTable) -> str:
    """What makes a VIP the same one in two TOMLs: address, port, protocol, flags."""
    return f"{vip.name} {vip.flag_bits}"


class Numbering:
    """Who has which number: VIPs by :func:`identity` from 0, reals by address from 1."""

    def __init__(self, rest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.vips = Numbers(0, lay.MAX_VIPS, rest, clock)
        self.reals = Numbers(1, lay.MAX_REALS, rest, clock)

    def let_rest_for(self, rest: float) -> None:
        """Let numbers that are given up from now on rest for so many seconds."""
        self.vips.rest = self.reals.rest = rest

    def plan(self, table: KatranTable) -> Inventory:
        """Number what a TOML names. NumbersExhaustedError names what does not fit; nothing is changed."""
        vips = self._planned(self.vips, "VIPs", [identity(vip) for vip in table.vips])
        addresses = dict.fromkeys(real.address for vip in table.vips for real in vip.reals)
        reals = self._planned(self.reals, "reals", [str(address) for address in addresses])
        return Inventory(
            {vips[identity(vip)]: vip for vip in table.vips},
            {address: reals[str(address)] for address in addresses},
            table.maglev,
        )

    @staticmethod
    def _planned(numbers: Numbers, what: str, wanted: list[str]) -> dict[str, int]:
        try:
            return numbers.plan(wanted)
        except NumbersExhaustedError as error:
            raise NumbersExhaustedError(f"{what}: {error}") from None

    def take(self, inventory: Inventory) -> None:
        """Make a plan the present; the numbers of what it leaves out rest from now on."""
        self.vips.take(inventory.vip_numbers)
        self.reals.take(inventory.real_numbers)

    def note(self, planned: Inventory | None = None) -> dict[str, object]:
        """Everything that another run must know, as JSON has it; with `planned` what is about to be, too."""
        more = (planned.vip_numbers, planned.real_numbers) if planned else ({}, {})
        return {
            "vips": self.vips.taken | more[0],
            "reals": self.reals.taken | more[1],
            "resting": {"vips": self.vips.resting, "reals": self.reals.resting},
        }

    def resume(self, note: dict[str, object]) -> None:
        """Go on where the run that wrote the note stopped. ValueError when it is no such note."""
        resting = note.get("resting")
        if not isinstance(resting, dict):
            raise ValueError("a note of numbers without those that rest")
        found = {}
        for kind, first, end in (("vips", 0, lay.MAX_VIPS), ("reals", 1, lay.MAX_REALS)):
            taken, rest = note.get(kind), resting.get(kind)
            if not isinstance(taken, dict) or not isinstance(rest, list):
                raise ValueError(f"a note of numbers without {kind}")
            numbers = [*taken.values(), *rest]
            good = all(type(number) is int and first <= number < end for number in numbers)
            if not good or len(set(numbers)) != len(numbers):
                raise ValueError(f"a note with wrong numbers of {kind}")
            found[kind] = taken, rest
        self.vips.resume(*found["vips"])
        self.reals.resume(*found["reals"])


def _overlaps(vips: list[VipTable]) -> NDArray[np.bool_]:
    """Which VIPs have addresses in common; shape (n, n)."""
    # Addresses do not fit machine words, their places among all that occur do.
    bounds = [
        [(vip.address.version, int(end)) for end in (vip.address.network_address, vip.address.broadcast_address)]
        for vip in vips
    ]
    places = {bound: place for place, bound in enumerate(sorted({each for pair in bounds for each in pair}))}
    first, last = np.array([[places[each] for each in pair] for pair in bounds]).T
    overlaps: NDArray[np.bool_] = (first[:, None] <= last) & (first <= last[:, None])
    return overlaps


@dataclass(frozen=True)
class Inventory:
    """The VIPs and reals of one TOML with their numbers."""

    vips: dict[int, VipTable]
    """In the TOML's order."""
    reals: dict[Address, int]
    """In order of first appearance."""
    maglev: int

    @classmethod
    def of(cls, table: KatranTable) -> Inventory:
        """Number what the TOML names, in its order: VIPs from 0, reals from 1."""
        return Numbering(0.0).plan(table)

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
        """VIP number → the numbers of its reals, in the TOML's order: looking an address up is slow."""
        return {number: [self.reals[real.address] for real in vip.reals] for number, vip in self.vips.items()}

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Give (VIP number, real number) in the TOML's order."""
        for number, reals in self._numbers.items():
            for real in reals:
                yield number, real

    def targets(self) -> NDArray[np.uint64]:
        """Give :meth:`pairs` as the core knows them."""
        return np.array([lay.make_target(*pair) for pair in self.pairs()], dtype=np.uint64)

    @cached_property
    def winners(self) -> dict[int, frozenset[str]]:
        """For each VIP part of whose packets belong to other VIPs, which are found first: who they are."""
        vips, names = list(self.vips.values()), list(self.vip_numbers)
        found = {
            number: frozenset(names[other] for other in np.flatnonzero(row) if vip.loses_to(vips[other]))
            for (number, vip), row in zip(self.vips.items(), _overlaps(vips), strict=True)
            if vip.is_prefix or not vip.port  # the others lose to nobody
        }
        return {number: others for number, others in found.items() if others}

    def shadowed(self) -> frozenset[int]:
        """VIPs part of whose packets belong to another VIP.

        A mark of such a VIP's target could not tell them apart by address and port alone, so none is given.
        """
        return frozenset(self.winners)

    def shares(self, vip_num: int) -> dict[int, int]:
        """Give the weight of each real of a VIP, by number: all that its ring depends on."""
        numbered = zip(self._numbers[vip_num], self.vips[vip_num].reals, strict=True)
        return {number: real.weight for number, real in numbered}

    def real_name(self, number: int) -> str | None:
        """Give the address of a real number, if there is such a real."""
        return next((str(address) for address, known in self.reals.items() if known == number), None)

    def ring(self, vip_num: int, build: BuildRing = build_ring) -> NDArray[np.uint32]:
        """Give the Maglev ring of a VIP, :data:`layouts.RING_SLOTS` real numbers; 0 where it has no real."""
        numbered = zip(self._numbers[vip_num], self.vips[vip_num].reals, strict=True)
        endpoints = [Endpoint(number, real.address, real.weight) for number, real in numbered]
        return build(endpoints, version=self.maglev)

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

    def real_definition(self, address: Address) -> NDArray[np.void]:
        """Give the entry of a real in `reals`."""
        entry = np.zeros((), dtype=lay.REAL_DEFINITION)
        entry["addr"] = pack_address(address)
        entry["flags"] = lay.RealFlag.IPV6 if address.version == 6 else 0
        return entry
