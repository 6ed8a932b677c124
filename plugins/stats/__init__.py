# SPDX-License-Identifier: Apache-2.0
"""Every plugin's figures in one registry, served on the daemon's socket, and `nfcore top`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import typer

from nfcore.context import Context
from nfcore.hookspecs import hookimpl

from .commands import app as commands
from .registry import Registry
from .summary import summarise


class StatsPlugin:
    """Collects on demand: a figure costs nothing while nobody asks."""

    @hookimpl
    def register_commands(self, app: typer.Typer) -> None:
        """Add `nfcore top`."""
        app.registered_commands += commands.registered_commands

    @hookimpl
    def setup(self, context: Context) -> None:
        """Answer ``stats`` and ``top`` on the control socket."""
        began, run = time.monotonic(), f"{os.getpid()}-{time.time_ns()}"

        def registry() -> Registry:
            collected = Registry()
            for plugin, families in context.collect():
                collected.add(families, plugin)
            return collected

        def stats(parameters: Mapping[str, Any]) -> Any:
            return registry().as_json()

        def top(parameters: Mapping[str, Any]) -> Any:
            up = time.monotonic() - began
            return summarise(context, registry(), parameters) | {"run": run, "time": time.monotonic(), "up_seconds": up}

        context.register_method("stats", stats, reads=True)
        context.register_method("top", top, reads=True)
