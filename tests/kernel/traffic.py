# SPDX-License-Identifier: Apache-2.0
"""Flows through a site: in rounds of a frame each, all of whose answers are looked at, and floods that nobody reads."""

from __future__ import annotations

import ctypes
import itertools
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from tests.kernel.katran_accel.world import tcp

from .network import send_frame
from .site import PATIENCE, VIP, Site, packet_socket

PACKET_IGNORE_OUTGOING, SOL_PACKET = 23, 263
SO_RCVBUFFORCE, SO_ATTACH_FILTER = 33, 26
_magic = itertools.count(0x6E66_0000)
PAYLOAD = struct.Struct("!III8x")
"""Magic, flow, round: 20 bytes as of :func:`tcp`."""
ANSWER_PAYLOAD = 14 + 20 + 20 + 20
"""Where the payload of an IPv4 answer begins: Ethernet, outer and inner header, TCP."""
LOST_AFTER = 3.0
"""Seconds after which a frame without an answer counts as lost."""
WINDOW = 32
"""Frames under way: fewer than a veth's ring has room for."""


CLIENT = "198.18.1.2"


def flow_text(number: int, client: str = CLIENT) -> str:
    """A flow of :func:`flow_frames` as `nfcore explain` reads it."""
    return f"{client}:{40_000 + number} > {VIP}:80/tcp"


def flow_frames(count: int, vip: str = VIP, client: str = CLIENT, flags: str = "A") -> list[bytes]:
    """A frame of each of `count` flows."""
    return [tcp(client, vip, sport=40_000 + number, flags=flags) for number in range(count)]


class Rounds:
    """Sends one frame of each flow a round, and notes where each went. A context manager.

    Its socket hears only answers to its own frames: neither a flood beside it nor other rounds are heard.
    """

    def __init__(self, frames: Sequence[bytes]) -> None:
        self._frames = [bytearray(frame) for frame in frames]
        self._magic = next(_magic)
        self._socket = packet_socket()
        self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        _hear_only_answers(self._socket, self._magic)
        self._socket.setblocking(False)
        self._round = 0
        self._missing: set[tuple[int, int]] = set()
        self._seen: dict[int, str] = {}
        self.lost: list[tuple[int, int]] = []
        """(flow, round) of frames that were not answered."""
        self.reals: list[set[str]] = [set() for _ in frames]
        """Where the packets of each flow went, from the beginning."""
        self.sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def run(self, only: Sequence[int] | None = None) -> dict[int, str]:
        """One round, of all flows or of some: the real that each was sent to; what is lost is not in it."""
        self._round += 1
        self._seen = {}
        for number in range(len(self._frames)) if only is None else only:
            frame = self._frames[number]
            PAYLOAD.pack_into(frame, len(frame) - PAYLOAD.size, self._magic, number, self._round)
            send_frame(self._socket, frame)
            self._missing.add((number, self._round))
            self.sent += 1
            self._take(WINDOW)
        self._take(1)
        return self._seen

    def several(self, rounds: int) -> list[dict[int, str]]:
        return [self.run() for _ in range(rounds)]

    def steady(self) -> bool:
        """Whether every frame was answered, and each flow's by one real."""
        return not self.lost and all(len(reals) == 1 for reals in self.reals)

    def _take(self, fewer_than: int) -> None:
        """Take answers until fewer than that are missing; those that do not come are lost."""
        deadline = time.monotonic() + LOST_AFTER
        while len(self._missing) >= fewer_than:
            if not select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.lost += sorted(self._missing)
                self._missing.clear()
                return
            answer = self._socket.recv(4096)
            if len(answer) != ANSWER_PAYLOAD + PAYLOAD.size:
                continue
            magic, number, of_round = PAYLOAD.unpack_from(answer, ANSWER_PAYLOAD)
            if magic == self._magic:
                real = socket.inet_ntoa(answer[30:34])
                self._missing.discard((number, of_round))
                self._seen[number] = real
                self.reals[number].add(real)

    def offload(self, site: Site, count: int | None = None) -> None:
        """Send until all of them, or as many as that, have their rules."""
        deadline = time.monotonic() + PATIENCE
        wanted = len(self._frames) if count is None else count
        while site.metric("nfcore_flows", state="installed") < wanted:
            self.several(3)
            assert time.monotonic() < deadline, "not all of them got a rule"


def _hear_only_answers(receiver: socket.socket, magic: int) -> None:
    """Attach a filter: the word where an answer's payload begins is `magic`."""
    instructions = ((0x20, 0, 0, ANSWER_PAYLOAD), (0x15, 0, 1, magic), (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in instructions))
    program = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code))
    receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def flood(
    count: int, flags: str, each: int = 1, first: int = 0, meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Send `each` frames of `count` flows, from number `first` on; `meanwhile` is called every 2,000 frames.

    Nobody reads the answers. No two flows of the first 65,536 have one source.
    """
    with packet_socket() as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for position, frame in enumerate(_distinct(first, count, flags)):
            for _ in range(each):
                send_frame(sender, frame)
            if position % (2_000 // each) == 0:
                meanwhile()


def _distinct(first: int, count: int, flags: str) -> Iterator[bytearray]:
    """Frames of flows by number: 198.19.0.0/16, and another port after each 65,536; checksums are not kept."""
    frame = bytearray(tcp("198.19.0.0", VIP, flags=flags))
    for number in range(first, first + count):
        struct.pack_into("!H", frame, 28, number & 0xFFFF)
        struct.pack_into("!H", frame, 34, 1024 + (number >> 16))
        yield frame
