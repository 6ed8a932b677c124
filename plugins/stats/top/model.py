# SPDX-License-Identifier: Apache-2.0
"""Computes what `nfcore top` shows from two answers of the daemon: rates, shares, order. No terminal, no socket.

A rate is None while it is unknown: there is only one answer, the counter is new, or the daemon was restarted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OLD = 15.0
"""Age of the NIC's counters in seconds that is shown as a fault: they are read at least every 5 s."""
WAYS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "by server id": ("nfcore_server_id_packets_total", {"outcome": "by_id"}),
    "by source": ("nfcore_source_route_lookups_total", {"result": "hit"}),
    "by global table": ("nfcore_global_lru_hits_total", {}),
    "migrated": ("nfcore_udp_migrations_total", {}),
    "decapsulated": ("nfcore_decap_packets_total", {}),
    "told the MTU": ("nfcore_too_big_answers_total", {}),
}
"""Title → family and labels: what a balancer may do beside sending by mark, table and ring."""


@dataclass(frozen=True)
class Sample:
    """One answer to ``top``."""

    answer: Mapping[str, Any]
    values: Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]
    """Family → sorted labels → value."""

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> Sample:
        """Return the sample of an answer; values that are not finite numbers are left out."""
        values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for name, samples in answer["values"].items():
            family = values[name] = {}
            for labels, value in samples:
                if (number := _finite(value)) is not None:
                    family[tuple(sorted(labels.items()))] = number
        return cls(answer, values)

    def total(self, family: str, **labels: str) -> float | None:
        """Return the sum of the family's values that have these labels; None when there is none."""
        found = [value for key, value in self.values.get(family, {}).items() if labels.items() <= dict(key).items()]
        return sum(found) if found else None


def _finite(value: object) -> float | None:
    """Return the value as a finite number; None when it is none, since plugins may give any value."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Row:
    """A VIP or a real."""

    name: str
    packets: float | None
    """Per second."""
    bits: float | None
    """Per second."""
    share: float | None
    """Of the packets of all rows, 0 to 1."""
    total: int
    """Packets since the daemon started."""
    fast: float | None = None
    """Share of its packets that took the fast path; None without packets."""


@dataclass(frozen=True)
class Nic:
    """An interface, and the rules in its NIC."""

    name: str
    backends: Sequence[str]
    rules: int
    full: bool


@dataclass(frozen=True)
class Board:
    """All values that are shown. Rates are per second."""

    seconds: float | None
    """Time between the two answers."""
    up_seconds: float
    strategy: str | None
    packets: float | None
    bits: float | None
    new_flows: float | None
    fast_share: float | None
    """Of the packets sent to VIPs, 0 to 1."""
    rules: int
    max_rules: int
    """`[offload] max_rules`, or the size of the NICs' tables where that is known and smaller."""
    states: Mapping[str, int]
    """Flows by state of their rule."""
    offload: bool
    """Whether offloading is switched on."""
    marks: int | None
    lost: int | None
    """Reports lost since the daemon started."""
    not_offloaded: float | None
    """Reports that led to no rule."""
    drops: float | None
    errors: int
    """Faults of plugins since the daemon started."""
    nics: Sequence[Nic] = ()
    vips: Sequence[Row] = ()
    reals: Sequence[Row] = ()
    flows: Sequence[Mapping[str, Any]] = ()
    vip: str = ""
    """The VIP whose reals and flows these are; empty: of all. The counters of a real are always of all its VIPs."""
    troubles: Sequence[str] = ()
    """Faults, one sentence each."""
    functions: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Network function → what it did → packets."""
    ways: Mapping[str, float | None] = field(default_factory=dict)
    """Title of :data:`WAYS` → packets; only those of which the daemon has a metric."""

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def growth(before: float, after: float) -> float:
    """Return by how much a counter has grown; see :meth:`Rates.of`."""
    return max(0.0, after - before if after >= before else after)


class Rates:
    """Growth of counters per second, from one sample to the next."""

    def __init__(self, before: Sample | None, after: Sample) -> None:
        self.seconds: float | None = None
        self._before: Sample | None = None
        self._after = after
        if before is not None and before.answer["run"] == after.answer["run"]:
            seconds = after.answer["time"] - before.answer["time"]
            if seconds > 0:
                self.seconds, self._before = seconds, before

    def of(self, family: str, **labels: str) -> float | None:
        """Return the growth per second of all counters of a family that have these labels; None when there is none.

        A new counter began at 0. One that went back was restarted, or wrapped: its value is its growth since then.
        Never negative.
        """
        if self._before is None or not self.seconds or family not in self._after.values:
            return None
        then = self._before.values.get(family, {})
        grown = [
            growth(then.get(key, 0.0), value)
            for key, value in self._after.values[family].items()
            if labels.items() <= dict(key).items()
        ]
        return sum(grown) / self.seconds if grown or not labels else None

    def by(self, family: str, label: str, **labels: str) -> dict[str, float]:
        """Return the same per value of a label, of counters that are in both samples.

        A new counter need not begin at 0: that of a new VIP may go on from the counter of a removed one.
        """
        grown: dict[str, float] = {}
        if self._before is None or not self.seconds:
            return grown
        then = self._before.values.get(family, {})
        for key, value in self._after.values.get(family, {}).items():
            name = dict(key).get(label)
            if name is not None and key in then and labels.items() <= dict(key).items():
                grown[name] = grown.get(name, 0.0) + growth(then[key], value) / self.seconds
        return grown


def compare(before: Sample | None, after: Sample) -> Board:
    """Return the board of two samples; the first may be None, or of an earlier run of the daemon."""
    rates, answer = Rates(before, after), after.answer
    fast, slow = rates.of("nfcore_packets_total", path="fast"), rates.of("nfcore_packets_total", path="slow")
    sent = None if fast is None or slow is None else fast + slow
    rules = {
        name: int(after.total("nfcore_rules", interface=name, state="installed") or 0) for name in answer["interfaces"]
    }
    capacity = after.total("nfcore_rules_capacity")
    full = {name: bool(after.total("nfcore_nic_full", interface=name)) for name in answer["interfaces"]}
    marks, lost = after.total("nfcore_marks_in_use"), after.total("nfcore_reports_lost_total")
    vip, of_vip = str(answer.get("vip", "")), set(answer["reals"])
    reals = _rows(rates, after, "real")
    return Board(
        seconds=rates.seconds,
        up_seconds=answer["up_seconds"],
        strategy=answer["strategy"],
        packets=sent,
        bits=_bits(sum(byte_rates.values())) if (byte_rates := rates.by("nfcore_vip_bytes_total", "vip")) else None,
        new_flows=rates.of("nfcore_vip_new_flows_total"),
        fast_share=fast / sent if fast is not None and sent else None,
        rules=sum(rules.values()),
        max_rules=int(min(answer["max_rules"], capacity or answer["max_rules"])),
        states=answer["states"],
        offload=answer["offload"],
        marks=None if marks is None else int(marks),
        lost=None if lost is None else int(lost),
        not_offloaded=rates.of("nfcore_not_offloaded_total"),
        drops=rates.of("nfcore_drops_total"),
        errors=int(after.total("nfcore_hook_errors_total") or 0),
        nics=[Nic(name, backends, rules[name], full[name]) for name, backends in answer["interfaces"].items()],
        vips=_rows(rates, after, "vip"),
        reals=[row for row in reals if row.name in of_vip] if vip else reals,
        flows=answer["flows"],
        vip=vip,
        troubles=[*answer.get("troubles", ()), *_old_counters(after)],
        functions=_functions(rates, after),
        ways={title: rates.of(family, **labels) for title, (family, labels) in WAYS.items() if family in after.values},
    )


def _functions(rates: Rates, after: Sample) -> dict[str, dict[str, float | None]]:
    family = "nfcore_function_packets_total"
    found: dict[str, dict[str, float | None]] = {}
    for key in after.values.get(family, {}):
        labels = dict(key)
        function, outcome = labels.get("function", ""), labels.get("outcome", "")
        found.setdefault(function, {})[outcome] = rates.of(family, function=function, outcome=outcome)
    return found


def _old_counters(after: Sample) -> Iterator[str]:
    for key, age in after.values.get("nfcore_counters_age_seconds", {}).items():
        if age > OLD:
            yield f"{dict(key).get('interface')}: the NIC's counters were last read {age:,.0f} s ago"


def _bits(byte_rate: float | None) -> float | None:
    return None if byte_rate is None else 8 * byte_rate


def _rows(rates: Rates, after: Sample, label: str) -> list[Row]:
    """Return the rows of all VIPs, or of all reals."""
    packets = rates.by(f"nfcore_{label}_packets_total", label)
    byte_rates = rates.by(f"nfcore_{label}_bytes_total", label)
    by_path = f"nfcore_{label}_path_packets_total"
    fast, both_paths = rates.by(by_path, label, path="fast"), rates.by(by_path, label)
    totals: dict[str, float] = {}
    for key, value in after.values.get(f"nfcore_{label}_packets_total", {}).items():
        name = dict(key).get(label)
        if name is not None:
            totals[name] = totals.get(name, 0.0) + value
    all_packets = sum(packets.values())
    return [
        Row(
            name,
            packets.get(name),
            _bits(byte_rates.get(name)),
            packets[name] / all_packets if all_packets and name in packets else None,
            int(total),
            fast.get(name, 0.0) / both_paths[name] if both_paths.get(name) else None,
        )
        for name, total in totals.items()
    ]


ROW_KEYS = ("packets", "bits", "share", "fast", "total", "name")
FLOW_KEYS = ("rate", "packets", "bytes", "age", "mark")
"""Keys by which the daemon's ``flows`` sorts."""


def arrange(rows: Iterable[Row], key: str, text: str = "", *, backwards: bool = False) -> list[Row]:
    """Return the rows whose names contain every word of `text`: largest first (names: A first), equal ones by name."""
    words = text.split()
    chosen = sorted((row for row in rows if all(word in row.name for word in words)), key=lambda row: row.name)
    if key == "name":
        return chosen[::-1] if backwards else chosen
    known = [row for row in chosen if getattr(row, key) is not None]
    known.sort(key=lambda row: getattr(row, key), reverse=not backwards)
    return known + [row for row in chosen if getattr(row, key) is None]


@dataclass
class History:
    """The last shares of the fast path, for the sparkline."""

    length: int = 60
    shares: list[float | None] = field(default_factory=list)

    def add(self, share: float | None) -> None:
        """Append a share; None when it is unknown, or nothing was sent."""
        self.shares = [*self.shares, share][-self.length :]
