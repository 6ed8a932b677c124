# SPDX-License-Identifier: Apache-2.0
"""How to remove a program that others have put on an interface: that depends on what holds it there.

A program that was set by netlink is removed by netlink, in its mode: ``ip link … xdp off`` leaves a generic one on an
interface whose driver could run a native one. A program behind a BPF link stays as long as a process or a pin holds the
link, and netlink cannot remove it at all.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import HostError, in_use
from .ownership import owner_of
from .pins import obj_get
from .programs import Program
from .syscall import Command, bpf, fd_by_id, object_info, object_kind
from .xdp_query import AttachedXdp, attached_programs, interface_index, interface_name

_LINK_INFO = struct.Struct("=III4xI")
"""Head of ``struct bpf_link_info``: type, id, id of the program; of XDP the interface."""
_LINK_INFO_SIZE = 64
_TYPE_XDP = 6
_MOST_PINS = 10_000
"""Files of bpf file systems that are looked at."""


def removal_advice(ifindex: int) -> str:
    """Say how to remove what is attached to an interface. Looks at links, processes and pins: takes some time."""
    name = interface_name(ifindex)
    ways = []
    for word, program in attached_programs(ifindex).items():
        link = _find_link(ifindex, program)
        if link is None:
            ways.append(f"stop what put it there, or remove it with: ip link set dev {name} {word} off")
        else:
            ways.append(_way_of_link(link))
    return "; ".join(ways)


def occupied_message(name: str, attached: AttachedXdp) -> str:
    """The message that interface ``name`` already has a program, which one, and what to do."""
    try:
        with Program.from_id(attached.id) as program:
            program_name = f" ({program.name})"
    except HostError:
        program_name = ""
    with suppress(HostError):
        owner = owner_of(attached.id)
        if owner is not None and owner.lives:
            return str(in_use(f"interface {name}", owner.process, owner.place))
    held = f"the XDP program {attached.id}{program_name} in {attached.mode} mode"
    return f"interface {name} already has {held}: {removal_advice(interface_index(name))}"


def _find_link(ifindex: int, program: int) -> int | None:
    """Find the BPF link that attaches a program to an interface; None without one, or without the right to look."""
    for identifier in _link_ids():
        with suppress(OSError):
            fd = fd_by_id(Command.LINK_GET_FD_BY_ID, identifier)
            try:
                kind, _, attached, interface = _LINK_INFO.unpack_from(object_info(fd, _LINK_INFO_SIZE))
            finally:
                os.close(fd)
            if (kind, attached, interface) == (_TYPE_XDP, program, ifindex):
                return identifier
    return None


def _link_ids() -> Iterator[int]:
    attr = bytearray(12)
    while True:
        try:
            bpf(Command.LINK_GET_NEXT_ID, attr)
        except OSError:
            return  # there is no further one, or this process may not look
        _, identifier = struct.unpack_from("=II", attr)
        yield identifier
        struct.pack_into("=II", attr, 0, identifier, 0)


def _way_of_link(link: int) -> str:
    holders = [*_holders(link), *(f"the pin {pin}" for pin in _pins_of(link))]
    held = f", which {' and '.join(holders)} holds" if holders else ""
    return f"BPF link {link} has attached it{held}: stop that, or detach it with: bpftool link detach id {link}"


def _holders(link: int) -> Iterator[str]:
    """Describe the processes that have a link open."""
    wanted = f"link_id:\t{link}\n"
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for info in (process / "fdinfo").iterdir():
                with suppress(OSError):
                    if wanted in info.read_text(encoding="ascii", errors="replace"):
                        name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                        yield f"process {process.name} ({name})"
                        break


def _pins_of(link: int) -> Iterator[Path]:
    for pin in _pins():
        with suppress(OSError, HostError):
            fd = obj_get(pin)
            try:
                if object_kind(fd).replace("-", "_") == "bpf_link":
                    identifier = _LINK_INFO.unpack_from(object_info(fd, _LINK_INFO_SIZE))[1]
                    if identifier == link:
                        yield pin
            finally:
                os.close(fd)


def _pins() -> Iterator[Path]:
    """Files of the bpf file systems that are mounted here."""
    left = _MOST_PINS
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            head, _, tail = line.partition(" - ")
            if tail.split()[0] != "bpf":
                continue
            for pin in Path(head.split()[4]).rglob("*"):
                left -= 1
                if not left:
                    return
                if pin.is_file():
                    yield pin
