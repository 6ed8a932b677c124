# SPDX-License-Identifier: Apache-2.0
"""Chains: the maps by which network functions call each other, and the program in front of them.

::

    interface ──► dispatcher ── chain_owners[mark] ──► the mark's owner ─┐
                      └── no mark, or nobody's ──► the first function    │  each by chain_programs[slot]
                                                       └─► the second ◄──┘

A slot of `chain_programs` stands for a network function, in the order in which the TOML's chains name them. The kernel
empties this map when no process and no pin has it any more. So it is pinned beside the socket: the chain of a killed
daemon goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
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
    Closing,
    Map,
    MapFlags,
    MapSpec,
    MapType,
    Program,
    compile_program,
    ensure_bpffs,
    remove_bpffs,
)

DISPATCHER = "chain_ingress"
"""Name of the program in front of a chain."""
PIN = "chain_programs"
"""Begins the name of the pin; the id of the map follows."""
_U32 = np.dtype("<u4")


def functions_of(config: Config) -> list[str]:
    """Give all network functions of a configuration, in the order in which its chains name them first."""
    return list(dict.fromkeys(name for interface in config.interfaces for name in interface.chain))


def chain_pins(config: Config) -> Path:
    """The folder for the pin of the chains' programs: beside the socket."""
    return config.nf.beside_socket(".chain")


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
        self._folder = chain_pins(config)
        self._maps: dict[str, Map] = {}
        self._dispatchers: dict[str, Program] = {}
        self._pin: Path | None = None
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
        programs = {"chain_programs": self._maps["chain_programs"]}
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
        programs = self._maps["chain_programs"]
        for device in self._context.devices:
            for nf in self.functions(device):
                programs.update(self._functions.index(nf.name), nf.program)
        if self._context.tracing:
            return
        ensure_bpffs(self._folder)
        self._pin = self._folder / f"{PIN}_{programs.id}"
        programs.pin(self._pin)

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
        programs = self._maps["chain_programs"]
        return [nf.name for nf in functions if programs.lookup(self._functions.index(nf.name)) != nf.program.id]

    def remove_earlier(self) -> None:
        """Remove the pins of killed runs. To be called when no dispatcher of theirs is attached any more."""
        for pin in _pins(self._folder):
            if pin != self._pin:
                pin.unlink(missing_ok=True)
        if self._pin is None:
            remove_bpffs(self._folder)

    def close(self) -> None:
        """Close programs and maps, and remove this run's pin. Idempotent."""
        for program in self._dispatchers.values():
            program.close()
        self._dispatchers.clear()
        for each in self._maps.values():
            each.close()
        self._maps.clear()
        if self._pin is not None:
            self._pin.unlink(missing_ok=True)
            self._pin = None
            remove_bpffs(self._folder)

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
        MapSpec("chain_programs", MapType.PROG_ARRAY, _U32, _U32, functions),
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
    folder = chain_pins(config)
    for pin in _pins(folder):
        pin.unlink()
        yield f"nfcore: removed pin {pin}"
    remove_bpffs(folder)


def _pins(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PIN}_[0-9]*")) if folder.is_dir() else []
