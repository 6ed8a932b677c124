# SPDX-License-Identifier: Apache-2.0
"""Attaches programs to interfaces, and recognises those of killed daemons by what the kernel has of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from socket import if_nameindex

from ..api.config import Config
from ..api.context import Context
from ..api.rules import Device
from ..errors import HostError
from ..kernel import (
    Closing,
    Owner,
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


class Attachments(Closing):
    """The devices to which this run has attached a program, and their programs."""

    def __init__(self, socket: str, modes: Mapping[str, XdpMode]) -> None:
        """`socket`: by which the programs are known as this daemon's. `modes`: XDP mode by the interface's name."""
        self._ownership = Ownership(KIND, socket)
        self._modes = modes
        self._attached: dict[int, Program] = {}

    @classmethod
    def of(cls, context: Context) -> Attachments:
        """Make those of a run: each interface's XDP mode as the TOML has it."""
        modes = {interface.name: XdpMode(interface.xdp_mode) for interface in context.config.interfaces}
        return cls(context.config.nf.socket, modes)

    def attach(self, device: Device, program: Program) -> None:
        """Attach a program to a device. It replaces the program of a killed run. HostError when that fails."""
        previous = program_to_replace(device)
        self._ownership.claim(program)
        self._attached[device.ifindex] = program
        attach_xdp(device.ifindex, program, mode=self._modes[device.name], replace=previous)

    def detach(self, device: Device) -> None:
        """Detach this run's program from a device, if it is still the attached one."""
        program = self._attached.pop(device.ifindex, None)
        if program is None:
            return
        # An interface that was in another network namespace meanwhile may have another index.
        for ifindex in sorted((index for index, _ in if_nameindex()), key=lambda index: index != device.ifindex):
            try:
                if detach_xdp(ifindex, expected=program.id):
                    return
            except HostError:
                if ifindex == device.ifindex:
                    raise

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


def program_to_replace(device: Device) -> int | None:
    """Give the id of a killed daemon's program on a device. HostError: a living one's is there, or somebody else's."""
    there = attached_xdp(device.ifindex)
    if there is None:
        return None
    owner = owner_of(there.id)
    if owner is None:
        raise HostError(occupied_message(device.name, there))
    if owner.kind != KIND:
        raise HostError(f"{occupied_message(device.name, there)} (it belongs to the {owner.kind} at {owner.place})")
    if owner.lives:
        raise HostError(_in_use(device.name, owner))
    return there.id


def refuse_occupied(devices: Iterable[Device]) -> None:
    """Raise HostError when a device has another program. :class:`Attachments` refuses as well, but later."""
    for device in devices:
        program_to_replace(device)


def find_leftovers(config: Config) -> list[Leftover]:
    """Find the programs of killed daemons on the interfaces of the configuration, or with its socket on any other.

    HostError: a daemon that attached one of them lives, or the kernel does not tell.
    """
    configured = {interface.name for interface in config.interfaces}
    found = []
    for ifindex, name in if_nameindex():
        try:
            there = attached_xdp(ifindex)
            owner = None if there is None else owner_of(there.id)
        except HostError:
            if name in configured:
                raise
            continue  # it has just gone
        if there is None or owner is None or owner.kind != KIND:
            continue
        if name in configured or owner.is_at(config.nf.socket):
            if owner.lives:
                raise HostError(_in_use(name, owner))
            found.append(Leftover(name, ifindex, there.id))
    return found


def _in_use(interface: str, owner: Owner) -> str:
    process = f"process {owner.process} with the socket {owner.place}"
    return f"interface {interface} is in use by another nfcore, {process}: stop it first"
