# SPDX-License-Identifier: Apache-2.0
"""Makes packets of many flows for one program, as fast as test runs can."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from ..kernel import BPF_SOURCES, Closing, Map, MapFlags, MapSpec, MapType, Program, TestRun, compile_program
from .traffic import ACK, ETHERNET_BYTES, MAX_FLOWS, SERVICE, Family, first_frame

STATE = np.dtype([("random", "<u8"), ("flows", "<u4"), ("flow", "<u4"), ("packets", "<u4"), ("left", "<u4")])
"""`struct bench_state` of bpf/bench/pick.h."""
PREFIX = np.dtype([("bytes", "u1", (64,))])
"""`struct bench_prefix` of bpf/bench/rewind.h."""

MAC_BYTES = 6
_U32 = np.dtype("<u4")
_SEED = 0x9E3779B97F4A7C15


class SameFrame:
    """Runs the program on one frame, again and again, without a wrapper: shows what a test run itself costs."""

    in_turn = True

    def __init__(self, family: Family) -> None:
        self.family: Family = family
        self._frame = first_frame(family, ACK)
        self._program: Program | None = None

    def send_to(self, program: Program) -> None:
        """Send the packets to `program` from now on."""
        self._program = program

    def set_flow_count(self, flows: int) -> None:
        """Do nothing: there is only one flow."""

    def run(self, packets: int) -> TestRun:
        """As :meth:`FlowSource.run`."""
        assert self._program is not None, "send_to() comes first"
        return self._program.test_run(self._frame, repeat=packets)


class FlowSource(Closing):
    """Sends numbered flows (:mod:`.traffic`) to one program. A context manager.

    `services` are :data:`.traffic.SERVICE` rows. With `marks`, packets of flow n carry the mark 1 + n mod `marks` in
    their metadata; with 0 they have no metadata. With `in_turn` one flow is sent after the other; otherwise each packet
    is of a random flow. `scattered`: sources as :func:`.traffic.flow_keys` has them. HostError when the kernel refuses.
    """

    def __init__(
        self,
        services: NDArray[np.void],
        family: Family,
        *,
        marks: int = 0,
        in_turn: bool = False,
        tcp_flags: int = ACK,
        scattered: bool = False,
        beyond: int = 0,
        frame: bytes = b"",
        flow_at: int = ETHERNET_BYTES,
    ) -> None:
        """`beyond`: the packets are of so many flows behind those that :meth:`set_flow_count` tells.

        frame: other packets than TCP segments without options; flow_at: where the flow's IP header is in this frame.
        """
        self.services = services
        self.family: Family = family
        self.in_turn = in_turn
        self._marks, self._tcp_flags, self._scattered, self._beyond = marks, tcp_flags, scattered, beyond
        self._given, self._flow_at = frame, flow_at
        self._frame = frame or first_frame(family, tcp_flags)
        defines: dict[str, int | str] = {"FRAME_BYTES": len(self._frame), "SERVICES": f"{len(services)}u"}
        if flow_at != ETHERNET_BYTES:
            defines["FLOW_AT"] = flow_at
        if family == 6:
            defines["IPV6"] = 1
        if marks:
            defines["MARKS"] = f"{marks}u"
        if not in_turn:
            defines["PICK_AT_RANDOM"] = 1
        if scattered:
            defines["SCATTERED"] = 1
        with ExitStack() as stack:
            self._maps = {spec.name: stack.enter_context(Map.create(spec)) for spec in _specs(len(services))}
            self._maps["bench_services"].write_array(0, services)
            prefix = np.frombuffer(self._frame[2 * MAC_BYTES : flow_at].ljust(PREFIX.itemsize, b"\0"), PREFIX)
            self._maps["bench_prefix"].write_array(0, prefix)
            program = compile_bench("flow_source.c", "bench_source", defines, self._maps)
            self._program = stack.enter_context(program)
            self._open = stack.pop_all()
        self._state = self._maps["bench_state"].mmap()
        self._state["random"] = _SEED

    def twin(self) -> FlowSource:
        """Make another source of the same packets, for another CPU; each source has its own state."""
        return FlowSource(
            self.services,
            self.family,
            marks=self._marks,
            in_turn=self.in_turn,
            tcp_flags=self._tcp_flags,
            scattered=self._scattered,
            beyond=self._beyond,
            frame=self._given,
            flow_at=self._flow_at,
        )

    def close(self) -> None:
        """Close program and maps. Idempotent."""
        self._open.close()

    def send_to(self, program: Program) -> None:
        """Send the packets to `program` from now on."""
        self._maps["bench_target"].update(0, program)

    def set_flow_count(self, flows: int) -> None:
        """Pick among flows 0 … `flows` - 1 from now on, or among those `beyond`. For a source without `in_turn`."""
        _check(flows + self._beyond)
        self._state["flow"], self._state["flows"] = (flows, self._beyond) if self._beyond else (0, flows)

    def begin(self, first: int, packets: int = 1) -> None:
        """Continue with flow `first`, `packets` packets of each flow. For a source with `in_turn`."""
        self._state["flow"], self._state["packets"], self._state["left"] = first, packets, packets

    def run(self, packets: int) -> TestRun:
        """Send `packets` packets. The result has the verdict and frame of the last one, and the mean duration."""
        return self._program.test_run(self._frame, repeat=packets)

    def burst(self, flows: int, packets: int = 1, first: int = 0) -> TestRun:
        """Send flows `first` … `first` + `flows` - 1 one after the other, `packets` packets of each.

        Runs on the CPU of the caller. ValueError for a source without `in_turn`, or for too many flows.
        """
        if not self.in_turn:
            raise ValueError("a burst needs a source made with in_turn=True")
        _check(first + flows)
        self.begin(first, packets)
        return self.run(flows * packets)


class FixedFlows:
    """Packets of another source, always of as many flows: what is measured with several numbers is something else."""

    in_turn = False

    def __init__(self, source: FlowSource, flows: int) -> None:
        self.family: Family = source.family
        self._source, self._flows = source, flows

    def send_to(self, program: Program) -> None:
        """As :meth:`FlowSource.send_to`."""
        self._source.send_to(program)

    def set_flow_count(self, flows: int) -> None:
        """Set the own number."""
        self._source.set_flow_count(self._flows)

    def run(self, packets: int) -> TestRun:
        """As :meth:`FlowSource.run`."""
        return self._source.run(packets)


def _check(flows: int) -> None:
    if not 0 < flows <= MAX_FLOWS:
        raise ValueError(f"{flows} flows; should be from 1 to {MAX_FLOWS:,}")


def _specs(services: int) -> list[MapSpec]:
    return [
        MapSpec("bench_state", MapType.ARRAY, _U32, STATE, 1, MapFlags.MMAPABLE),
        MapSpec("bench_services", MapType.ARRAY, _U32, SERVICE, services),
        MapSpec("bench_target", MapType.PROG_ARRAY, _U32, _U32, 1),
        MapSpec("bench_prefix", MapType.ARRAY, _U32, PREFIX, 1),
    ]


def compile_bench(source: str, function: str, defines: dict[str, int | str], maps: dict[str, Map]) -> Program:
    """Compile a program of bpf/bench/. HostError as :func:`nfcore.kernel.compile_program`."""
    return compile_program(BPF_SOURCES / "bench" / source, function, defines=defines, maps=maps)
