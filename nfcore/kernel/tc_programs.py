# SPDX-License-Identifier: Apache-2.0
"""Loaded TC programs, and test runs on a packet without an interface. Layouts: ``include/uapi/linux/bpf.h``."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .codec import address
from .programs import LoadedProgram, ProgramType

_ROOM = 4096
"""Bytes that a program can add at most."""
_SKB_SIZE, _SKB_MARK = 192, 8
"""Size of ``struct __sk_buff``; offset of its mark."""


class TcAction(IntEnum):
    """Verdict of a program (``include/uapi/linux/pkt_cls.h``)."""

    UNSPEC = -1
    OK = 0
    SHOT = 2
    PIPE = 3
    REDIRECT = 7


@dataclass(frozen=True)
class TcTestRun:
    """Result of a test run."""

    verdict: TcAction
    output: bytes
    """The frame after the run."""
    mark: int
    """The packet's mark after the run."""


class TcProgram(LoadedProgram):
    """A loaded TC program."""

    type = ProgramType.SCHED_CLS
    type_name = "a TC program"

    def test_run(self, frame: bytes, *, mark: int = 0) -> TcTestRun:
        """Run the program on a packet with this mark; the frame begins with the Ethernet header. HostError."""
        data_in = np.frombuffer(frame, np.uint8)
        data_out = np.zeros(len(frame) + _ROOM, np.uint8)
        context = np.zeros(_SKB_SIZE, np.uint8)
        context[_SKB_MARK : _SKB_MARK + 4].view(np.uint32)[0] = mark
        attr = bytearray(
            struct.pack(
                "=IIIIQQIIIIQQIIII",
                *(self.fd, 0, data_in.nbytes, data_out.nbytes, address(data_in), address(data_out)),
                *(1, 0, context.nbytes, context.nbytes, address(context), address(context)),
                *(0, 0, 0, 0),
            )
        )
        self._run(attr)
        _, verdict, _, size = struct.unpack_from("=IiII", attr)
        left = int(context[_SKB_MARK : _SKB_MARK + 4].view(np.uint32)[0])
        return TcTestRun(TcAction(verdict), data_out[:size].tobytes(), left)
