# SPDX-License-Identifier: Apache-2.0
"""Finds the maps of a loaded program: what a process that is gone has left needs neither pins nor notes for that."""

from __future__ import annotations

import ctypes
import os
import struct

from ..errors import HostError
from .maps import Map
from .mapspec import MapSpec
from .programs import Program
from .syscall import Command, bpf, fd_by_id, object_info

_MAP_COUNT_AT, _MAP_IDS_AT = 52, 56
"""Of nr_map_ids and map_ids in ``struct bpf_prog_info`` (``include/uapi/linux/bpf.h``)."""
_PROG_INFO_SIZE = 128
_MAP_NAME = struct.Struct("=24x16s")
"""``name`` in ``struct bpf_map_info``."""


def map_ids(program: Program) -> list[int]:
    """Ids of the maps that the program uses. Raises HostError."""
    try:
        (count,) = struct.unpack_from("=I", object_info(program.fd, _PROG_INFO_SIZE), _MAP_COUNT_AT)
        ids = (ctypes.c_uint32 * count)()
        info = bytearray(_PROG_INFO_SIZE)
        struct.pack_into("=IQ", info, _MAP_COUNT_AT, count, ctypes.addressof(ids))
        at = ctypes.addressof((ctypes.c_char * len(info)).from_buffer(info))
        bpf(Command.OBJ_GET_INFO_BY_FD, bytearray(struct.pack("=IIQ", program.fd, len(info), at)))
    except OSError as error:
        raise HostError(f"cannot read the maps of program {program.name}: {error.strerror}") from error
    return list(ids)


def program_map(program: Program, spec: MapSpec) -> Map | None:
    """Open the program's map with the name of ``spec``; None when it has none, or one of another shape. HostError."""
    for identifier in map_ids(program):
        try:
            fd = fd_by_id(Command.MAP_GET_FD_BY_ID, identifier)
        except OSError as error:
            raise HostError(f"cannot open map {identifier} of program {program.name}: {error.strerror}") from error
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
