# SPDX-License-Identifier: Apache-2.0
"""The results of a run of `nfcore bench`: plain values, and one JSON object of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .datapath import Row


@dataclass(frozen=True)
class Target:
    """A measured value and its limit."""

    name: str
    value: float
    limit: float
    unit: str
    at_least: bool = False
    """Whether the value should be at least the limit; otherwise at most."""
    profile: str = ""
    """When the target is not met: where the time goes."""
    about: tuple[str, int, int] | None = None
    """Row, family and flows of the datapath that can be profiled."""

    @property
    def met(self) -> bool:
        """Whether the value is within the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def limit_text(self) -> str:
        """The limit as text, such as ``≤ 16 ns``."""
        return f"{'≥' if self.at_least else '≤'} {self.limit:,g} {self.unit}".strip()


@dataclass(frozen=True)
class CoreRow:
    """One subject on several cores at once."""

    row: str
    family: int
    flows: int
    cores: int
    ns: float
    """Gross nanoseconds per packet on one core, median over cores and rounds."""
    mpps: float
    """Million packets a second, all cores together."""


@dataclass(frozen=True)
class Gain:
    """How many percent more packets a second a fast row takes than a slow one."""

    row: str
    base: str
    family: int
    flows: int
    cores: int
    gross_percent: float
    """From gross times, which include the wrapper: too low."""
    net_percent: float | None
    """From net times, which include no driver: too high. None where no floor was measured."""
    published_percent: float | None = None
    """What the talk (docs/benchmark.md) measured with as many queues and flows."""


@dataclass(frozen=True)
class Figure:
    """One result of the control plane."""

    name: str
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True)
class RuleRate:
    """Rules a second of one backend and operation."""

    backend: str
    op: str
    """``insert``, ``delete`` or ``dump``."""
    rules: int
    per_s: float
    ratio_to_tc_batch: float | None
    """Ratio to the rules a second that `tc -b` adds on the same machine; None for a backend with other rules."""


@dataclass(frozen=True)
class LiveRow:
    """Packets through network namespaces: one core sends, classifies, balances and receives."""

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
    """Share of the sent frames."""
    marked_share: float
    """Share of the sent frames that the emulated NIC marked."""


@dataclass(frozen=True)
class Skipped:
    """A part that could not be measured."""

    part: str
    why: str


@dataclass
class Results:
    """All results of one run."""

    machine: dict[str, Any]
    size: str
    nf: str
    datapath: list[Row] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)
    cores: list[CoreRow] = field(default_factory=list)
    live: list[LiveRow] = field(default_factory=list)
    control: list[Figure] = field(default_factory=list)
    rules: list[RuleRate] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """How long the run took."""
    step_seconds: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        values = asdict(self)
        values["targets"] = [asdict(target) | {"met": target.met} for target in self.targets]
        return values
