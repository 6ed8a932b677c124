# SPDX-License-Identifier: Apache-2.0
"""Packets of many flows for one program, as fast as test runs can make them."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..kernel import BPF_SOURCES, Map, MapFlags, MapSpec, MapType, Program, TestRun, compile_program
from .traffic import ACK, FRAME_BYTES, MOST_FLOWS, SERVICE, Family, first_frame

STATE = np.dtype([("random", "<u8"), ("flows", "<u4"), ("flow", "<u4"), ("packets", "<u4"), ("left", "<u4")])
"""`struct bench_state` of bpf/bench/pick.h."""

_U32 = np.dtype("<u4")
_SEED = 0x9E3779B97F4A7C15


class SameFrame:
    """One frame, again and again, straight to the program: what a test run itself costs."""

    in_turn = True

    def __init__(self, family: Family) -> None:
        self.family: Family = family
        self._frame = first_frame(family, ACK)
        self._program: Program | None = None

    def aim(self, program: Program) -> None:
        """Let `program` have the packets from now on."""
        self._program = program

    def among(self, flows: int) -> None:
        """There is but one flow."""

    def run(self, packets: int) -> TestRun:
        """As :meth:`FlowSource.run`."""
        assert self._program is not None, "aim() comes first"
        return self._program.test_run(self._frame, repeat=packets)


class FlowSource:
    """Flows by number (:mod:`.traffic`) towards one program. A context manager.

    `services` are :data:`.traffic.SERVICE` rows. With `marks` the metadata of flow n's packets says
    1 + n mod `marks`; 0: there is none. `in_turn` sends one flow after the other instead of picking one at random
    for each packet. HostError when the kernel refuses.
    """

    def __init__(
        self,
        services: NDArray[np.void],
        family: Family,
        *,
        marks: int = 0,
        in_turn: bool = False,
        tcp_flags: int = ACK,
    ) -> None:
        self.services = services
        self.family: Family = family
        self.in_turn = in_turn
        self._marks, self._tcp_flags = marks, tcp_flags
        self._frame = first_frame(family, tcp_flags)
        defines: dict[str, int | str] = {"FRAME_BYTES": FRAME_BYTES[family], "SERVICES": f"{len(services)}u"}
        if family == 6:
            defines["IPV6"] = 1
        if marks:
            defines["MARKS"] = f"{marks}u"
        if not in_turn:
            defines["PICK_AT_RANDOM"] = 1
        self._open = ExitStack()
        with ExitStack() as failing:
            failing.push(self._open)
            self._maps = {spec.name: self._open.enter_context(Map.create(spec)) for spec in _specs(len(services))}
            self._maps["bench_services"].write_array(0, services)
            program = compile_bench("flow_source.c", "bench_source", defines, self._maps)
            self._program = self._open.enter_context(program)
            failing.pop_all()
        self._state = self._maps["bench_state"].mmap()
        self._state["random"] = _SEED

    def twin(self) -> FlowSource:
        """Make another source of the same packets, for another CPU: the state of one is not shared."""
        return FlowSource(
            self.services, self.family, marks=self._marks, in_turn=self.in_turn, tcp_flags=self._tcp_flags
        )

    def close(self) -> None:
        """Give up program and maps. Idempotent."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def aim(self, program: Program) -> None:
        """Let `program` have the packets from now on."""
        self._maps["bench_target"].update(0, program)

    def among(self, flows: int) -> None:
        """Pick flows 0 … `flows` - 1 from now on; of a source at random."""
        _check(flows)
        self._state["flows"] = flows

    def begin(self, first: int, packets: int = 1) -> None:
        """Go on with flow `first`, `packets` packets of each flow; of a source in turn."""
        self._state["flow"], self._state["packets"], self._state["left"] = first, packets, packets

    def run(self, packets: int) -> TestRun:
        """Send so many packets; verdict and frame are the last one's, the duration is the mean."""
        return self._program.test_run(self._frame, repeat=packets)

    def burst(self, flows: int, packets: int = 1, first: int = 0) -> TestRun:
        """Let the program see flows `first` … `first` + `flows` - 1, `packets` packets of each, one after the other.

        On the CPU of the caller. Of a source in turn; ValueError for any other, or for too many flows.
        """
        if not self.in_turn:
            raise ValueError("a burst needs a source that was made with in_turn=True")
        _check(first + flows)
        self.begin(first, packets)
        return self.run(flows * packets)


def _check(flows: int) -> None:
    if not 0 < flows <= MOST_FLOWS:
        raise ValueError(f"{flows} flows: there are 1 … {MOST_FLOWS:,}")


def _specs(services: int) -> list[MapSpec]:
    return [
        MapSpec("bench_state", MapType.ARRAY, _U32, STATE, 1, MapFlags.MMAPABLE),
        MapSpec("bench_services", MapType.ARRAY, _U32, SERVICE, services),
        MapSpec("bench_target", MapType.PROG_ARRAY, _U32, _U32, 1),
    ]


def compile_bench(source: str, function: str, defines: dict[str, int | str], maps: dict[str, Map]) -> Program:
    """Compile a program of bpf/bench/. HostError as :func:`nfcore.kernel.compile_program`."""
    return compile_program(BPF_SOURCES / "bench" / source, function, defines=defines, maps=maps)
