# SPDX-License-Identifier: Apache-2.0
"""Typed metric families: what `collect_stats` gives."""

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
    """A counter only grows while the daemon lives; a gauge goes both ways; a histogram counts by size."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Distribution:
    """How many observations of a histogram were at most so large, and what all of them sum up to."""

    bounds: tuple[float, ...]
    """Upper bounds, ascending; one more bucket, without a bound, holds everything."""
    cumulative: tuple[int, ...]
    """Observations up to each bound, and then all of them: one longer than `bounds`."""
    sum: float

    @property
    def count(self) -> int:
        """All observations."""
        return self.cumulative[-1]


class Histogram:
    """Observations sorted into buckets. One thread observes; any thread may read."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Make one without observations; `bounds` ascend, the bucket beyond the last comes by itself."""
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value that was observed `times` times."""
        self._sum += value * times
        self._counts[bisect_left(self.bounds, value)] += times

    def read(self) -> Distribution:
        """Give what was observed so far."""
        return Distribution(self.bounds, tuple(accumulate(list(self._counts))), self._sum)


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure and the labels that tell it from its siblings."""

    value: int | float | Distribution
    """A :class:`Distribution` in a histogram, a number elsewhere."""
    labels: Mapping[str, str] = field(default_factory=dict)


MOST_TEXT = 1024
"""Characters of a label's value, or of a help text: every scrape has them."""


def is_text(value: object) -> bool:
    """Whether this is a text of MOST_TEXT characters at most that UTF-8 can write, which lone surrogates are not."""
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class LabelSets:
    """The labels of many samples, which stay while their values change: checked, and written down, only once."""

    __slots__ = ("__weakref__", "names", "rows")

    def __init__(self, names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Give each sample of a column the labels `names`, with the values of its row.

        ValueError: two rows are alike, or a row has other than a text for each name.
        """
        self.names = tuple(names)
        self.rows = tuple(tuple(row) for row in rows)
        wrong = [row for row in self.rows if len(row) != len(self.names)]
        if wrong:
            raise ValueError(f"{wrong[0]} are no values for the labels {', '.join(self.names)}")
        strange = next((value for row in self.rows for value in row if not is_text(value)), None)
        if strange is not None:
            raise ValueError(
                f"{strange!r:.60} is no value of a label; should be a text that UTF-8 can write, not too long"
            )
        if len(set(self.rows)) < len(self.rows):
            raise ValueError(f"two samples have the same labels {', '.join(self.names)}")


@dataclass(frozen=True, eq=False)
class Column:
    """Samples with labels that stay: what thousands of VIPs or reals cost next to nothing with."""

    sets: LabelSets
    values: NDArray[Any]
    """A number per row of `sets`."""

    def samples(self) -> Iterator[Sample]:
        """Give the samples as objects."""
        for row, value in zip(self.sets.rows, self.values.tolist(), strict=True):
            yield Sample(value, dict(zip(self.sets.names, row, strict=True)))


@dataclass
class MetricFamily:
    """Figures of one meaning. Names follow Prometheus: base units, counters end in ``_total``."""

    name: str
    kind: MetricKind
    help: str
    unit: str = ""
    """Base unit: packets, bytes, flows, seconds, …"""
    samples: list[Sample] = field(default_factory=list)
    labels: tuple[str, ...] | None = None
    """Names of the labels that every sample has. None: those of the first sample."""
    columns: list[Column] = field(default_factory=list)
    """More samples."""

    def add(self, value: float | Distribution, **labels: str) -> None:
        """Add one figure."""
        self.samples.append(Sample(value, labels))

    def everything(self) -> Iterator[Sample]:
        """All samples, those of columns as objects."""
        yield from self.samples
        for column in self.columns:
            yield from column.samples()


def counter(name: str, text: str, unit: str, *labels: str) -> MetricFamily:
    """Make a counter without samples; its samples have these labels."""
    return MetricFamily(name, MetricKind.COUNTER, text, unit, labels=labels)


def gauge(name: str, text: str, unit: str, *labels: str) -> MetricFamily:
    """Make a gauge without samples; its samples have these labels."""
    return MetricFamily(name, MetricKind.GAUGE, text, unit, labels=labels)


def histogram(name: str, text: str, unit: str, *labels: str) -> MetricFamily:
    """Make a histogram without samples; its samples have these labels."""
    return MetricFamily(name, MetricKind.HISTOGRAM, text, unit, labels=labels)


def total(metrics: Iterable[Mapping[str, Any]], name: str, **labels: str) -> float:
    """Sum the samples of one name that have these labels, of metrics as the daemon's ``stats`` gives them.

    Of a histogram, the observations.
    """
    samples = [sample for metric in metrics if metric["name"] == name for sample in metric["samples"]]
    chosen = [sample for sample in samples if labels.items() <= sample["labels"].items()]
    return float(sum(sample["value"] if "value" in sample else sample["count"] for sample in chosen))


class Ratchet:
    """Keeps a counter from going back that is the difference of others, which are not read at one instant.

    What was too much once stays so: read the base first and the others after it, of which none may count later than
    the base does. Then a difference is too small, if anything, and grows to what it should be.

    When what it is derived from goes back, counting has begun anew, and so does the counter.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def hold(self, key: str, base: NDArray[Any], *others: NDArray[Any]) -> NDArray[np.int64]:
        """Give `base` without `others`, or the largest so far under `key` where that is more; all of one shape."""
        base = base.astype(np.int64)
        value = base - sum(other.astype(np.int64) for other in others)
        nothing = np.zeros_like(base)
        largest, before = self._last.get(key, (nothing, nothing))
        held: NDArray[np.int64] = np.where(base < before, np.maximum(value, 0), np.maximum(value, largest))
        self._last[key] = held, base
        return held

    def forget(self, key: str, rows: Sequence[int]) -> None:
        """Let the counters of these rows begin anew, whatever the largest under `key` was."""
        for kept in self._last.get(key, ()):
            kept[list(rows)] = 0
