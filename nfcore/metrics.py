# SPDX-License-Identifier: Apache-2.0
"""Typed metric families: what `collect_stats` gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class MetricKind(StrEnum):
    """A counter only grows while the daemon lives; a gauge goes both ways."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True)
class Sample:
    """One figure and the labels that tell it from its siblings."""

    value: int | float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass
class MetricFamily:
    """Figures of one meaning. Names follow Prometheus: base units, counters end in ``_total``."""

    name: str
    kind: MetricKind
    help: str
    unit: str = ""
    """Base unit: packets, bytes, flows, seconds, …"""
    samples: list[Sample] = field(default_factory=list)

    def add(self, value: float, **labels: str) -> None:
        """Add one figure."""
        self.samples.append(Sample(value, labels))


def total(metrics: Iterable[Mapping[str, Any]], name: str, **labels: str) -> float:
    """Sum the samples of one name that have these labels, of metrics as the daemon's ``stats`` gives them."""
    samples = [sample for metric in metrics if metric["name"] == name for sample in metric["samples"]]
    return float(sum(sample["value"] for sample in samples if labels.items() <= sample["labels"].items()))
