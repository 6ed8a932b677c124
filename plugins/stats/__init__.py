# SPDX-License-Identifier: Apache-2.0
"""Every plugin's figures in one registry, served on the daemon's socket and to Prometheus; and `nfcore top`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from nfcore.api.config import Config, Section
from nfcore.api.context import Context
from nfcore.api.hookspecs import hookimpl
from nfcore.api.metrics import Histogram, MetricFamily, gauge, histogram
from nfcore.errors import describe_error

from .config import StatsTable
from .registry import Registry
from .top.command import app as commands
from .top.summary import summarise

if TYPE_CHECKING:
    from .collector import Collector
    from .prometheus.endpoint import Endpoint, EndpointCounters

NAME = "stats"
COLLECT_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
"""Seconds."""


class StatsPlugin:
    """Collects on demand: a figure costs nothing while nobody asks."""

    def __init__(self) -> None:
        self._context: Context | None = None
        self._collector: Collector | None = None
        self._endpoint: Endpoint | None = None
        self._counters: EndpointCounters | None = None
        self._took = Histogram(COLLECT_BOUNDS)

    @hookimpl
    def config_section(self) -> Section:
        """Own `[stats]`."""
        return Section(StatsTable)

    @hookimpl
    def register_commands(self, app: typer.Typer) -> None:
        """Add `nfcore top`."""
        app.registered_commands += commands.registered_commands

    @hookimpl
    def setup(self, context: Context) -> None:
        """Answer ``stats`` and ``top`` on the control socket, and listen for scrapers once the daemon runs."""
        from .collector import Collector  # noqa: PLC0415 - every command loads this module
        from .prometheus.endpoint import EndpointCounters  # noqa: PLC0415

        self._context, self._counters = context, EndpointCounters()
        self._collector = collector = Collector(self._steps, context)
        began, run = time.monotonic(), f"{os.getpid()}-{time.time_ns()}"

        def stats(parameters: Mapping[str, Any]) -> Any:
            return collector.give(Registry.as_rows)

        def top(parameters: Mapping[str, Any]) -> Any:
            def seen(registry: Registry) -> Any:
                now = time.monotonic()
                of_run = {"run": run, "time": now, "up_seconds": now - began}
                return summarise(context, registry, parameters) | of_run

            return collector.give(seen)

        context.services.register_method("stats", stats, reads=True)
        context.services.register_method("top", top, reads=True)
        context.services.when_running(lambda: self._listen(_table(context.config).listen))

    @hookimpl
    def reconfigure(self, config: Config) -> None:
        """Listen elsewhere."""
        listen = _table(config).listen
        if listen != (self._endpoint.listen if self._endpoint else ""):
            self._hush()
            self._listen(listen)

    @hookimpl
    def teardown(self) -> None:
        """Stop listening."""
        self._hush()

    @hookimpl
    def collect_stats(self) -> Iterable[MetricFamily]:
        """Tell how the endpoint fares."""
        took = histogram(
            "nfcore_stats_collect_seconds", "How long one plugin's figures held up the event loop.", "seconds"
        )
        took.add(self._took.read())
        listening = gauge("nfcore_stats_listening", "1 while the endpoint for Prometheus listens.", "")
        listening.add(int(self._endpoint is not None and self._endpoint.listening))
        return [took, listening, *(self._counters.metrics() if self._counters else ())]

    def _steps(self, registry: Registry) -> Iterator[None]:
        """Fill the registry, a plugin a step; a plugin's whose break a rule are left out, and it is blamed."""
        context = self._context
        assert context is not None, "the core calls setup() before anybody can ask"
        began = time.perf_counter()
        for plugin, families in context.services.collect():
            try:
                registry.add(families)
            except ValueError as error:
                context.services.report_fault(plugin, "collect_stats", f"gave figures that break a rule: {error}")
            except Exception as error:  # noqa: BLE001 - of the odd things that a plugin may put into a family
                words = f"gave figures that nothing can be done with: {describe_error(error)}"
                context.services.report_fault(plugin, "collect_stats", words)
            self._took.observe(time.perf_counter() - began)
            yield
            began = time.perf_counter()

    def _listen(self, listen: str) -> None:
        from .prometheus.endpoint import Endpoint  # noqa: PLC0415 - every command loads this module

        if self._context is None or self._collector is None or self._counters is None or not listen:
            return
        self._endpoint = Endpoint(listen, self._collector.ask, self._context.services.health, self._counters)
        self._endpoint.start()

    def _hush(self) -> None:
        if self._endpoint is not None:
            self._endpoint.stop()
            self._endpoint = None


def _table(config: Config) -> StatsTable:
    table = config.sections[NAME]
    assert isinstance(table, StatsTable)  # config_section() said so
    return table
