# SPDX-License-Identifier: Apache-2.0
"""Attaches programs to interfaces, and recognises those of killed daemons by what the kernel has of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from socket import if_nameindex

from ..api.config import Config
from ..api.context import Context
from ..api.findings import Finding, Status
from ..api.rules import Device
from ..api.state_file import StateFile
from ..errors import HostError, in_use
from ..kernel import (
    Closing,
    Ownership,
    Program,
    XdpMode,
    attach_xdp,
    attached_xdp,
    detach_xdp,
    occupied_message,
    owner_of,
)

KIND = "daemon"
"""How the programs of daemons are marked."""
_NEXT = ".next"
"""Ends the note of a program that is about to be attached."""


class Attachments(Closing):
    """The devices to which this run has attached a program, and their programs."""

    def __init__(self, socket: str, modes: Mapping[str, XdpMode], state_file: StateFile) -> None:
        """`socket`: by which the programs are known as this daemon's. `modes`: XDP mode by the interface's name."""
        self._ownership = Ownership(KIND, socket)
        self._state_file = state_file
        self._modes = modes
        self._attached: dict[int, Program] = {}

    @classmethod
    def of(cls, context: Context) -> Attachments:
        """Make those of a run: each interface's XDP mode as the TOML has it."""
        modes = {interface.name: XdpMode(interface.xdp_mode) for interface in context.config.interfaces}
        return cls(context.config.nf.socket, modes, context.state_file)

    def attach(self, device: Device, program: Program) -> None:
        """Attach a program to a device. It replaces the program of a killed run. HostError when that fails."""
        previous = program_to_replace(device, self._state_file)
        self._ownership.claim(program)
        self._attached[device.ifindex] = program
        # A kill while one replaces the other leaves one of them attached: both are noted.
        self._state_file.set(_note(device.ifindex, _NEXT), program.id)
        attach_xdp(device.ifindex, program, mode=self._modes[device.name], replace=previous)
        self._state_file.set(_note(device.ifindex), program.id)
        self._state_file.remove(_note(device.ifindex, _NEXT))

    def detach(self, device: Device) -> None:
        """Detach this run's program from a device, if it is still the attached one."""
        program = self._attached.pop(device.ifindex, None)
        if program is None:
            return
        # An interface that was in another network namespace meanwhile may have another index.
        for ifindex in sorted((index for index, _ in if_nameindex()), key=lambda index: index != device.ifindex):
            try:
                if detach_xdp(ifindex, expected=program):
                    break
            except HostError:
                if ifindex == device.ifindex:
                    raise
        self._state_file.remove(_note(device.ifindex))

    def close(self) -> None:
        """Give up what is still attached: a later run may replace it. Idempotent."""
        self._ownership.close()


@dataclass(frozen=True)
class Leftover:
    """A program of a killed daemon."""

    interface: str
    ifindex: int
    program: int

    def remove(self) -> Iterator[str]:
        """Detach it; yields a line about that."""
        if detach_xdp(self.ifindex, expected=self.program):
            yield f"nfcore: detached program {self.program} from {self.interface}"


def program_to_replace(device: Device, state_file: StateFile) -> int | None:
    """Give the id of a killed daemon's program on a device. HostError: a living one's is there, or somebody else's."""
    there = attached_xdp(device.ifindex)
    if there is None:
        return None
    try:
        owner = owner_of(there.id)
    except HostError as error:
        if _is_noted(error, device.ifindex, there.id, state_file):
            return there.id
        raise HostError(f"{occupied_message(device.name, there)} ({error})") from error
    if owner is None:
        raise HostError(occupied_message(device.name, there))
    if owner.kind != KIND:
        raise HostError(f"{occupied_message(device.name, there)} (it belongs to the {owner.kind} at {owner.place})")
    if owner.lives:
        raise in_use(f"interface {device.name}", owner.process, owner.place)
    return there.id


def _is_noted(error: HostError, ifindex: int, program: int, state_file: StateFile) -> bool:
    """Whether the kernel does not let this process look at a program, but a run has noted that it attached it.

    To look takes CAP_SYS_ADMIN, to attach does not. An id means the same program until the next boot, which empties
    /run.
    """
    noted = {state_file.get_number(_note(ifindex, suffix)) for suffix in ("", _NEXT)}
    return isinstance(error.__cause__, PermissionError) and program in noted


def _note(ifindex: int, suffix: str = "") -> str:
    return f"nfcore.program.{ifindex}{suffix}"


def examine_program(device: Device, mode: XdpMode, state_file: StateFile) -> Finding:
    """Find whether a program could be attached in a mode. :class:`Attachments` refuses as well, but later."""
    what = f"{device.name}: XDP"
    try:
        there, previous = attached_xdp(device.ifindex), program_to_replace(device, state_file)
    except HostError as error:
        return Finding(what, Status.FAULT, str(error))
    if there is None or previous is None:
        return Finding(what, Status.OK, "no program is attached")
    found = f"program {previous} in {there.mode} mode, which a killed run left"
    if mode not in (XdpMode.AUTO, there.mode):
        advice = "run nfcore cleanup CONFIG"
        return Finding(what, Status.FAULT, f"{found}, cannot become {mode} without a gap", advice)
    return Finding(what, Status.OK, f"{found}: nfcore run replaces it")


def find_leftovers(config: Config, state_file: StateFile) -> list[Leftover]:
    """Find the programs of killed daemons on the interfaces of the configuration, or with its socket on any other.

    HostError: a daemon that attached one of them lives, or the kernel does not tell.
    """
    configured = {interface.name for interface in config.interfaces}
    found = []
    for ifindex, name in if_nameindex():
        there = None
        try:
            there = attached_xdp(ifindex)
            owner = None if there is None else owner_of(there.id)
        except HostError as error:
            if there is not None and _is_noted(error, ifindex, there.id, state_file):
                found.append(Leftover(name, ifindex, there.id))
            elif name in configured:
                raise
            continue  # or it has just gone
        if there is None or owner is None or owner.kind != KIND:
            continue
        if name in configured or owner.is_at(config.nf.socket):
            if owner.lives:
                raise in_use(f"interface {name}", owner.process, owner.place)
            found.append(Leftover(name, ifindex, there.id))
    return found
