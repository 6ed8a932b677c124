# SPDX-License-Identifier: Apache-2.0
"""The registry in Prometheus' text format, version 0.0.4.

Labels of columns are written down once and kept: thousands of samples cost what printing their numbers costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

from nfcore.api.metrics import Column, Distribution, LabelSets, MetricFamily

from ..registry import Registry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """Writes registries, one after the other. Used by one thread."""

    def __init__(self) -> None:
        self._written: WeakKeyDictionary[LabelSets, list[str]] = WeakKeyDictionary()

    def write(self, registry: Registry) -> bytes:
        """Give all families by name."""
        return "".join(f"{line}\n" for family in registry for line in self._lines(family)).encode()

    def _lines(self, family: MetricFamily) -> Iterator[str]:
        text = family.help.replace("\\", r"\\").replace("\n", r"\n")
        yield f"# HELP {family.name} {text}"
        yield f"# TYPE {family.name} {family.kind}"
        for sample in family.samples:
            if isinstance(sample.value, Distribution):
                yield from _histogram(family.name, sample.value, sample.labels)
            else:
                yield f"{family.name}{_labels(sample.labels)} {_number(sample.value)}"
        for column in family.columns:
            yield from self._column(family.name, column)

    def _column(self, name: str, column: Column) -> Iterator[str]:
        written = self._written.get(column.sets)
        if written is None:
            names = column.sets.names
            written = [_labels(dict(zip(names, row, strict=True))) for row in column.sets.rows]
            self._written[column.sets] = written
        write = _number if column.values.dtype.kind == "f" else str
        values = map(write, column.values.tolist())
        return (f"{name}{labels} {value}" for labels, value in zip(written, values, strict=True))


def _histogram(name: str, value: Distribution, labels: Mapping[str, str]) -> Iterator[str]:
    for bound, number in zip((*value.bounds, math.inf), value.cumulative, strict=True):
        yield f"{name}_bucket{_labels({**labels, 'le': _number(bound)})} {number}"
    yield f"{name}_sum{_labels(labels)} {_number(value.sum)}"
    yield f"{name}_count{_labels(labels)} {value.count}"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'+' if value > 0 else '-'}Inf"
    return repr(float(value)) if isinstance(value, float) else str(int(value))
