# SPDX-License-Identifier: Apache-2.0
"""What proves in the kernel whose a program is, and whether the process that attached it lives.

Two maps are bound to each program, which does not use them::

    program ── ids of its maps ──┬─► nfcore_owner   one record: kind, place, process
                                 └─► nfcore_lives   holds the program while the process lives

So the proof is there as long as the program is, whatever becomes of files. The kernel empties a map of programs when
no process has it open any more: that tells a dead owner from a living one across all namespaces, without a lock.
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass

import numpy as np

from ..errors import HostError
from ..refusals import Capability, explain
from .maps import Map
from .mapspec import MapSpec, MapType
from .objects import Closing
from .programs import LoadedProgram, Program
from .syscall import Command, bpf

_MAGIC = b"nfcore\0\1"
"""Begins each record; the last byte is its format, which changes with the record."""
_PLACE_BYTES = 208
_RECORD = np.dtype(
    [("magic", "V8"), ("lives", "<u4"), ("process", "<u4"), ("kind", "S32"), ("place", f"V{_PLACE_BYTES}")]
)
"""lives: id of the map `nfcore_lives`, 0 without a process. place: a path, padded with zeros."""
_U32 = np.dtype("<u4")
_OWNER = MapSpec("nfcore_owner", MapType.ARRAY, _U32, _RECORD, 1)
_LIVES = MapSpec("nfcore_lives", MapType.PROG_ARRAY, _U32, _U32, 1)
_ATTEMPTS, _PAUSE = 50, 0.01
"""The kernel empties the map of a killed process soon, not at once."""


@dataclass(frozen=True)
class Owner:
    """Whose a program is."""

    kind: str
    """What attached it, such as `daemon`."""
    place: str
    """A path that belongs to the owner: the daemon's socket, the folder with a NIC's pins. May be cut."""
    process: int
    """Number of the process in its own namespace."""
    lives: bool
    """Whether that process lives. False for what needs no process."""

    def is_at(self, place: str) -> bool:
        """Whether the owner's place is this one, as far as it is not cut."""
        return os.fsencode(self.place) == _as_bytes(place)


class Ownership(Closing):
    """Makes programs those of one owner. The owner lives until it is closed, or the process ends."""

    def __init__(self, kind: str, place: str, *, lives: bool = True) -> None:
        """Make the maps; HostError. lives: the programs need this process."""
        self._lives = Map.create(_LIVES) if lives else None
        try:
            self._owner = Map.create(_OWNER)
            record = np.zeros(1, dtype=_RECORD)
            record["magic"], record["process"], record["kind"] = _MAGIC, os.getpid(), kind.encode()
            record["place"] = _as_bytes(place).ljust(_PLACE_BYTES, b"\0")
            record["lives"] = self._lives.id if self._lives is not None else 0
            self._owner.update(0, record[0])
        except BaseException:
            self.close()
            raise

    def claim(self, program: LoadedProgram) -> None:
        """Make a program the owner's: before it is attached. HostError when the kernel refuses."""
        if self._lives is not None:
            self._lives.update(0, program)
            _bind(program, self._lives)
        _bind(program, self._owner)

    def close(self) -> None:
        """Let the owner be dead. Idempotent."""
        for each in (getattr(self, "_owner", None), self._lives):
            if each is not None:
                each.close()


def owner_of(program_id: int, program_type: type[LoadedProgram] = Program) -> Owner | None:
    """Find whose the program with this id is; None when it says nothing of that.

    HostError: it cannot be opened, or is not of this type.
    """
    with program_type.from_id(program_id) as program:
        maps = program.map_ids()
    for identifier in maps:
        record = _read_record(identifier)
        if record is not None:
            lives = int(record["lives"])
            place = os.fsdecode(record["place"].tobytes().rstrip(b"\0"))
            kind = record["kind"].decode(errors="replace")
            return Owner(kind, place, int(record["process"]), lives in maps and _is_filled(lives))
    return None


def _read_record(map_id: int) -> np.void | None:
    """The record in a map; None when it is another map."""
    try:
        with Map.from_id(map_id, _OWNER) as opened:
            record: np.void = opened.read_array()[0]
    except HostError:
        return None
    return record if record["magic"].tobytes() == _MAGIC else None


def _is_filled(map_id: int) -> bool:
    """Whether a map of programs still has its program, after some patience."""
    for _ in range(_ATTEMPTS):
        try:
            with Map.from_id(map_id, _LIVES) as opened:
                if opened.lookup(0) is None:
                    return False
        except HostError:
            return False
        time.sleep(_PAUSE)
    return True


def _as_bytes(place: str) -> bytes:
    return os.fsencode(place)[:_PLACE_BYTES]


def _bind(program: LoadedProgram, bound: Map) -> None:
    try:
        bpf(Command.PROG_BIND_MAP, bytearray(struct.pack("=III", program.fd, bound.fd, 0)))
    except OSError as error:
        why = explain(error, needs=[Capability.BPF])
        raise HostError(f"cannot bind map {bound.spec.name} to program {program.full_name}: {why}") from error
