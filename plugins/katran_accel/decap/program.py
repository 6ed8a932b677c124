# SPDX-License-Identifier: Apache-2.0
"""The decapsulation program of a real, its maps, and what they have counted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from nfcore.api.flows import Address, pack_address
from nfcore.errors import HostError
from nfcore.kernel import (
    BPF_SOURCES,
    Closing,
    Map,
    MapSpec,
    Owner,
    Program,
    attached_xdp,
    compile_program,
    interface_name,
    occupied_message,
    owner_of,
    program_map,
)

from ..layouts import ADDRESS, ONLY_FAMILY
from . import layouts as lay

FUNCTION = "nfcore_decap"
"""The program's name, also in the kernel."""
KIND = "decapsulation"
"""How the program is marked, with the interface's name."""


@dataclass(frozen=True)
class DecapOptions:
    """What the program is built for. What is not wanted is not in it."""

    gue_port: int | None = None
    """UDP port of GUE packets; IPIP is always decapsulated."""
    server_id: int | None = None
    """This server's id; counts TCP packets whose id is another one."""
    destinations: tuple[Address, ...] = ()
    """The outer destinations whose tunnels end here; none: any."""
    drop_all_fragments: bool = False
    """Drop fragments and packets with IP options that no tunnel has sent, too, as Katran's program does."""

    def defines(self) -> dict[str, int | str]:
        """Give the build choices."""
        choices: dict[str, int | str | bool | None] = {
            "GUE_PORT": self.gue_port,
            "SERVER_ID": self.server_id is not None,
            "STRICT_DESTINATION": bool(self.destinations),
            "DROP_ALL_FRAGMENTS": self.drop_all_fragments,
        }
        return {name: int(value) for name, value in choices.items() if value}

    def specs(self) -> list[MapSpec]:
        """Give the maps of the program."""
        specs = [lay.COUNTERS, lay.DROPS]
        specs += [lay.SERVER_ID] if self.server_id is not None else []
        return [*specs, lay.DESTINATIONS] if self.destinations else specs


class Decapsulation(Closing):
    """The loaded program and its maps. HostError: it cannot be loaded."""

    def __init__(self, options: DecapOptions, previous: Program | None = None) -> None:
        """Load the program. It goes on counting in the maps of `previous`, which it is to replace."""
        self._maps: dict[str, Map] = {}
        with ExitStack() as undo:
            undo.callback(self._close_maps)
            for spec in options.specs():
                # Destinations of an earlier run may not be wanted any more.
                earlier = program_map(previous, spec) if previous and spec is not lay.DESTINATIONS else None
                self._maps[spec.name] = earlier or Map.create(spec)
            if options.server_id is not None:
                self._maps[lay.SERVER_ID.name].update(0, options.server_id)
            for address in options.destinations:
                self._add_destination(address)
            source = BPF_SOURCES / "decap/decap.c"
            self.program = compile_program(source, FUNCTION, defines=options.defines(), maps=self._maps)
            undo.pop_all()

    def _add_destination(self, address: Address) -> None:
        key = np.zeros(1, ADDRESS)
        key["addr"][0] = pack_address(address)
        table = self._maps[lay.DESTINATIONS.name]
        table.update(key[0], (table.lookup(key[0]) or 0) | ONLY_FAMILY[address.version])

    def counts(self) -> DecapCounts:
        """Read the counters."""
        return DecapCounts.read(self._maps)

    def close(self) -> None:
        """Close program and maps; an attached program stays."""
        self.program.close()
        self._close_maps()

    def _close_maps(self) -> None:
        for opened in self._maps.values():
            opened.close()
        self._maps.clear()


@dataclass(frozen=True)
class DecapCounts:
    """What a program has counted since it was attached, and earlier ones that it replaced."""

    decapsulated: Mapping[str, int]
    """Packets by the version of the outer header, `v4` and `v6`, and their `total`."""
    dropped: Mapping[str, int]
    """Packets of tunnels that cannot be decapsulated: `fragments`, with IP `options`, `malformed`."""
    server_ids: Mapping[str, int] | None
    """Packets with a server id: their `total`, and those `misrouted`, that have another one's. None: not asked for."""

    @classmethod
    def read(cls, maps: Mapping[str, Map]) -> Self:
        """Add up the counters of all CPUs."""
        counters, drops = _sums(maps[lay.COUNTERS.name]), _sums(maps[lay.DROPS.name])
        ids = {"misrouted": counters.pop("tpr_misrouted"), "total": counters.pop("tpr_total")}
        return cls(counters, drops, ids if lay.SERVER_ID.name in maps else None)

    def to_json(self) -> dict[str, Any]:
        """Give them as JSON values."""
        ids = {} if self.server_ids is None else {"server_ids": dict(self.server_ids)}
        return {"decapsulated": dict(self.decapsulated), "dropped": dict(self.dropped)} | ids

    def __str__(self) -> str:
        counted, dropped = self.decapsulated, self.dropped
        text = f"{counted['total']:,} packets decapsulated ({counted['v4']:,} from IPv4, {counted['v6']:,} from IPv6)"
        text += f"; dropped: {dropped['fragments']:,} fragments, {dropped['options']:,} with IP options"
        text += f", {dropped['malformed']:,} malformed"
        if self.server_ids is not None:
            text += f"; {self.server_ids['misrouted']:,} of {self.server_ids['total']:,} packets with a server id"
            text += " were for another server"
        return text


def _sums(counters: Map) -> dict[str, int]:
    (values,) = counters.read_array()
    return {name: int(values[name].sum()) for name in values.dtype.names or ()}


def find_attached(ifindex: int) -> tuple[Program, Owner] | None:
    """Open the interface's program if it is one of :class:`Decapsulation`, and tell whose; None when it has none.

    HostError when it is another one.
    """
    there = attached_xdp(ifindex)
    if there is None:
        return None
    owner = owner_of(there.id)
    if owner is None or owner.kind != KIND:
        whose = f" (it belongs to the {owner.kind} at {owner.place})" if owner is not None else ""
        raise HostError(occupied_message(interface_name(ifindex), there) + whose)
    return Program.from_id(there.id), owner


def read_attached(program: Program) -> DecapCounts:
    """Read the counters of a program that another process has attached."""
    with ExitStack() as opened:
        maps = {}
        for spec in (lay.COUNTERS, lay.DROPS, lay.SERVER_ID):
            if (found := program_map(program, spec)) is not None:
                maps[spec.name] = opened.enter_context(found)
        return DecapCounts.read(maps)
