# SPDX-License-Identifier: Apache-2.0
"""Writes the registry in Prometheus' text format, version 0.0.4.

The labels of columns are formatted once and kept, so that thousands of samples cost no more than their numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

from nfcore.api.metrics import Column, Distribution, LabelSets, MetricFamily

from ..registry import Registry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """Writes registries as text. Used by one thread."""

    def __init__(self) -> None:
        self._labels: WeakKeyDictionary[LabelSets, list[str]] = WeakKeyDictionary()

    def write(self, registry: Registry) -> bytes:
        """Return all families, in the order of their names."""
        return "".join(f"{line}\n" for family in registry for line in self._lines(family)).encode()

    def _lines(self, family: MetricFamily) -> Iterator[str]:
        text = family.help.replace("\\", r"\\").replace("\n", r"\n")
        yield f"# HELP {family.name} {text}"
        yield f"# TYPE {family.name} {family.kind}"
        for sample in family.samples:
            if isinstance(sample.value, Distribution):
                yield from _histogram(family.name, sample.value, sample.labels)
            else:
                yield f"{family.name}{_format_labels(sample.labels)} {_format(sample.value)}"
        for column in family.columns:
            yield from self._column(family.name, column)

    def _column(self, name: str, column: Column) -> Iterator[str]:
        labels = self._labels.get(column.sets)
        if labels is None:
            names = column.sets.names
            labels = [_format_labels(dict(zip(names, row, strict=True))) for row in column.sets.rows]
            self._labels[column.sets] = labels
        values = map(_format if column.values.dtype.kind == "f" else str, column.values.tolist())
        return (f"{name}{labelled} {value}" for labelled, value in zip(labels, values, strict=True))


def _histogram(name: str, value: Distribution, labels: Mapping[str, str]) -> Iterator[str]:
    for bound, number in zip((*value.bounds, math.inf), value.cumulative, strict=True):
        yield f"{name}_bucket{_format_labels({**labels, 'le': _format(bound)})} {number}"
    yield f"{name}_sum{_format_labels(labels)} {_format(value.sum)}"
    yield f"{name}_count{_format_labels(labels)} {value.count}"


def _format_labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(str(value))}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _format(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'+' if value > 0 else '-'}Inf"
    return repr(float(value)) if isinstance(value, float) else str(int(value))
