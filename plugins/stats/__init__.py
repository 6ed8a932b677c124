# SPDX-License-Identifier: Apache-2.0
"""Every plugin's figures in one registry, served on the daemon's socket as method ``stats``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nfcore.context import Context
from nfcore.hookspecs import hookimpl

from .registry import Registry


class StatsPlugin:
    """Collects on demand: a figure costs nothing while nobody asks."""

    @hookimpl
    def setup(self, context: Context) -> None:
        """Answer ``stats`` on the control socket."""

        def stats(parameters: Mapping[str, Any]) -> Any:
            registry = Registry()
            for plugin, families in context.collect():
                registry.add(families, plugin)
            return registry.as_json()

        context.register_method("stats", stats, reads=True)
