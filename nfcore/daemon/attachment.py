# SPDX-License-Identifier: Apache-2.0
"""Attaches programs to interfaces, and notes their ids in the state file so that a later run knows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from socket import if_nameindex

from ..api.context import Context
from ..api.rules import Device
from ..api.state_file import StateFile
from ..errors import HostError
from ..kernel import Program, XdpMode, attach_xdp, attached_xdp, detach_xdp, occupied_message

_NEXT = ".next"
"""Ends the state-file key of a program that is about to be attached."""


class Attachments:
    """The devices to which this run has attached a program, and their programs."""

    def __init__(self, state_file: StateFile, modes: Mapping[str, XdpMode]) -> None:
        """`modes`: XDP mode by the interface's name."""
        self._state_file = state_file
        self._modes = modes
        self._attached: dict[int, Program] = {}

    @classmethod
    def of(cls, context: Context) -> Attachments:
        """Make those of a run: each interface's XDP mode as the TOML has it."""
        modes = {interface.name: XdpMode(interface.xdp_mode) for interface in context.config.interfaces}
        return cls(context.state_file, modes)

    def attach(self, device: Device, program: Program) -> None:
        """Attach a program to a device. It replaces the program of a killed run. HostError when that fails."""
        previous = _own_program(self._state_file, device)
        self._attached[device.ifindex] = program
        # Both ids are in the state file while one replaces the other: a kill in between leaves one of them attached.
        self._state_file.set(_state_key(device, _NEXT), program.id)
        attach_xdp(device.ifindex, program, mode=self._modes[device.name], replace=previous)
        self._state_file.set(_state_key(device), program.id)
        self._state_file.remove(_state_key(device, _NEXT))

    def detach(self, device: Device) -> None:
        """Detach this run's program from a device, if it is still the attached one."""
        program = self._attached.pop(device.ifindex, None)
        if program is None:
            return
        device_gone = device.ifindex not in {index for index, _ in if_nameindex()}
        if device_gone or detach_xdp(device.ifindex, expected=program.id):
            self._state_file.remove(_state_key(device))


def refuse_occupied(state_file: StateFile, devices: Iterable[Device]) -> None:
    """Raise HostError when a device has another program. :class:`Attachments` refuses as well, but later."""
    for device in devices:
        there = attached_xdp(device.ifindex)
        if there is not None and _own_program(state_file, device) is None:
            raise HostError(occupied_message(device.name, there))


def detach_leftovers(context: Context) -> Iterator[str]:
    """Detach the programs of a killed run; yields a line for each."""
    for device in context.devices:
        program = _own_program(context.state_file, device)
        if program is not None and detach_xdp(device.ifindex, expected=program):
            yield f"nfcore: detached program {program} from {device.name}"
        for suffix in ("", _NEXT):
            context.state_file.remove(_state_key(device, suffix))


def _state_key(device: Device, suffix: str = "") -> str:
    return f"nfcore.program.{device.ifindex}{suffix}"


def _own_program(state_file: StateFile, device: Device) -> int | None:
    """Id of the program on the device, if this or an earlier run attached it."""
    there = attached_xdp(device.ifindex)
    known = {state_file.get_number(_state_key(device)), state_file.get_number(_state_key(device, _NEXT))}
    return there.id if there is not None and there.id in known else None
