# SPDX-License-Identifier: Apache-2.0
"""The registry of metric families: checks them, and merges the families of several plugins that have one name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from nfcore.api.json_rows import JsonRows
from nfcore.api.metrics import Distribution, MetricFamily, MetricKind, Sample, is_text

_NAME = re.compile(r"nfcore_[a-z][a-z0-9_]*")
_LABEL = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = {"le", "quantile", "job", "instance"}
"""Labels that Prometheus uses itself."""
_LARGEST = 2**64
"""Largest whole number: counters of kernel and NICs have 64 bits."""
_SUFFIXES = ("_bucket", "_count", "_sum")
"""Suffixes that the exposition adds to the name of a histogram."""


class Registry:
    """Families by name. Those of one name are merged when they agree in kind, unit and labels."""

    def __init__(self) -> None:
        self._families: dict[str, MetricFamily] = {}

    def __len__(self) -> int:
        return len(self._families)

    def __iter__(self) -> Iterator[MetricFamily]:
        """Iterate over the families in the order of their names."""
        return (family for _, family in sorted(self._families.items()))

    def add(self, families: Iterable[MetricFamily]) -> None:
        """Add a plugin's families: all of them, or none when one breaks a rule.

        ValueError names the family and the rule.
        """
        merged: dict[str, MetricFamily] = {}
        for family in families:
            _check_texts(family)
            known = merged.get(family.name) or self._families.get(family.name)
            merged[family.name] = _checked(family) if known is None else _merge(known, family)
        self._families |= merged

    def of(self, names: Iterable[str]) -> list[MetricFamily]:
        """Return the families of these names, as far as they exist."""
        return [self._families[name] for name in names if name in self._families]

    def as_rows(self) -> dict[str, Any]:
        """Return everything as JSON values, families by name. They are made lazily: add nothing until they are read."""
        return {"metrics": JsonRows(lambda: map(_as_row, self))}


def _as_row(family: MetricFamily) -> dict[str, Any]:
    return {
        "name": family.name,
        "type": str(family.kind),
        "unit": family.unit,
        "labels": list(family.labels or ()),
        "help": family.help,
        "samples": JsonRows(lambda: ({"labels": dict(each.labels)} | _value(each) for each in family.everything())),
    }


def _value(sample: Sample) -> dict[str, Any]:
    value = sample.value
    if not isinstance(value, Distribution):
        return {"value": value}
    buckets = [[bound, number] for bound, number in zip(value.bounds, value.cumulative, strict=False)]
    return {"buckets": buckets, "sum": value.sum, "count": value.count}


def _merge(known: MetricFamily, family: MetricFamily) -> MetricFamily:
    if (known.kind, known.unit) != (family.kind, family.unit):
        raise ValueError(
            f"{family.name} is a {family.kind} of {family.unit or 'no unit'}; "
            f"elsewhere it is a {known.kind} of {known.unit or 'no unit'}"
        )
    if family.labels is not None and known.labels is not None and set(family.labels) != set(known.labels):
        raise ValueError(
            f"{family.name} has the labels {_listed(family.labels)}; elsewhere it has {_listed(known.labels)}"
        )
    both = replace(known, samples=[*known.samples, *family.samples], columns=[*known.columns, *family.columns])
    return _checked(both)


def _checked(family: MetricFamily) -> MetricFamily:
    """Return a copy of the family with `labels` filled in; ValueError when its samples do not fit together."""
    labels, name = family.labels, family.name
    if labels is None:
        labels = next((each.sets.names for each in family.columns), None)
    if labels is None and family.samples:
        labels = tuple(family.samples[0].labels)
    wrong = [label for label in labels or () if not _LABEL.fullmatch(label) or label in _RESERVED]
    if wrong:
        raise ValueError(f"{name}: {wrong[0]!r} is not a valid label name; should be like 'interface'")
    expected = set(labels or ())
    for names in [*(sample.labels.keys() for sample in family.samples), *(each.sets.names for each in family.columns)]:
        if set(names) != expected:
            raise ValueError(f"{name}: a sample has the labels {_listed(names)}; should be {_listed(expected)}")
    if (invalid := _invalid_value(family)) is not None:
        raise ValueError(f"{name}: {invalid!r:.60} is not a valid value of a {family.kind}")
    if _has_duplicates(family, labels or ()):
        raise ValueError(f"{name}: two samples have the same labels")
    return replace(family, samples=list(family.samples), columns=list(family.columns), labels=labels)


def _invalid_value(family: MetricFamily) -> object | None:
    is_valid = _VALID[family.kind]
    for column in family.columns:
        are_numbers = isinstance(column.values, np.ndarray) and column.values.dtype.kind in "iuf"
        if family.kind is MetricKind.HISTOGRAM or not are_numbers or column.values.shape != (len(column.sets.rows),):
            return column.values
        if family.kind is MetricKind.COUNTER and not (column.values >= 0).all():
            return float(column.values[~(column.values >= 0)][0])
    return next((each.value for each in family.samples if not is_valid(each.value)), None)


def _is_count(value: object) -> bool:
    return _is_number(value) and value >= 0  # type: ignore[operator]


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= _LARGEST)


def _is_distribution(value: object) -> bool:
    """Whether this is a distribution whose numbers are consistent."""
    if not isinstance(value, Distribution):
        return False
    counts = value.cumulative
    if len(counts) != len(value.bounds) + 1 or not all(map(_is_number, (*counts, *value.bounds, value.sum))):
        return False
    return list(counts) == sorted(counts) and counts[0] >= 0 and math.isfinite(value.sum)


def _has_duplicates(family: MetricFamily, labels: tuple[str, ...]) -> bool:
    """Whether two samples have the same labels. LabelSets has checked those within a column."""
    if len(family.columns) == 1 and not family.samples:
        return False
    seen = [tuple(sample.labels[label] for label in labels) for sample in family.samples]
    for column in family.columns:
        order = [column.sets.names.index(label) for label in labels]
        seen += [tuple(row[index] for index in order) for row in column.sets.rows]
    return len(set(seen)) < len(seen)


_VALID = {MetricKind.COUNTER: _is_count, MetricKind.GAUGE: _is_number, MetricKind.HISTOGRAM: _is_distribution}


def _check_texts(family: MetricFamily) -> None:
    """ValueError for a name, help, unit or label value that is not allowed."""
    name = family.name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r:.60} is not a valid metric name; should be like nfcore_packets_total")
    if (family.kind is MetricKind.COUNTER) != name.endswith("_total"):
        raise ValueError(f"{name}: counters, and only they, end in _total")
    if name.endswith(_SUFFIXES):
        raise ValueError(f"{name}: the suffixes {', '.join(_SUFFIXES)} are reserved for histograms")
    texts = [family.help, family.unit, *(value for sample in family.samples for value in sample.labels.values())]
    invalid = next((text for text in texts if not is_text(text)), None)
    if invalid is not None:
        reason = "is not a valid help, unit or label value; should be a text, not too long"
        raise ValueError(f"{name}: {invalid!r:.60} {reason}")


def _listed(labels: Iterable[str]) -> str:
    return ", ".join(sorted(labels)) or "none"
