# SPDX-License-Identifier: Apache-2.0
"""The balancer's program on its interfaces, with notes by which a later run knows it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from socket import if_nameindex

from nfcore.api.context import Context
from nfcore.api.rules import Device
from nfcore.api.state_file import StateFile
from nfcore.errors import HostError
from nfcore.kernel import Program, XdpMode, attach_xdp, attached_xdp, detach_xdp, occupied

from .maps import remove_pins

NAME = "katran_accel"
PROGRAM = "balancer_ingress"
"""Name of the program, and of its pin."""
NUMBERING = f"{NAME}.numbering"
"""Name of the note of what the numbers in pinned maps mean."""
NEXT = ".next"


class Attachments:
    """The program on each device that it was attached to."""

    def __init__(self, state_file: StateFile, modes: Mapping[str, XdpMode], pin_dir: Path | None) -> None:
        """Attach in these modes, by the interface's name; pin the program in `pin_dir`."""
        self._state_file = state_file
        self._modes = modes
        self._pin_dir = pin_dir
        self._attached: list[Device] = []

    def refuse_occupied(self, devices: Iterable[Device]) -> None:
        """HostError when the program of somebody else is on a device: :meth:`attach` would refuse, too, but late."""
        for device in devices:
            there = attached_xdp(device.ifindex)
            if there is not None and _own_program(self._state_file, device) is None:
                raise HostError(occupied(device.name, there))

    def attach(self, device: Device, program: Program) -> None:
        """Attach the program to a device, in place of one that a killed run left there."""
        previous = _own_program(self._state_file, device)
        self._attached.append(device)
        # Noted before and after: a kill in between leaves one of the two attached, and both are known.
        self._state_file.remember(_note_of(device, NEXT), program.id)
        attach_xdp(device.ifindex, program, mode=self._modes[device.name], replace=previous)
        self._state_file.remember(_note_of(device), program.id)
        self._state_file.forget(_note_of(device, NEXT))
        if self._pin_dir is not None:
            (self._pin_dir / PROGRAM).unlink(missing_ok=True)
            program.pin(self._pin_dir / PROGRAM)

    def detach(self, device: Device, program: Program) -> None:
        """Detach the program from a device, if it is still ours."""
        if device in self._attached:
            self._attached.remove(device)
            gone = device.ifindex not in {index for index, _ in if_nameindex()}
            if gone or detach_xdp(device.ifindex, expected=program.id):
                self._state_file.forget(_note_of(device))

    def detach_all(self, program: Program) -> None:
        """Detach the program from every device."""
        for device in list(self._attached):
            self.detach(device, program)


def _note_of(device: Device, suffix: str = "") -> str:
    return f"{NAME}.program.{device.ifindex}{suffix}"


def _own_program(state_file: StateFile, device: Device) -> int | None:
    """Id of the program on the device, if this or an earlier run put it there."""
    there = attached_xdp(device.ifindex)
    known = {state_file.recall(_note_of(device)), state_file.recall(_note_of(device, NEXT))}
    return there.id if there is not None and there.id in known else None


def remove_leftovers(context: Context, pin_dir: Path | None) -> Iterator[str]:
    """Detach the program that a killed run left, and remove its pins; a line for each thing removed."""
    for device in context.devices_of(NAME):
        program = _own_program(context.state_file, device)
        if program is not None and detach_xdp(device.ifindex, expected=program):
            yield f"{NAME}: detached program {program} from {device.name}"
        for suffix in ("", NEXT):
            context.state_file.forget(_note_of(device, suffix))
    if pin_dir is not None:
        for pin in remove_pins(pin_dir):
            yield f"{NAME}: removed pin {pin}"
        context.state_file.forget(NUMBERING)
