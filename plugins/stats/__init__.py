# SPDX-License-Identifier: Apache-2.0
"""The plugin stats: the metrics of all plugins, on the daemon's socket and for Prometheus; and `nfcore top`."""

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
    """Collects metrics when they are requested; without a request they cost nothing."""

    def __init__(self) -> None:
        self._context: Context | None = None
        self._collector: Collector | None = None
        self._endpoint: Endpoint | None = None
        self._counters: EndpointCounters | None = None
        self._took = Histogram(COLLECT_BOUNDS)

    @hookimpl
    def config_section(self) -> Section:
        """Declare `[stats]`."""
        return Section(StatsTable)

    @hookimpl
    def register_commands(self, app: typer.Typer) -> None:
        """Add `nfcore top`."""
        app.registered_commands += commands.registered_commands

    @hookimpl
    def setup(self, context: Context) -> None:
        """Register the methods ``stats`` and ``top``, and listen for scrapers once the daemon runs."""
        from .collector import Collector  # noqa: PLC0415 - commands of plugins and help load this module
        from .prometheus.endpoint import EndpointCounters  # noqa: PLC0415

        self._context, self._counters = context, EndpointCounters()
        self._collector = collector = Collector(self._steps, context)
        began, run = time.monotonic(), f"{os.getpid()}-{time.time_ns()}"

        def stats(parameters: Mapping[str, Any]) -> Any:
            return collector.collect(Registry.as_rows)

        def top(parameters: Mapping[str, Any]) -> Any:
            def summary(registry: Registry) -> Any:
                now = time.monotonic()
                of_run = {"run": run, "time": now, "up_seconds": now - began}
                return summarise(context, registry, parameters) | of_run

            return collector.collect(summary)

        context.services.register_method("stats", stats, reads=True)
        context.services.register_method("top", top, reads=True)
        context.services.when_running(lambda: self._listen(_table(context.config).listen))

    @hookimpl
    def reconfigure(self, config: Config) -> None:
        """Listen on another address, or not at all."""
        listen = _table(config).listen
        if listen != (self._endpoint.listen if self._endpoint else ""):
            self._stop_endpoint()
            self._listen(listen)

    @hookimpl
    def teardown(self) -> None:
        """Stop listening."""
        self._stop_endpoint()

    @hookimpl
    def collect_stats(self) -> Iterable[MetricFamily]:
        """Return the metrics of the endpoint and of the collection itself."""
        took = histogram(
            "nfcore_stats_collect_seconds", "Time on the event loop to collect one plugin's metrics.", "seconds"
        )
        took.add(self._took.read())
        listening = gauge("nfcore_stats_listening", "1 while the HTTP endpoint listens.", "")
        listening.add(int(self._endpoint is not None and self._endpoint.listening))
        return [took, listening, *(self._counters.metrics() if self._counters else ())]

    def _steps(self, registry: Registry) -> Iterator[None]:
        """Fill the registry, one plugin per step. A plugin whose metrics break a rule is reported and left out."""
        context = self._context
        assert context is not None, "the core calls setup() first"
        began = time.perf_counter()
        for plugin, families in context.services.collect():
            try:
                registry.add(families)
            except ValueError as error:
                context.services.report_fault(plugin, "collect_stats", f"returned metrics that break a rule: {error}")
            except Exception as error:  # noqa: BLE001 - a plugin may put anything into a family
                reason = f"returned metrics that cannot be processed: {describe_error(error)}"
                context.services.report_fault(plugin, "collect_stats", reason)
            self._took.observe(time.perf_counter() - began)
            yield
            began = time.perf_counter()

    def _listen(self, listen: str) -> None:
        from .prometheus.endpoint import Endpoint  # noqa: PLC0415 - commands of plugins and help load this module

        if self._context is None or self._collector is None or self._counters is None or not listen:
            return
        self._endpoint = Endpoint(listen, self._collector.request, self._context.services.health, self._counters)
        self._endpoint.start()

    def _stop_endpoint(self) -> None:
        if self._endpoint is not None:
            self._endpoint.stop()
            self._endpoint = None


def _table(config: Config) -> StatsTable:
    table = config.sections[NAME]
    assert isinstance(table, StatsTable)  # by config_section()
    return table
