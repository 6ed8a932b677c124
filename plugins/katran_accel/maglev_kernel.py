# SPDX-License-Identifier: Apache-2.0
"""Builds Maglev rings in the kernel, several times faster than numpy: runs bpf/balancer/maglev.c by BPF_PROG_TEST_RUN.

::

    endpoints ──► WeightedReals, turns ──► maglev_work ◄──► maglev.c        (one run: some ten thousand steps)
                                               └──► ring

The order of turns is computed here. The program takes the turns in a map that both sides have in memory, and calls
itself as often as the kernel allows. When few slots are free, it gets their list. The rings equal those of
:func:`.maglev.build_ring`, which builds those with a walk that wraps at u32: the program cannot.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nfcore.errors import HostError
from nfcore.kernel import BPF_SOURCES, Closing, Map, MapFlags, MapSpec, MapType, Program, compile_program

from .hashing import RING_SIZE, U32
from .layouts import MAX_REALS
from .maglev import Endpoint, WeightedReals, build_ring, trivial_ring

_LOG = logging.getLogger(__name__)

# bpf/balancer/maglev.h
SLOTS = 131_072
LAST_SLOTS = 128
REAL = np.dtype([("position", "<u4"), ("skip", "<u4"), ("inverse", "<u4"), ("num", "<u4")])
WORK = np.dtype(
    [
        ("turn", "<u4"),
        ("listed", "<u4"),
        ("free_slots", "<u4", (LAST_SLOTS,)),
        ("taken", "<u8", (SLOTS // 64,)),
        ("reals", REAL, (MAX_REALS,)),
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
"""Steps of a run that cannot call itself."""


@cache
def _inverses() -> U32:
    """Inverse of each number below :data:`RING_SIZE`, modulo that; 0 for 0.

    The size is the prime 2¹⁶ + 1, and the powers of 3 are all numbers but 0.
    """
    powers = np.ones(RING_SIZE - 1, np.uint64)
    count, factor = 1, 3
    while count < len(powers):
        powers[count : 2 * count] = powers[:count] * np.uint64(factor) % np.uint64(RING_SIZE)
        count, factor = 2 * count, factor**2 % RING_SIZE
    inverses = np.zeros(RING_SIZE, np.uint32)
    inverses[powers] = np.roll(powers[::-1], 1)
    return inverses


class KernelRings(Closing):
    """The loaded program and its maps; builds one ring at a time. A context manager."""

    def __init__(self) -> None:
        """Load the program. HostError when that is not possible: no privileges, no compiler, an old kernel."""
        with ExitStack() as opened:
            self._maps = {spec.name: opened.enter_context(Map.create(spec)) for spec in (_WORK_MAP, _AGAIN_MAP)}
            self._program: Program = opened.enter_context(
                compile_program(BPF_SOURCES / "balancer/maglev.c", "maglev", defines={}, maps=self._maps)
            )
            self._maps["maglev_again"].update(0, self._program)
            self._work: NDArray[np.void] = self._maps["maglev_work"].mmap()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close program and maps."""
        self._opened.close()

    def build(self, endpoints: Sequence[Endpoint], *, version: int = 2) -> NDArray[np.uint32]:
        """Build the ring of one VIP: :func:`.maglev.build_ring` with the ABI's ring size, errors included.

        HostError when the kernel does not run the program.
        """
        ring = trivial_ring(endpoints, version=version)
        if ring is not None:
            return ring
        reals = WeightedReals.of(endpoints, RING_SIZE)
        if len(reals) > MAX_REALS or reals.wraps(RING_SIZE):
            return build_ring(endpoints, version=version)
        self._set_up(reals, version)
        # So many runs suffice, since no walk visits a slot twice.
        max_runs = len(reals) * RING_SIZE // _LEAST_STEPS + LAST_SLOTS + 1
        self._run(RING_SIZE - LAST_SLOTS, max_runs)
        self._list_free_slots()
        self._run(RING_SIZE, max_runs)
        filled: NDArray[np.uint32] = self._work["ring"][0, :RING_SIZE].astype("<u4")
        return filled

    def _set_up(self, reals: WeightedReals, version: int) -> None:
        work, rows = self._work, self._work["reals"][0, : len(reals)]
        rows["position"], rows["skip"], rows["num"] = reals.offsets, reals.skips, reals.numbers
        rows["inverse"] = _inverses()[reals.skips]
        work["turns"][0, :RING_SIZE] = reals.schedule(version).order(RING_SIZE)
        work["taken"] = work["listed"] = work["turn"] = 0

    def _list_free_slots(self) -> None:
        taken = self._work["taken"][0].view(np.uint8)
        free = np.flatnonzero(np.unpackbits(taken, count=RING_SIZE, bitorder="little") == 0)
        self._work["free_slots"][0] = free
        self._work["listed"] = 1

    def _run(self, turn: int, max_runs: int) -> None:
        """Run the program until all turns before `turn` are taken."""
        for _ in range(max_runs):
            if self._work["turn"][0] >= turn:
                return
            self._program.test_run(_FRAME)
        raise HostError(
            f"the kernel filled {self._work['turn'][0]} of {RING_SIZE} slots of a Maglev ring in {max_runs} runs"
        )


class RingBuilder:
    """Builds rings in the kernel if that is possible and worth it, else with numpy."""

    MIN_REALS = 64
    """From so many reals on, in all rings to build, the program is worth loading: that takes a tenth of a second."""

    def __init__(self) -> None:
        self._kernel: KernelRings | None = None
        self._unavailable = False

    def prepare(self, reals: int) -> None:
        """Load the program if rings with so many reals, all together, are worth it."""
        if self._kernel is None and not self._unavailable and reals >= self.MIN_REALS:
            try:
                self._kernel = KernelRings()
            except HostError as error:
                self._use_numpy(error)

    def build(self, endpoints: Sequence[Endpoint], *, version: int = 2) -> NDArray[np.uint32]:
        """Build the ring of one VIP, as :func:`.maglev.build_ring` does."""
        if self._kernel is not None:
            try:
                return self._kernel.build(endpoints, version=version)
            except HostError as error:
                self._use_numpy(error)
        return build_ring(endpoints, version=version)

    def _use_numpy(self, error: HostError) -> None:
        self.close()
        self._unavailable = True
        _LOG.debug("Maglev rings are built without the kernel: %s", error)

    def close(self) -> None:
        """Close program and maps."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
