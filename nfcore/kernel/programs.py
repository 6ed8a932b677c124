# SPDX-License-Identifier: Apache-2.0
"""Loaded programs: their metadata in the kernel, pins, and, of XDP, test runs on a packet without a NIC."""

from __future__ import annotations

import enum
import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from ..errors import HostError
from ..refusals import Capability, explain
from .codec import address
from .objects import KernelObject, open_by_id
from .pins import obj_get
from .syscall import Command, bpf, object_info, object_kind

_PROG_INFO = struct.Struct("=II8sIIQQQIIQ16s")
"""Head of ``struct bpf_prog_info``: type, id, tag, jited_prog_len, xlated_prog_len, two pointers,
load_time, created_by_uid, nr_map_ids, a pointer, name."""
_MAP_IDS = 52
"""Offset of nr_map_ids, which the pointer to the ids follows."""
_SHORTEST_FRAME = 14
"""Bytes of an Ethernet header: the kernel runs a program on no shorter frame."""
_ROOM = 4096
"""Bytes that a program can add at most: the kernel's test buffer is one page."""


class XdpAction(enum.IntEnum):
    """Verdict of a program (``enum xdp_action``). Prints as the kernel's name, e.g. ``XDP_TX``."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4

    @enum.property
    def name(self) -> str:
        """The kernel's name, such as ``"XDP_TX"``."""
        return f"XDP_{self._name_}"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class TestRun:
    """Result of a test run."""

    # Not a test class, in spite of its name: pytest must not collect it.
    __test__ = False

    verdict: XdpAction
    output: bytes
    """The frame after the run, without metadata."""
    metadata: bytes
    """The metadata in front of the frame after the run."""
    duration_ns: int
    """Mean time of one repetition, whole nanoseconds, truncated by the kernel."""


class ProgramType(enum.IntEnum):
    """``enum bpf_prog_type``, the types used here."""

    SCHED_CLS = 3
    XDP = 6


class LoadedProgram(KernelObject):
    """A loaded program of one type. Owns its file descriptor; a context manager."""

    type: ClassVar[ProgramType]
    type_name: ClassVar[str]
    """In messages."""

    def __init__(self, fd: int) -> None:
        """Take over ``fd``. Raises HostError (and leaves ``fd`` open) when it is no BPF program."""
        kind = object_kind(fd)
        if kind != "bpf-prog":
            raise HostError(f"a {kind} was found where {self.type_name} was expected")
        info = _PROG_INFO.unpack_from(object_info(fd, 128))
        super().__init__(fd)
        self._type: int = info[0]
        self.id: int = info[1]
        """The kernel's ID of the program, unique as long as the program exists."""
        self.tag: str = info[2].hex()
        """The kernel's digest of the instructions, 16 hexadecimal digits: equal code has equal tags."""
        self.jited_size: int = info[3]
        """Bytes of machine code; 0 when the kernel interprets the program."""
        self.xlated_size: int = info[4]
        """Bytes of BPF instructions (8 each) after the verifier rewrote them."""
        self.name: str = info[11].rstrip(b"\0").decode(errors="replace")
        """The function's name, cut to 15 characters."""
        self.full_name = self.name
        """The same for messages: whole if this process has compiled it."""
        self._label = f"program {self.full_name}"

    @classmethod
    def open_pinned(cls, path: Path) -> Self:
        """Open the program pinned at ``path``. Raises HostError."""
        return cls._adopt(obj_get(path), f"the pin {path}")

    @classmethod
    def from_id(cls, identifier: int) -> Self:
        """Open the program with this id. Raises HostError."""
        return cls._adopt(*open_by_id(Command.PROG_GET_FD_BY_ID, identifier, "program"))

    @classmethod
    def _adopt(cls, fd: int, place: str) -> Self:
        try:
            program = cls(fd)
        except HostError as error:
            os.close(fd)
            raise HostError(f"{place}: {error}") from None
        if program._type != cls.type:
            program.close()
            raise HostError(f"{place} is a BPF program of type {program._type}, not {cls.type_name}")
        return program

    def map_ids(self) -> list[int]:
        """The ids of the maps that the program refers to. HostError when the kernel does not tell them."""
        try:
            (count,) = struct.unpack_from("=I", object_info(self.fd, 128), _MAP_IDS)
            ids = np.zeros(max(count, 1), np.uint32)
            object_info(self.fd, 128, bytes(_MAP_IDS) + struct.pack("=IQ", count, address(ids)))
        except OSError as error:
            raise HostError(f"cannot read which maps program {self.name} uses: {explain(error)}") from error
        found: list[int] = ids[:count].tolist()
        return found

    def _run(self, attr: bytearray, ifindex: int = 0) -> None:
        """Run the program on the test packet that ``attr`` describes. Raises HostError."""
        try:
            bpf(Command.PROG_TEST_RUN, attr)
        except OSError as error:
            raise HostError(f"cannot run program {self.name} on a test packet: {_reason(error, ifindex)}") from error


class Program(LoadedProgram):
    """A loaded XDP program."""

    type = ProgramType.XDP
    type_name = "an XDP program"

    def test_run(
        self, frame: bytes, *, metadata: bytes = b"", ifindex: int = 0, rx_queue_index: int = 0, repeat: int = 1
    ) -> TestRun:
        """Run the program on ``frame`` in the kernel, with no interface involved.

        ``frame`` begins with the Ethernet header. ``metadata`` is put in front of it, as a driver does: 0, 4, 8, … 32
        bytes. The program finds ``ifindex`` (of an interface that is up and XDP-capable, in this network namespace)
        and ``rx_queue_index`` in its context. ``repeat``: the packet is *not* restored between repetitions. The
        program writes to its maps as for real packets. Raises ValueError for impossible lengths, HostError when the
        kernel refuses.
        """
        if len(frame) < _SHORTEST_FRAME:
            raise ValueError(f"a frame of {len(frame)} bytes: at least {_SHORTEST_FRAME} are needed")
        if len(metadata) > 32 or len(metadata) % 4:
            raise ValueError(f"{len(metadata)} bytes of metadata: 0 or 4..32 in steps of 4 are possible")
        total = len(metadata) + len(frame)
        data_in = np.frombuffer(metadata + frame, np.uint8)
        data_out = np.zeros(total + _ROOM, np.uint8)
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        # In a test run the first three are offsets from the beginning of the metadata.
        ctx_in = np.array([len(metadata), total, 0, ifindex, rx_queue_index, 0], np.uint32)
        ctx_out = np.zeros(6, np.uint32)
        attr = bytearray(
            struct.pack(
                "=IIIIQQIIIIQQIIII",
                *(self.fd, 0, data_in.nbytes, data_out.nbytes, address(data_in), address(data_out)),
                *(repeat, 0, ctx_in.nbytes, ctx_out.nbytes, address(ctx_in), address(ctx_out)),
                *(0, 0, 0, 0),
            )
        )
        self._run(attr, ifindex)
        _, verdict, _, size = struct.unpack_from("=IIII", attr)
        duration: int = struct.unpack_from("=I", attr, 36)[0]
        left = data_out[:size].tobytes()
        start = int(ctx_out[0])
        return TestRun(_action(verdict), left[start:], left[:start], duration)


def _action(number: int) -> XdpAction:
    # The kernel treats an unknown verdict as XDP_ABORTED.
    return XdpAction(number) if number <= XdpAction.REDIRECT else XdpAction.ABORTED


def _reason(error: OSError, ifindex: int) -> str:
    if error.errno in (errno.EINVAL, errno.ENODEV) and ifindex:
        return f"{error.strerror} (is interface {ifindex} up, XDP-capable and has it that receive queue?)"
    return explain(error, needs=[Capability.BPF, Capability.NET_ADMIN])
