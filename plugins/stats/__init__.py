# SPDX-License-Identifier: Apache-2.0
"""Every plugin's figures in one registry, served on the daemon's socket and to Prometheus; and `nfcore top`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from nfcore.config import Config, Section
from nfcore.context import Context
from nfcore.hookspecs import hookimpl
from nfcore.metrics import Histogram, MetricFamily, counter, gauge, histogram

from .commands import app as commands
from .registry import Registry
from .summary import summarise
from .table import StatsTable

if TYPE_CHECKING:
    from .endpoint import Endpoint

NAME = "stats"
COLLECT_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
"""Seconds."""


class StatsPlugin:
    """Collects on demand: a figure costs nothing while nobody asks."""

    def __init__(self) -> None:
        self._context: Context | None = None
        self._endpoint: Endpoint | None = None
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
        self._context = context
        began, run = time.monotonic(), f"{os.getpid()}-{time.time_ns()}"

        def stats(parameters: Mapping[str, Any]) -> Any:
            return self._collect().as_json()

        def top(parameters: Mapping[str, Any]) -> Any:
            up = time.monotonic() - began
            seen = summarise(context, self._collect(), parameters)
            return seen | {"run": run, "time": time.monotonic(), "up_seconds": up}

        context.register_method("stats", stats, reads=True)
        context.register_method("top", top, reads=True)
        context.when_running(lambda: self._listen(_table(context.config).listen))

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
        endpoint = self._endpoint
        took = histogram(
            "nfcore_stats_collect_seconds", "How long one plugin's figures held up the event loop.", "seconds"
        )
        took.add(self._took.read())
        listening = gauge("nfcore_stats_listening", "1 while the endpoint for Prometheus listens.", "")
        errors = counter("nfcore_stats_listen_errors_total", "Tries to listen that failed.", "tries")
        answers = counter("nfcore_stats_responses_total", "Answers over HTTP, by status.", "responses", "code")
        dropped = counter("nfcore_stats_dropped_total", "Connections left without an answer.", "connections", "reason")
        if endpoint is not None:
            listening.add(int(endpoint.listening))
            errors.add(endpoint.listen_errors)
            for code, number in sorted(endpoint.responses.items()):
                answers.add(number, code=str(code))
            for reason, number in endpoint.dropped.items():
                dropped.add(number, reason=reason)
        return [took, listening, errors, answers, dropped]

    def _collect(self) -> Registry:
        """Everybody's figures, of one instant."""
        registry = Registry()
        for _ in self._steps(registry):
            pass
        return registry

    def _steps(self, registry: Registry) -> Iterator[None]:
        """Fill the registry, a plugin a step; a plugin's whose break a rule are left out, and it is blamed."""
        context = self._context
        assert context is not None, "the core calls setup() before anybody can ask"
        began = time.perf_counter()
        for plugin, families in context.collect():
            try:
                registry.add(families)
            except ValueError as error:
                context.blame(plugin, "collect_stats", f"gave figures that break a rule: {error}")
            except Exception as error:  # noqa: BLE001 - of the odd things that a plugin may put into a family
                words = f"gave figures that nothing can be done with: {type(error).__name__}: {error}"
                context.blame(plugin, "collect_stats", words)
            self._took.observe(time.perf_counter() - began)
            yield
            began = time.perf_counter()

    def _listen(self, listen: str) -> None:
        from .endpoint import Endpoint  # noqa: PLC0415 - every command loads this module

        context = self._context
        if context is None or not listen:
            return

        def ask(done: Callable[[Registry | None], None]) -> None:
            registry = Registry()
            steps = self._steps(registry)

            def step() -> None:
                """Take a step, and the next one when reports have been read in between."""
                try:
                    next(steps)
                except StopIteration:
                    done(registry)
                except Exception as error:
                    context.log.error("stats: figures cannot be collected: %s", error)
                    context.log.debug("traceback", exc_info=error)
                    done(None)
                else:
                    context.soon(step)

            context.soon(step)

        self._endpoint = Endpoint(listen, ask, context.health)
        self._endpoint.start()

    def _hush(self) -> None:
        if self._endpoint is not None:
            self._endpoint.stop()
            self._endpoint = None


def _table(config: Config) -> StatsTable:
    table = config.sections[NAME]
    assert isinstance(table, StatsTable)  # config_section() said so
    return table
