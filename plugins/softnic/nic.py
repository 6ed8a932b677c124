# SPDX-License-Identifier: Apache-2.0
"""Creates and removes the emulated NIC: two XDP programs between a wire and a port, and their pins.

It needs no process, as hardware does not: it exists from `nfcore softnic create` to `nfcore softnic remove`, and works
by its rules whether or not the daemon that installed them runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from nfcore.errors import HostError
from nfcore.kernel import (
    BPF_SOURCES,
    Map,
    Ownership,
    Program,
    XdpMode,
    attach_xdp,
    attached_xdp,
    compile_program,
    detach_xdp,
    ensure_bpffs,
    interface_index,
    owner_of,
    remove_bpffs,
)

from .layouts import LINKS_SPEC, SHAPES_SPEC, STATS_SPEC, Link, rules_spec

KIND = "softnic"
"""How its programs are marked, with the folder of its pins."""
PROGRAMS = {"wire": "softnic_wire", "port": "softnic_port"}
PINS = ("softnic_rules", "softnic_shapes", "softnic_stats", "softnic_links", *PROGRAMS.values())


def create_nic(wire: str, port: str, pin_dir: Path, table_size: int) -> None:
    """Create a NIC between the interfaces `wire` (to the network) and `port` (to the host's interface).

    HostError, and nothing is left behind, when an interface does not exist or has an XDP program, or the folder has a
    NIC already.
    """
    ends = {"wire": interface_index(wire), "port": interface_index(port)}
    ensure_bpffs(pin_dir)
    attached = [attached_xdp(ifindex) for ifindex in ends.values()]
    if (pin_dir / PINS[0]).exists() or any(each is not None and is_of(each.id, pin_dir) for each in attached):
        raise HostError(f"{pin_dir} holds a softnic already; remove it first: nfcore softnic remove --pin {pin_dir}")
    with ExitStack() as undo:
        undo.callback(lambda: list(_remove_pins(pin_dir)))
        with ExitStack() as opened:
            specs = (rules_spec(table_size), SHAPES_SPEC, STATS_SPEC, LINKS_SPEC)
            maps = {spec.name: opened.enter_context(Map.create(spec)) for spec in specs}
            maps["softnic_links"].update(Link.TO_PORT, ends["port"])
            maps["softnic_links"].update(Link.TO_WIRE, ends["wire"])
            for name, opened_map in maps.items():
                opened_map.pin(pin_dir / name)
            ownership = opened.enter_context(Ownership(KIND, str(pin_dir.absolute()), lives=False))
            for end, function in PROGRAMS.items():
                program = opened.enter_context(load_program(function, maps))
                ownership.claim(program)
                program.pin(pin_dir / function)
                attach_xdp(ends[end], program, mode=XdpMode.NATIVE)
                undo.callback(detach_xdp, ends[end], expected=program.id)
        undo.pop_all()


def load_program(function: str, maps: dict[str, Map]) -> Program:
    """Load one of the NIC's programs over `maps`."""
    return compile_program(BPF_SOURCES / "softnic.c", function, defines={}, maps=maps)


def remove_nic(pin_dir: Path, interfaces: Iterator[int]) -> list[str]:
    """Detach the NIC from `interfaces` (ifindexes) and remove its pins; returns a text for each thing removed.

    The programs themselves say which folder is theirs: their pins may be gone.
    """
    removed = []
    for ifindex in interfaces:
        attached = attached_xdp(ifindex)
        if attached is not None and is_of(attached.id, pin_dir) and detach_xdp(ifindex, expected=attached.id):
            removed.append(f"program {attached.id} from interface {ifindex}")
    removed += [str(pin) for pin in _remove_pins(pin_dir)]
    return removed


def is_of(program_id: int, pin_dir: Path) -> bool:
    """Whether the program with this id is one of the NIC's that was pinned in `pin_dir`."""
    try:
        owner = owner_of(program_id)
    except HostError:
        return False  # it has just gone
    return owner is not None and owner.kind == KIND and owner.is_at(str(pin_dir.absolute()))


def _remove_pins(pin_dir: Path) -> Iterator[Path]:
    for name in PINS:
        pin = pin_dir / name
        if pin.exists():
            pin.unlink()
            yield pin
    remove_bpffs(pin_dir)
