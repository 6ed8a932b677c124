# SPDX-License-Identifier: Apache-2.0
"""Attaches the balancer's program to interfaces, and notes its id in the state file so that a later run knows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from socket import if_nameindex

from nfcore.api.context import Context
from nfcore.api.rules import Device
from nfcore.api.state_file import StateFile
from nfcore.errors import HostError
from nfcore.kernel import Program, XdpMode, attach_xdp, attached_xdp, detach_xdp, occupied_message

from .maps import remove_pins

NAME = "katran_accel"
PROGRAM = "balancer_ingress"
"""Name of the program and of its pin."""
NUMBERING = f"{NAME}.numbering"
"""State-file key: which VIP or real each number in the pinned maps stands for."""
NEXT = ".next"
"""Ends the state-file key of a program that is about to be attached."""


class Attachments:
    """The devices that this run has attached the program to."""

    def __init__(self, state_file: StateFile, modes: Mapping[str, XdpMode], pin_dir: Path | None) -> None:
        """`modes`: XDP mode by the interface's name. `pin_dir`: where the program is pinned, if anywhere."""
        self._state_file = state_file
        self._modes = modes
        self._pin_dir = pin_dir
        self._attached: list[Device] = []

    def refuse_occupied(self, devices: Iterable[Device]) -> None:
        """Raise HostError when a device has another program. :meth:`attach` refuses as well, but later in the start."""
        for device in devices:
            there = attached_xdp(device.ifindex)
            if there is not None and _own_program(self._state_file, device) is None:
                raise HostError(occupied_message(device.name, there))

    def attach(self, device: Device, program: Program) -> None:
        """Attach the program to a device. It replaces the program of a killed run."""
        previous = _own_program(self._state_file, device)
        self._attached.append(device)
        # Both ids are in the state file while one replaces the other: a kill in between leaves one of them attached.
        self._state_file.set(_state_key(device, NEXT), program.id)
        attach_xdp(device.ifindex, program, mode=self._modes[device.name], replace=previous)
        self._state_file.set(_state_key(device), program.id)
        self._state_file.remove(_state_key(device, NEXT))
        if self._pin_dir is not None:
            (self._pin_dir / PROGRAM).unlink(missing_ok=True)
            program.pin(self._pin_dir / PROGRAM)

    def detach(self, device: Device, program: Program) -> None:
        """Detach the program from a device, if it is still the attached one."""
        if device in self._attached:
            self._attached.remove(device)
            device_gone = device.ifindex not in {index for index, _ in if_nameindex()}
            if device_gone or detach_xdp(device.ifindex, expected=program.id):
                self._state_file.remove(_state_key(device))

    def detach_all(self, program: Program) -> None:
        """Detach the program from every device."""
        for device in list(self._attached):
            self.detach(device, program)


def _state_key(device: Device, suffix: str = "") -> str:
    return f"{NAME}.program.{device.ifindex}{suffix}"


def _own_program(state_file: StateFile, device: Device) -> int | None:
    """Id of the program on the device, if this or an earlier run attached it."""
    there = attached_xdp(device.ifindex)
    known = {state_file.get_number(_state_key(device)), state_file.get_number(_state_key(device, NEXT))}
    return there.id if there is not None and there.id in known else None


def remove_leftovers(context: Context, pin_dir: Path | None) -> Iterator[str]:
    """Detach the program of a killed run and remove its pins; yields a line for each thing removed."""
    for device in context.devices_of(NAME):
        program = _own_program(context.state_file, device)
        if program is not None and detach_xdp(device.ifindex, expected=program):
            yield f"{NAME}: detached program {program} from {device.name}"
        for suffix in ("", NEXT):
            context.state_file.remove(_state_key(device, suffix))
    if pin_dir is not None:
        for pin in remove_pins(pin_dir):
            yield f"{NAME}: removed pin {pin}"
        context.state_file.remove(NUMBERING)
