# SPDX-License-Identifier: Apache-2.0
"""A typed registry of metric families: one family per name, whoever adds to it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from nfcore.metrics import MetricFamily, MetricKind

_NAME = re.compile(r"nfcore_[a-z][a-z0-9_]*")


class Registry:
    """Families by name. Those of one name are merged when they agree in kind and unit."""

    def __init__(self) -> None:
        self._families: dict[str, MetricFamily] = {}

    def __len__(self) -> int:
        return len(self._families)

    def add(self, families: Iterable[MetricFamily], plugin: str) -> None:
        """Add a plugin's families. ValueError names the plugin and the family that break a rule."""
        for family in families:
            self._check(family, plugin)
            known = self._families.get(family.name)
            if known is None:
                self._families[family.name] = MetricFamily(
                    family.name, family.kind, family.help, family.unit, list(family.samples)
                )
                continue
            if (known.kind, known.unit) != (family.kind, family.unit):
                raise ValueError(
                    f"plugin {plugin}: {family.name} is a {family.kind} of {family.unit or 'no unit'}; "
                    f"elsewhere it is a {known.kind} of {known.unit or 'no unit'}"
                )
            known.samples.extend(family.samples)

    def of(self, names: Iterable[str]) -> list[MetricFamily]:
        """Give the families of these names, those that there are."""
        return [self._families[name] for name in names if name in self._families]

    def as_json(self) -> dict[str, Any]:
        """Give everything as JSON values, families by name."""
        return {
            "metrics": [
                {
                    "name": family.name,
                    "type": str(family.kind),
                    "unit": family.unit,
                    "help": family.help,
                    "samples": [{"labels": dict(sample.labels), "value": sample.value} for sample in family.samples],
                }
                for _, family in sorted(self._families.items())
            ]
        }

    @staticmethod
    def _check(family: MetricFamily, plugin: str) -> None:
        if not _NAME.fullmatch(family.name):
            raise ValueError(f"plugin {plugin}: {family.name!r} is no metric name; should be like nfcore_packets_total")
        if (family.kind is MetricKind.COUNTER) != family.name.endswith("_total"):
            raise ValueError(f"plugin {plugin}: {family.name}: counters, and only they, end in _total")
