# SPDX-License-Identifier: Apache-2.0
"""Times programs and their floors in turn, in rounds. Counters prove that the packets took the right path."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import NfcoreError
from ..kernel import Program, XdpAction
from .packet_source import FixedFlows, FlowSource, SameFrame
from .processes import ShowProgress
from .traffic import Family, unwrap

MIN_PACKETS = 200_000
"""Of a timed run: it takes 10 ms even with a fast program."""
MAX_PACKETS = 1_000_000
SAMPLES = 256
MIN_HIT_RATIO = 0.999
"""Of look-ups in the connection table, where every flow should be known."""
BUSY = 1.1
"""Factor: a round counts as busy when the floor took longer than this times its best."""


class BenchError(NfcoreError):
    """The packets of a measurement did not take the path that is to be measured."""


@dataclass(frozen=True)
class PacketCounters:
    """What a program counted of all its packets so far."""

    packets: int = 0
    sent: int = 0
    """Packets that ended as all should: of a balancer, those that were sent."""
    fast: int = 0
    """Packets on the fast path."""
    lookups: int = 0
    """In the connection table."""
    misses: int = 0

    def __sub__(self, other: PacketCounters) -> PacketCounters:
        return PacketCounters(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __add__(self, other: PacketCounters) -> PacketCounters:
        return PacketCounters(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Subject:
    """A program under test, its packets, and what must become of them."""

    row: str
    """Name in the result, such as ``dest-id``."""
    source: FlowSource | FixedFlows | SameFrame
    program: Program
    floor: str | None
    """Row of an earlier subject whose program gets the same kind of packets and does only what cannot be avoided; None
    for such a program itself."""
    flows: tuple[int, ...]
    """Numbers of flows to measure with. With a source in turn: how many new flows, one packet each."""
    reals: Callable[[NDArray[np.uint32]], NDArray[np.uint8]] | None = None
    """Outer destination that each flow must get, shape (n, 16); None for a program that encapsulates nothing."""
    read_counters: Callable[[], PacketCounters] | None = None
    """None for a program that counts nothing."""
    fast: bool = False
    """Whether every packet must take the fast path; otherwise none may."""
    known: bool = False
    """Whether every packet's flow must be in the connection table."""
    several_cores: bool = False
    """Whether to measure it on several cores at once, too; its source must pick flows at random."""
    verdict: XdpAction = XdpAction.TX
    """Of every packet."""


@dataclass
class Series:
    """Timed runs of one subject with one number of flows."""

    row: str
    family: Family
    flows: int
    gross: list[int] = field(default_factory=list)
    """Nanoseconds per packet of each round."""
    floor: list[int] = field(default_factory=list)
    """Of the floor in the same round."""
    counters: PacketCounters = field(default_factory=PacketCounters)


@dataclass(frozen=True)
class Row:
    """One line of the result. Nanoseconds are medians over the quiet rounds of all processes."""

    row: str
    family: int
    flows: int
    ns: float
    floor_ns: float
    net_ns: float
    min: float
    """Of the gross times of all rounds, as is `max`."""
    max: float
    rounds: int
    """Those that are in the medians."""
    left_out: int
    """Rounds in which the machine was busy: the floor took more than :data:`BUSY` times its best."""
    fast_share: float | None
    """Share of the timed packets that took the fast path; None for a program that does not count."""
    hit_ratio: float | None
    """Share of look-ups in the connection table that found the flow; None when there were none."""


def measure(
    subjects: Sequence[Subject], rounds: int, show_progress: ShowProgress = lambda message: None
) -> list[Series]:
    """Check each subject with single packets, then time all of them `rounds` times, fewest flows first.

    Runs on the CPU of the caller, which should be pinned. BenchError names the subject whose packets took a wrong path.
    """
    measured: list[Series] = []
    for flows in sorted({number for subject in subjects for number in subject.flows}):
        pairs = [
            (subject, Series(subject.row, subject.source.family, flows))
            for subject in subjects
            if flows in subject.flows
        ]
        show_progress(f"IPv{pairs[0][1].family}, {flows:,} flows")
        for subject, _ in pairs:
            prove(subject, flows)
        for _ in range(rounds):
            times: dict[str, int] = {}
            for subject, series in pairs:
                times[subject.row] = _time(subject, series)
                series.gross.append(times[subject.row])
                if subject.floor is not None:
                    series.floor.append(times[subject.floor])
        for subject, series in pairs:
            _check_counters(subject, series)
            measured.append(series)
    return measured


def prove(subject: Subject, flows: int, samples: int = SAMPLES) -> None:
    """Send `samples` packets, one by one, and check each frame: verdict, flow and real. BenchError: one is wrong."""
    subject.source.send_to(subject.program)
    if not subject.source.in_turn:
        subject.source.set_flow_count(flows)
    numbers, destinations = [], []
    for _ in range(samples):
        run = subject.source.run(1)
        if run.verdict is not subject.verdict:
            message = f"a packet ended as {run.verdict}, all should as {subject.verdict}"
            raise BenchError(f"{_name(subject, flows)}: {message}")
        if subject.reals is not None:
            decoded = unwrap(run.output, subject.source.family)
            if decoded is None:
                raise BenchError(f"{_name(subject, flows)}: a packet left without the outer header that it should have")
            numbers.append(decoded[0])
            destinations.append(decoded[1])
    if subject.reals is None:
        return
    sent_to = np.frombuffer(b"".join(destinations), np.uint8).reshape(-1, 16)
    wrong = (sent_to != subject.reals(np.array(numbers, dtype=np.uint32))).any(axis=1)
    if wrong.any():
        flow = numbers[int(wrong.argmax())]
        raise BenchError(
            f"{_name(subject, flows)}: {wrong.sum()} of {samples} packets went to another real than their own, "
            f"the first of them is of flow {flow}"
        )


def _time(subject: Subject, series: Series) -> int:
    """Time one run, after a run that warms the caches; return the nanoseconds per packet."""
    source = subject.source
    packets = min(max(MIN_PACKETS, 4 * series.flows), MAX_PACKETS)
    source.send_to(subject.program)
    if not source.in_turn:
        source.set_flow_count(series.flows)
    # A floor needs no warm caches, and each run costs the kernel some 20 ms beside the measured time.
    if subject.floor is not None:
        source.run(packets // 2)
    if subject.read_counters is None:
        return source.run(packets).duration_ns
    before = subject.read_counters()
    time_ns = source.run(packets).duration_ns
    series.counters += subject.read_counters() - before
    return time_ns


def _check_counters(subject: Subject, series: Series) -> None:
    """Compare the counters of the timed runs with what they should be. BenchError: they differ."""
    if subject.read_counters is None:
        return
    seen, name = series.counters, _name(subject, series.flows)
    if seen.sent != seen.packets:
        raise BenchError(f"{name}: {seen.sent} of {seen.packets} packets ended as {subject.verdict}, all should")
    if seen.fast != (seen.packets if subject.fast else 0):
        expected = "all" if subject.fast else "none"
        raise BenchError(f"{name}: {seen.fast} of {seen.packets} packets took the fast path, {expected} should")
    ratio = _hit_ratio(seen)
    if subject.known and (ratio is None or ratio < MIN_HIT_RATIO):
        raise BenchError(f"{name}: {seen.misses} of {seen.lookups} look-ups found no flow; all flows should be known")


def _name(subject: Subject, flows: int) -> str:
    return f"{subject.row}, IPv{subject.source.family}, {flows} flows"


def _hit_ratio(counters: PacketCounters) -> float | None:
    return 1 - counters.misses / counters.lookups if counters.lookups else None


def rows_of(measured: Iterable[Series]) -> list[Row]:
    """Summarise series. Those with the same row, family and number of flows, from several processes, become one row."""
    merged: dict[tuple[str, int, int], Series] = {}
    for series in measured:
        key = (series.row, series.family, series.flows)
        total = merged.setdefault(key, Series(*key))
        total.gross += series.gross
        total.floor += series.floor
        total.counters += series.counters
    return [_summarise(series) for series in merged.values()]


def _quiet_rounds(series: Series) -> list[int]:
    """Return the rounds in which the floor took about as long as in its best one. In the others the machine was busy.

    The floor decides, never the program under test. For a floor its own time decides.
    """
    times = series.floor or series.gross
    return [number for number, ns in enumerate(times) if ns <= BUSY * min(times)]


def _summarise(series: Series) -> Row:
    kept = _quiet_rounds(series)
    gross = statistics.median(series.gross[number] for number in kept)
    floor = statistics.median(series.floor[number] for number in kept) if series.floor else 0
    counters = series.counters
    return Row(
        row=series.row,
        family=series.family,
        flows=series.flows,
        ns=gross,
        floor_ns=floor,
        net_ns=gross - floor,
        min=min(series.gross),
        max=max(series.gross),
        rounds=len(kept),
        left_out=len(series.gross) - len(kept),
        fast_share=counters.fast / counters.packets if counters.packets else None,
        hit_ratio=_hit_ratio(counters),
    )
