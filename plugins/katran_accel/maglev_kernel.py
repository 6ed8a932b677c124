# SPDX-License-Identifier: Apache-2.0
"""Maglev rings that the kernel fills, several times faster than numpy: bpf/balancer/maglev.c by BPF_PROG_TEST_RUN.

::

    endpoints ──► Players, turns ──► maglev_work ◄──► maglev.c        (one run: some ten thousand steps)
                                          └──► ring

Who plays when is known beforehand; the program plays it over a map that both sides have in memory, and calls itself
as often as the kernel allows. When few slots are left, it is given their list. The rings are those of
:func:`.maglev.build_ring`, which is asked for what the program does not do: a walk that wraps at u32.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nfcore.errors import HostError
from nfcore.kernel import BPF_SOURCES, Map, MapFlags, MapSpec, MapType, Program, compile_program

from .hashing import RING_SIZE, U32
from .layouts import MAX_REALS
from .maglev import Endpoint, Players, build_ring, trivial_ring

_LOG = logging.getLogger(__name__)

# bpf/balancer/maglev.h
SLOTS = 131_072
FEW = 128
PLAYER = np.dtype([("position", "<u4"), ("skip", "<u4"), ("inverse", "<u4"), ("num", "<u4")])
WORK = np.dtype(
    [
        ("turn", "<u4"),
        ("listed", "<u4"),
        ("few", "<u4", (FEW,)),
        ("taken", "<u8", (SLOTS // 64,)),
        ("players", PLAYER, (MAX_REALS,)),
        ("turns", "<u2", (SLOTS,)),
        ("ring", "<u4", (SLOTS,)),
    ]
)
_U32 = np.dtype("<u4")
_WORK_MAP = MapSpec("maglev_work", MapType.ARRAY, _U32, WORK, 1, MapFlags.MMAPABLE)
_AGAIN_MAP = MapSpec("maglev_again", MapType.PROG_ARRAY, _U32, _U32, 1)
_FRAME = bytes(14)
"""The program does not look at it."""
_LEAST_STEPS = 512
"""Steps of a run that does not call itself."""


@cache
def _inverses() -> U32:
    """Inverse of each number below :data:`RING_SIZE`, modulo that; 0 for 0.

    That is the prime 2¹⁶ + 1, of which 3 generates all numbers but 0.
    """
    powers = np.ones(RING_SIZE - 1, np.uint64)
    count, factor = 1, 3
    while count < len(powers):
        powers[count : 2 * count] = powers[:count] * np.uint64(factor) % np.uint64(RING_SIZE)
        count, factor = 2 * count, factor**2 % RING_SIZE
    inverses = np.zeros(RING_SIZE, np.uint32)
    inverses[powers] = np.roll(powers[::-1], 1)
    return inverses


class KernelRings:
    """The program and its maps, for one ring at a time. A context manager."""

    def __init__(self) -> None:
        """Load the program. HostError when that is not possible: privileges, compiler, an old kernel."""
        with ExitStack() as opened:
            self._maps = {spec.name: opened.enter_context(Map.create(spec)) for spec in (_WORK_MAP, _AGAIN_MAP)}
            self._program: Program = opened.enter_context(
                compile_program(BPF_SOURCES / "balancer/maglev.c", "maglev", defines={}, maps=self._maps)
            )
            self._maps["maglev_again"].update(0, self._program)
            self._work: NDArray[np.void] = self._maps["maglev_work"].mmap()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Let go of program and maps."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def build(self, endpoints: Sequence[Endpoint], *, version: int = 2) -> NDArray[np.uint32]:
        """Build the ring of one VIP: :func:`.maglev.build_ring` with the ABI's ring size, errors included.

        HostError when the kernel does not run the program.
        """
        ring = trivial_ring(endpoints, version=version)
        if ring is not None:
            return ring
        players = Players.of(endpoints, RING_SIZE)
        if len(players) > MAX_REALS or players.wraps(RING_SIZE):
            return build_ring(endpoints, version=version)
        self._deal(players, version)
        # No walk meets a slot twice.
        runs = len(players) * RING_SIZE // _LEAST_STEPS + FEW + 1
        self._run(RING_SIZE - FEW, runs)
        self._list_few()
        self._run(RING_SIZE, runs)
        filled: NDArray[np.uint32] = self._work["ring"][0, :RING_SIZE].astype("<u4")
        return filled

    def _deal(self, players: Players, version: int) -> None:
        work, rows = self._work, self._work["players"][0, : len(players)]
        rows["position"], rows["skip"], rows["num"] = players.offsets, players.skips, players.numbers
        rows["inverse"] = _inverses()[players.skips]
        work["turns"][0, :RING_SIZE] = players.schedule(version).order(RING_SIZE)
        work["taken"] = work["listed"] = work["turn"] = 0

    def _list_few(self) -> None:
        taken = self._work["taken"][0].view(np.uint8)
        free = np.flatnonzero(np.unpackbits(taken, count=RING_SIZE, bitorder="little") == 0)
        self._work["few"][0] = free
        self._work["listed"] = 1

    def _run(self, turn: int, runs: int) -> None:
        """Play up to and without a turn."""
        for _ in range(runs):
            if self._work["turn"][0] >= turn:
                return
            self._program.test_run(_FRAME)
        raise HostError(
            f"the kernel filled {self._work['turn'][0]} of {RING_SIZE} slots of a Maglev ring in {runs} runs"
        )


class RingBuilder:
    """Builds rings in the kernel when there are enough of them and it can, else with numpy."""

    WORTH = 64
    """Reals in the rings to build from which on it pays to load the program, which takes a tenth of a second."""

    def __init__(self) -> None:
        self._kernel: KernelRings | None = None
        self._refused = False

    def prepare(self, reals: int) -> None:
        """Rings of so many reals in all are about to be built."""
        if self._kernel is None and not self._refused and reals >= self.WORTH:
            try:
                self._kernel = KernelRings()
            except HostError as error:
                self._refuse(error)

    def build(self, endpoints: Sequence[Endpoint], *, version: int = 2) -> NDArray[np.uint32]:
        """As :func:`.maglev.build_ring` does."""
        if self._kernel is not None:
            try:
                return self._kernel.build(endpoints, version=version)
            except HostError as error:
                self._refuse(error)
        return build_ring(endpoints, version=version)

    def _refuse(self, error: HostError) -> None:
        self.close()
        self._refused = True
        _LOG.debug("Maglev rings are built without the kernel: %s", error)

    def close(self) -> None:
        """Let go of program and maps."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
