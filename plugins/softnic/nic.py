# SPDX-License-Identifier: Apache-2.0
"""The emulated NIC itself: two XDP programs between a wire and a port, and the pins by which it is found.

It lives on its own, as hardware does: made by `nfcore softnic create`, gone by `nfcore softnic remove`, and it goes
on with the rules that it has when the daemon that installed them is dead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from nfcore.errors import HostError
from nfcore.kernel import (
    BPF_SOURCES,
    Map,
    Program,
    XdpMode,
    attach_xdp,
    compile_program,
    detach_xdp,
    ensure_bpffs,
    interface_index,
    remove_bpffs,
)

from .layouts import LINKS_SPEC, STATS_SPEC, Link, rules_spec

PROGRAMS = {"wire": "softnic_wire", "port": "softnic_port"}
PINS = ("softnic_rules", "softnic_stats", "softnic_links", *PROGRAMS.values())


def create_nic(wire: str, port: str, pin_dir: Path, table_size: int) -> None:
    """Make a NIC between the interfaces `wire` (to the network) and `port` (to the host's interface).

    HostError, with nothing left behind, when an interface is missing or taken or the folder holds a NIC already.
    """
    ends = {"wire": interface_index(wire), "port": interface_index(port)}
    ensure_bpffs(pin_dir)
    if (pin_dir / PINS[0]).exists():
        raise HostError(f"{pin_dir} holds a softnic already; remove it first: nfcore softnic remove --pin {pin_dir}")
    with ExitStack() as undo:
        undo.callback(lambda: list(_remove_pins(pin_dir)))
        with ExitStack() as opened:
            specs = (rules_spec(table_size), STATS_SPEC, LINKS_SPEC)
            maps = {spec.name: opened.enter_context(Map.create(spec)) for spec in specs}
            maps["softnic_links"].update(Link.TO_PORT, ends["port"])
            maps["softnic_links"].update(Link.TO_WIRE, ends["wire"])
            for name, opened_map in maps.items():
                opened_map.pin(pin_dir / name)
            for end, function in PROGRAMS.items():
                program = opened.enter_context(load_program(function, maps))
                program.pin(pin_dir / function)
                attach_xdp(ends[end], program, mode=XdpMode.NATIVE)
                undo.callback(detach_xdp, ends[end], expected=program.id)
        undo.pop_all()


def load_program(function: str, maps: dict[str, Map]) -> Program:
    """Load one of the NIC's programs over `maps`."""
    return compile_program(BPF_SOURCES / "softnic.c", function, defines={}, maps=maps)


def remove_nic(pin_dir: Path, interfaces: Iterator[int]) -> list[str]:
    """Take the NIC off whichever of `interfaces` (ifindexes) carry it, and remove its pins; what was removed."""
    removed = []
    ours = set()
    for function in PROGRAMS.values():
        if (pin_dir / function).exists():
            with Program.open_pinned(pin_dir / function) as program:
                ours.add(program.id)
    for ifindex in interfaces:
        removed += [
            f"program {program} from interface {ifindex}" for program in ours if detach_xdp(ifindex, expected=program)
        ]
    removed += [str(pin) for pin in _remove_pins(pin_dir)]
    return removed


def _remove_pins(pin_dir: Path) -> Iterator[Path]:
    for name in PINS:
        pin = pin_dir / name
        if pin.exists():
            pin.unlink()
            yield pin
    remove_bpffs(pin_dir)
