# SPDX-License-Identifier: Apache-2.0
"""Finds installed plugins by their entry points, without loading them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from ..api.hookspecs import PROJECT

ENTRY_POINT_GROUP = "nfcore.plugins"


@dataclass(frozen=True)
class PluginInfo:
    """What is known of an installed plugin without loading it."""

    name: str
    version: str
    distribution: str
    source: str
    """Module and attribute of the entry point."""


def installed() -> dict[str, EntryPoint]:
    """All installed plugins, by name. Of several with the same name, that of nfcore's own distribution wins."""
    points = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (is_builtin(point), point.name))
    return dict(sorted({point.name: point for point in points}.items()))


def competing_distributions(name: str) -> list[str]:
    """Distributions that have a plugin of this name, if there are several; else an empty list."""
    names = [_distribution(point) for point in entry_points(group=ENTRY_POINT_GROUP, name=name)]
    return sorted(names) if len(names) > 1 else []


def describe(name: str) -> PluginInfo:
    """Describe the installed plugin `name`."""
    point = installed()[name]
    return PluginInfo(name, point.dist.version if point.dist else "?", _distribution(point), point.value)


def is_builtin(point: EntryPoint) -> bool:
    """Whether a plugin is in nfcore's own distribution."""
    return _distribution(point) == PROJECT


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"
