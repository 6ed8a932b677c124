# SPDX-License-Identifier: Apache-2.0
"""Finds a map of a loaded program: what a process that is gone has left needs neither pins nor notes for that."""

from __future__ import annotations

import os
import struct

from ..errors import HostError
from ..refusals import Capability, explain
from .maps import Map
from .mapspec import MapSpec
from .programs import LoadedProgram
from .syscall import Command, fd_by_id, object_info

_MAP_NAME = struct.Struct("=24x16s")
"""``name`` in ``struct bpf_map_info``."""


def program_map(program: LoadedProgram, spec: MapSpec) -> Map | None:
    """Open the program's map with the name of ``spec``; None when it has none, or one of another shape. HostError."""
    for identifier in program.map_ids():
        try:
            fd = fd_by_id(Command.MAP_GET_FD_BY_ID, identifier)
        except OSError as error:
            reason = explain(error, needs=[Capability.SYS_ADMIN])
            raise HostError(f"cannot open map {identifier} of program {program.name}: {reason}") from error
        try:
            (name,) = _MAP_NAME.unpack_from(object_info(fd, 80))
        finally:
            os.close(fd)
        if name.rstrip(b"\0").decode(errors="replace") == spec.kernel_name:
            try:
                return Map.from_id(identifier, spec)
            except HostError:
                return None
    return None
