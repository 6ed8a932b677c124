# SPDX-License-Identifier: Apache-2.0
"""The measurement: programs and their floors in turn, round after round, each timed run proven by counters."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NfcoreError
from ..kernel import Program, XdpAction
from .packet_source import FlowSource, SameFrame
from .processes import Say
from .traffic import Family, unwrap

LEAST_PACKETS = 200_000
"""Of a timed run: 10 ms even of a fast program."""
MOST_PACKETS = 1_000_000
SAMPLES = 256
HIT_RATIO = 0.999
BUSY = 1.1


class BenchError(NfcoreError):
    """The packets of a measurement did not take the way that is to be measured."""


@dataclass(frozen=True)
class Tally:
    """Counters of a program, of all its packets so far."""

    packets: int = 0
    sent: int = 0
    fast: int = 0
    lookups: int = 0
    """In the connection table."""
    misses: int = 0

    def __sub__(self, other: Tally) -> Tally:
        return Tally(*(now - then for now, then in zip(_values(self), _values(other), strict=True)))

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(now + then for now, then in zip(_values(self), _values(other), strict=True)))


def _values(tally: Tally) -> list[int]:
    return list(asdict(tally).values())


@dataclass(frozen=True)
class Subject:
    """One program with the packets that it gets, and what must become of them."""

    row: str
    """Name in the result, such as ``dest-id``."""
    source: FlowSource | SameFrame
    program: Program
    floor: str | None
    """Row of the subject, earlier in the list, whose program gets the like packets and does only what cannot be
    avoided; None for such a program itself."""
    flows: tuple[int, ...]
    """Numbers of flows to measure with. Of a source in turn: how many new flows, one packet each."""
    reals: Callable[[NDArray[np.uint32]], NDArray[np.uint8]] | None = None
    """Outer destination that each flow must get, shape (n, 16); None for a program that encapsulates nothing."""
    tally: Callable[[], Tally] | None = None
    """None for a program that counts nothing."""
    fast: bool = False
    """Whether every packet must take the fast path, or none."""
    known: bool = False
    """Whether every packet's flow must be in the connection table."""
    spread: bool = False
    """Whether it is worth measuring on several cores at once; its source picks flows at random."""


@dataclass
class Series:
    """Timed runs of one subject with one number of flows."""

    row: str
    family: Family
    flows: int
    gross: list[int] = field(default_factory=list)
    """Nanoseconds per packet of each round."""
    floor: list[int] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    counted: bool = False


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
    """Of the gross figure in all rounds, as is `max`."""
    max: float
    rounds: int
    """Those that count."""
    left_out: int
    """Rounds in which the machine was busy: the floor took more than :data:`BUSY` times its best."""
    fast_share: float | None
    """Packets sent by their mark, of those timed; None for a program that does not count."""
    hit_ratio: float | None
    """Look-ups in the connection table that found the flow; None when there were none."""


def measure(subjects: Sequence[Subject], rounds: int, say: Say = lambda words: None) -> list[Series]:
    """Prove each subject on single packets, then time all of them `rounds` times, fewest flows first.

    On the CPU of the caller, which should stay there. BenchError names the subject whose packets went astray.
    """
    measured: list[Series] = []
    for flows in sorted({number for subject in subjects for number in subject.flows}):
        present = [(each, Series(each.row, each.source.family, flows)) for each in subjects if flows in each.flows]
        say(f"IPv{present[0][0].source.family}, {flows:,} flows")
        for subject, _ in present:
            prove(subject, flows)
        for _ in range(rounds):
            took: dict[str, int] = {}
            for subject, series in present:
                took[subject.row] = _time(subject, series)
                series.gross.append(took[subject.row])
                if subject.floor is not None:
                    series.floor.append(took[subject.floor])
        for subject, series in present:
            _judge(subject, series)
            measured.append(series)
    return measured


def prove(subject: Subject, flows: int, samples: int = SAMPLES) -> None:
    """Send `samples` packets, one by one, and look at each frame: verdict, flow and real. BenchError."""
    subject.source.aim(subject.program)
    if not subject.source.in_turn:
        subject.source.among(flows)
    numbers, destinations = [], []
    for _ in range(samples):
        run = subject.source.run(1)
        if run.verdict is not XdpAction.TX:
            raise BenchError(f"{_name(subject, flows)}: a packet ended as {run.verdict}, all should as XDP_TX")
        if subject.reals is not None:
            found = unwrap(run.output, subject.source.family)
            if found is None:
                raise BenchError(f"{_name(subject, flows)}: a packet left without the outer header that it should have")
            numbers.append(found[0])
            destinations.append(found[1])
    if subject.reals is None:
        return
    sent_to = np.frombuffer(b"".join(destinations), np.uint8).reshape(-1, 16)
    astray = (sent_to != subject.reals(np.array(numbers, dtype=np.uint32))).any(axis=1)
    if astray.any():
        flow = numbers[int(np.flatnonzero(astray)[0])]
        raise BenchError(
            f"{_name(subject, flows)}: {astray.sum()} of {samples} packets, flow {flow}'s among them, "
            "went to another real than their own"
        )


def _time(subject: Subject, series: Series) -> int:
    """Give the nanoseconds per packet of one run, after another since the last program has just used the caches."""
    source = subject.source
    packets = min(max(LEAST_PACKETS, 4 * series.flows), MOST_PACKETS)
    source.aim(subject.program)
    if not source.in_turn:
        source.among(series.flows)
    # A floor has nothing to warm. A run with repetitions takes the kernel some 20 ms beside what it measures.
    if subject.floor is not None:
        source.run(packets // 2)
    before = subject.tally() if subject.tally else None
    took = source.run(packets).duration_ns
    if before is not None and subject.tally:
        series.tally += subject.tally() - before
        series.counted = True
    return took


def _judge(subject: Subject, series: Series) -> None:
    """Compare what was counted while the time was taken with what should have been."""
    if not series.counted:
        return
    seen, name = series.tally, _name(subject, series.flows)
    if seen.sent != seen.packets:
        raise BenchError(f"{name}: {seen.sent} of {seen.packets} packets were sent, all should be")
    if seen.fast != (seen.packets if subject.fast else 0):
        wanted = "all" if subject.fast else "none"
        raise BenchError(f"{name}: {seen.fast} of {seen.packets} packets took the fast path, {wanted} should")
    ratio = _hit_ratio(seen)
    if subject.known and (ratio is None or ratio < HIT_RATIO):
        raise BenchError(f"{name}: {seen.misses} of {seen.lookups} look-ups found no flow; all flows should be known")


def _name(subject: Subject, flows: int) -> str:
    return f"{subject.row}, IPv{subject.source.family}, {flows} flows"


def _hit_ratio(tally: Tally) -> float | None:
    return 1 - tally.misses / tally.lookups if tally.lookups else None


def rows_of(measured: Iterable[Series]) -> list[Row]:
    """Summarise series; those of one row, family and number of flows, such as of several processes, become one."""
    merged: dict[tuple[str, int, int], Series] = {}
    for series in measured:
        place = (series.row, series.family, series.flows)
        into = merged.setdefault(place, Series(series.row, series.family, series.flows, counted=series.counted))
        into.gross += series.gross
        into.floor += series.floor
        into.tally += series.tally
    return [_summarise(series) for series in merged.values()]


def _quiet_rounds(series: Series) -> list[int]:
    """Rounds in which the floor took about as long as in its best one. In the others the machine itself was slower.

    The floor decides, never the program under test; for a floor it is its own time.
    """
    guide = series.floor or series.gross
    return [number for number, ns in enumerate(guide) if ns <= BUSY * min(guide)]


def _summarise(series: Series) -> Row:
    kept = _quiet_rounds(series)
    gross = statistics.median(series.gross[number] for number in kept)
    floor = statistics.median(series.floor[number] for number in kept) if series.floor else 0
    tally = series.tally
    shares: dict[str, Any] = {
        "fast_share": tally.fast / tally.packets if series.counted and tally.packets else None,
        "hit_ratio": _hit_ratio(tally),
    }
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
        **shares,
    )
