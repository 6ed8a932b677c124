# SPDX-License-Identifier: Apache-2.0
"""Metric families, the result of `collect_stats`, and what helps to make them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MetricKind(StrEnum):
    """A counter only grows while the daemon lives; a gauge rises and falls; a histogram counts observations by size."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Distribution:
    """The value of a histogram: the number of observations up to each bound, and the sum of all observations."""

    bounds: tuple[float, ...]
    """Upper bounds of the buckets, ascending; one more bucket has no bound."""
    cumulative: tuple[int, ...]
    """Observations up to each bound, and last all of them: one longer than `bounds`."""
    sum: float

    @property
    def count(self) -> int:
        """Number of all observations."""
        return self.cumulative[-1]


class Histogram:
    """Counts observations in buckets. One thread observes; any thread may read."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: upper bounds of the buckets, ascending; the bucket without a bound is added."""
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value that was observed `times` times."""
        self._sum += value * times
        self._counts[bisect_left(self.bounds, value)] += times

    def read(self) -> Distribution:
        """Give the observations until now."""
        return Distribution(self.bounds, tuple(accumulate(list(self._counts))), self._sum)


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a family, and its labels."""

    value: int | float | Distribution
    """A :class:`Distribution` in a histogram, a number elsewhere."""
    labels: Mapping[str, str] = field(default_factory=dict)


MAX_TEXT = 1024
"""Characters that a label's value or a help text may have: each scrape contains them."""


def is_text(value: object) -> bool:
    """Whether this is a text of at most MAX_TEXT characters that UTF-8 can encode (it cannot encode surrogates)."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class LabelSets:
    """The labels of many samples, for labels that stay while values change: they are checked and written only once."""

    __slots__ = ("__weakref__", "names", "rows")

    def __init__(self, names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """`names`: of the labels. `rows`: the values of the labels, a row per sample.

        ValueError when two rows are equal, or a row does not have a text for each name.
        """
        self.names = tuple(names)
        self.rows = tuple(tuple(row) for row in rows)
        wrong = [row for row in self.rows if len(row) != len(self.names)]
        if wrong:
            raise ValueError(f"{wrong[0]} are no values for the labels {', '.join(self.names)}")
        bad = next((value for row in self.rows for value in row if not is_text(value)), None)
        if bad is not None:
            raise ValueError(f"{bad!r:.60} is no value of a label; should be a text that UTF-8 can write, not too long")
        if len(set(self.rows)) < len(self.rows):
            raise ValueError(f"two samples have the same labels {', '.join(self.names)}")


@dataclass(frozen=True, eq=False)
class Column:
    """Samples whose labels stay: cheap also for thousands of VIPs or reals."""

    sets: LabelSets
    values: NDArray[Any]
    """A number per row of `sets`."""

    def samples(self) -> Iterator[Sample]:
        """Give the samples as objects."""
        for row, value in zip(self.sets.rows, self.values.tolist(), strict=True):
            yield Sample(value, dict(zip(self.sets.names, row, strict=True)))


@dataclass
class MetricFamily:
    """The samples of one metric. Names follow Prometheus: base units, counters end in ``_total``."""

    name: str
    kind: MetricKind
    help: str
    unit: str = ""
    """Base unit: packets, bytes, flows, seconds, …"""
    samples: list[Sample] = field(default_factory=list)
    labels: tuple[str, ...] | None = None
    """Names of the labels that each sample has. None: as the first sample has them."""
    columns: list[Column] = field(default_factory=list)
    """Further samples, in columns."""

    def add(self, value: float | Distribution, **labels: str) -> None:
        """Add one sample."""
        self.samples.append(Sample(value, labels))

    def everything(self) -> Iterator[Sample]:
        """Give all samples, those of columns as objects."""
        yield from self.samples
        for column in self.columns:
            yield from column.samples()


def counter(name: str, text: str, unit: str, *labels: str) -> MetricFamily:
    """Make a counter without samples; `labels` are the names of its labels."""
    return MetricFamily(name, MetricKind.COUNTER, text, unit, labels=labels)


def gauge(name: str, text: str, unit: str, *labels: str) -> MetricFamily:
    """Make a gauge without samples; `labels` are the names of its labels."""
    return MetricFamily(name, MetricKind.GAUGE, text, unit, labels=labels)


def histogram(name: str, text: str, unit: str, *labels: str) -> MetricFamily:
    """Make a histogram without samples; `labels` are the names of its labels."""
    return MetricFamily(name, MetricKind.HISTOGRAM, text, unit, labels=labels)


def function_packets(function: str, packets: Mapping[str, int]) -> MetricFamily:
    """Make the family by which network functions tell what they did with packets; packets: by outcome, in words."""
    text = "Packets that a network function handled, by what it did with them."
    family = counter("nfcore_function_packets_total", text, "packets", "function", "outcome")
    for outcome, count in packets.items():
        family.add(count, function=function, outcome=outcome)
    return family


def total(metrics: Iterable[Mapping[str, Any]], name: str, **labels: str) -> float:
    """Sum the samples of metric `name` that have these labels, in metrics as the daemon's ``stats`` gives them.

    Of a histogram, sum the numbers of observations.
    """
    samples = [sample for metric in metrics if metric["name"] == name for sample in metric["samples"]]
    chosen = [sample for sample in samples if labels.items() <= sample["labels"].items()]
    return float(sum(sample["value"] if "value" in sample else sample["count"] for sample in chosen))


class MonotonicDifference:
    """Keeps a counter from decreasing that is the difference of counters which are not read at the same instant.

    Read the base first, then the others; each of these must count a packet no later than the base does. Then the
    difference can only be too small, and grows to the right value. A difference that is too large would stay.

    When the base decreases, counting has begun again, and so does the counter.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def hold(self, key: str, base: NDArray[Any], *others: NDArray[Any]) -> NDArray[np.int64]:
        """Give `base` less `others`, or the largest result under `key` so far if that is more; all of one shape."""
        base = base.astype(np.int64)
        value = base - sum(other.astype(np.int64) for other in others)
        zeros = np.zeros_like(base)
        largest, before = self._last.get(key, (zeros, zeros))
        held: NDArray[np.int64] = np.where(base < before, np.maximum(value, 0), np.maximum(value, largest))
        self._last[key] = held, base
        return held

    def forget(self, key: str, rows: Sequence[int]) -> None:
        """Let the counters of these rows under `key` begin again from 0."""
        for values in self._last.get(key, ()):
            values[list(rows)] = 0
