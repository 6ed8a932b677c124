# SPDX-License-Identifier: Apache-2.0
"""Chains: the maps by which network functions call each other, and the program in front of them.

::

    interface ──► dispatcher ── chain_owners[mark] ──► the mark's owner ─┐
                      └── no mark, or nobody's ──► the first function    │  each by chain_programs[slot]
                                                       └─► the second ◄──┘

A slot of `chain_programs` stands for a network function, in the order in which the TOML's chains name them. The map is
pinned beside the socket: the chain of a killed daemon goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..api.carriers import Carrier, carrier_defines
from ..api.config import Config
from ..api.context import ChainBuild, Context
from ..api.network_function import NetworkFunction
from ..api.rules import Device
from ..errors import HostError
from ..kernel import (
    BPF_SOURCES,
    CallPin,
    Closing,
    Map,
    MapFlags,
    MapSpec,
    MapType,
    Program,
    compile_program,
    remove_call_pins,
)

DISPATCHER = "chain_ingress"
"""Name of the program in front of a chain."""
PROGRAMS = "chain_programs"
_U32 = np.dtype("<u4")


def functions_of(config: Config) -> list[str]:
    """Give all network functions of a configuration, in the order in which its chains name them first."""
    return list(dict.fromkeys(name for interface in config.interfaces for name in interface.chain))


class MarkOwnerTable:
    """Whose each mark is. Written by the engine, read by dispatchers and by `nfcore trace`."""

    def __init__(self, owners: NDArray[np.uint32], functions: Sequence[str], context: Context) -> None:
        """`owners`: mark → place of the owner in `functions` and one, 0 for none."""
        self._owners, self._functions, self._context = owners, functions, context

    def give(self, nf: int, marks: NDArray[np.uint32]) -> None:
        """Let the network function with this number own the marks."""
        name = self._context.nfs[nf - 1].name
        self._write(marks, 1 + self._functions.index(name) if name in self._functions else 0)

    def clear(self, marks: NDArray[np.uint32]) -> None:
        """Let nobody own the marks."""
        self._write(marks, 0)

    def owner(self, mark: int) -> str | None:
        """Name the function that owns a mark; None: nobody."""
        place = int(self._owners[mark]) if 0 < mark < len(self._owners) else 0
        return self._functions[place - 1] if place else None

    def _write(self, marks: NDArray[np.uint32], place: int) -> None:
        self._owners[marks[marks < len(self._owners)]] = place


class Chains(Closing):
    """The chains of one run. Where each interface has one function there are no maps, and it does nothing."""

    def __init__(self, context: Context) -> None:
        """Make the maps, and let the context tell each function what to build with. HostError."""
        config = context.config
        self._context, self._functions = context, functions_of(config)
        self._maps: dict[str, Map] = {}
        self._dispatchers: dict[str, Program] = {}
        self._pin = CallPin(config.nf.call_pins, PROGRAMS)
        if all(len(interface.chain) == 1 for interface in config.interfaces):
            return
        try:
            for spec in map_specs(len(self._functions), config.marking.width):
                self._maps[spec.name] = Map.create(spec)
            owners = self._maps["chain_owners"].mmap()
        except BaseException:
            self.close()
            raise
        context.mark_owners = MarkOwnerTable(owners, self._functions, context)
        context.chain_builds = dict(self._builds())

    def _builds(self) -> Iterator[tuple[str, ChainBuild]]:
        """What each function that has a successor is built with. The checks see to it that it has one successor."""
        programs = {PROGRAMS: self._maps[PROGRAMS]}
        for interface in self._context.config.interfaces:
            for name, following in zip(interface.chain, interface.chain[1:], strict=False):
                yield name, ChainBuild({"CHAIN_NEXT": self._functions.index(following)}, programs)

    def functions(self, device: Device) -> list[NetworkFunction]:
        """Give the functions of a device's chain in their order. HostError: one of them was never registered."""
        number, chain = next(
            (number, interface.chain)
            for number, interface in enumerate(self._context.config.interfaces)
            if interface.name == device.name
        )
        registered = {nf.name: nf for nf in self._context.nfs}
        for position, name in enumerate(chain):
            if name not in registered:
                where = f"{self._context.config.source}: interfaces[{number}].chain[{position}]"
                raise HostError(f"{where}: plugin {name!r} has registered no network function of this name")
        return [registered[name] for name in chain]

    def link(self) -> None:
        """Let the functions call each other, and pin the map by which they do, unless this is a trace. HostError."""
        if not self._maps:
            return
        programs = self._maps[PROGRAMS]
        for device in self._context.devices:
            for nf in self.functions(device):
                programs.update(self._functions.index(nf.name), nf.program)
        if self._context.tracing:
            return
        self._pin.pin(programs)

    def program(self, device: Device) -> Program:
        """Give the program to attach to a device: that of its only function, or a dispatcher. HostError."""
        functions = self.functions(device)
        if len(functions) == 1:
            return functions[0].program
        first = functions[0].name
        if first not in self._dispatchers:
            self._dispatchers[first] = self._compile([self._functions.index(nf.name) for nf in functions])
        return self._dispatchers[first]

    def _compile(self, slots: Sequence[int]) -> Program:
        """Compile the dispatcher of a chain with these slots."""
        carrier = Carrier(self._context.config.marking.carrier) if self._context.strategy else None
        return compile_dispatcher(self._maps, slots, carrier, tracing=self._context.tracing)

    def missing(self, device: Device) -> list[str]:
        """Name the functions of a device's chain whose program is not in its slot any more."""
        functions = self.functions(device)
        if len(functions) == 1:
            return []
        programs = self._maps[PROGRAMS]
        return [nf.name for nf in functions if programs.lookup(self._functions.index(nf.name)) != nf.program.id]

    def remove_earlier(self) -> None:
        """Remove the pins of killed runs. To be called when no dispatcher of theirs is attached any more."""
        self._pin.remove_earlier()

    def close(self) -> None:
        """Close programs and maps, and remove this run's pin. Idempotent."""
        for program in self._dispatchers.values():
            program.close()
        self._dispatchers.clear()
        for each in self._maps.values():
            each.close()
        self._maps.clear()
        self._pin.remove()

    def __enter__(self) -> Self:
        return self


def try_dispatcher(chain: Sequence[str], carrier: Carrier | None) -> int:
    """Load the program in front of a chain of so many functions, for a moment; give its size in bytes. HostError."""
    with ExitStack() as opened:
        maps = {spec.name: opened.enter_context(Map.create(spec)) for spec in map_specs(len(chain), 1)}
        return opened.enter_context(compile_dispatcher(maps, range(len(chain)), carrier)).jited_size


def map_specs(functions: int, mark_width: int) -> tuple[MapSpec, MapSpec]:
    """The maps of so many functions, and of marks with so many bits."""
    return (
        MapSpec(PROGRAMS, MapType.PROG_ARRAY, _U32, _U32, functions),
        MapSpec("chain_owners", MapType.ARRAY, _U32, _U32, 1 << mark_width, MapFlags.MMAPABLE),
    )


def compile_dispatcher(
    maps: Mapping[str, Map], slots: Sequence[int], carrier: Carrier | None, *, tracing: bool = False
) -> Program:
    """Compile the program in front of the functions with these slots. HostError."""
    defines: dict[str, int | str] = {
        "CHAIN_FIRST": slots[0],
        "CHAIN_FUNCTIONS": max(slots) + 1,
        "CHAIN_MEMBERS": f"{sum(1 << slot for slot in slots):#x}ULL",
    }
    defines |= carrier_defines(carrier, tracing=tracing)
    return compile_program(BPF_SOURCES / "chain/dispatch.c", DISPATCHER, defines=defines, maps=maps)


def remove_leftovers(config: Config) -> Iterator[str]:
    """Remove the pins of a killed run, whose programs are detached; yields a line for each."""
    for pin in remove_call_pins(config.nf.call_pins, PROGRAMS):
        yield f"nfcore: removed pin {pin}"
