# SPDX-License-Identifier: Apache-2.0
"""What a run of `nfcore bench` found: plain values, and the one JSON object of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .datapath import Row


@dataclass(frozen=True)
class Target:
    """A figure beside what it should be at most, or at least."""

    name: str
    value: float
    limit: float
    unit: str
    at_least: bool = False
    profile: str = ""
    """Of a figure that is not as it should be: where the time goes."""
    about: tuple[str, int, int] | None = None
    """Row, family and flows of the datapath that a profiler may look at."""

    @property
    def met(self) -> bool:
        """Whether the figure is as it should be."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def wanted(self) -> str:
        """Say what it should be."""
        return f"{'≥' if self.at_least else '≤'} {self.limit:,g} {self.unit}".strip()


@dataclass(frozen=True)
class CoreRow:
    """One subject on several cores at once."""

    row: str
    family: int
    flows: int
    cores: int
    ns: float
    """Of one packet on one core, median over cores and rounds; with the wrapper, as `ns` of the datapath."""
    mpps: float
    """Million packets a second of all cores together."""


@dataclass(frozen=True)
class Gain:
    """Packets a second of a fast row against a slow one, in percent more."""

    row: str
    base: str
    family: int
    flows: int
    cores: int
    gross_percent: float
    """Of the figures as measured, wrapper included: too little."""
    net_percent: float | None
    """Of what is above the floors: too much, since no driver is in it. None where no floor was measured."""
    published_percent: float | None = None
    """What the talk has for so many queues and flows."""


@dataclass(frozen=True)
class Figure:
    """One figure of the control plane."""

    name: str
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True)
class RuleRate:
    """Rules a second of one backend."""

    backend: str
    op: str
    """``insert``, ``delete`` or ``dump``."""
    rules: int
    per_s: float
    ratio_to_tc_batch: float | None
    """To rules a second that `tc -b` adds on the same machine; None where that is no yardstick."""


@dataclass(frozen=True)
class LiveRow:
    """Packets through namespaces: one core sends, classifies, balances and takes back."""

    path: str
    """``unmarked`` or ``marked``."""
    family: int
    flows: int
    frame_bytes: int
    seconds: float
    sent: int
    pps: float
    received: int
    """Encapsulated frames that came back."""
    loss: float
    """Share of those sent."""
    marked_share: float
    """Frames that the emulated NIC put a mark on, of those sent."""


@dataclass(frozen=True)
class Skipped:
    """What could not be measured."""

    part: str
    why: str


@dataclass
class Results:
    """Everything of one run."""

    machine: dict[str, Any]
    size: str
    nf: str
    datapath: list[Row] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)
    cores: list[CoreRow] = field(default_factory=list)
    live: list[LiveRow] = field(default_factory=list)
    control: list[Figure] = field(default_factory=list)
    rules: list[RuleRate] = field(default_factory=list)
    bars: list[Target] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """How long the run took."""
    step_seconds: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Give the object that `--json` prints."""
        given = asdict(self)
        given["bars"] = [asdict(bar) | {"met": bar.met} for bar in self.bars]
        return given
