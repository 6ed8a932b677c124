# SPDX-License-Identifier: Apache-2.0
"""An L4 load balancer that uses Katran's map ABI and sends packets by the marks that a NIC sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from nfcore.api.config import Config, Section
from nfcore.api.context import Context
from nfcore.api.findings import Finding
from nfcore.api.flows import FlowBatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.metrics import MetricFamily
from nfcore.api.network_function import PacketTrace
from nfcore.api.steps import Steps
from nfcore.errors import HostError, Problem
from nfcore.kernel import remove_call_pins

from .balancer import Balancer, meaning_of
from .capture.command import capture
from .capture.service import CaptureService
from .config import NAME, KatranTable, check_table, check_whole, count_pairs
from .connections.methods import ConnectionMethods
from .decap.command import decap
from .diagnosis import METHOD, diagnose, preconditions
from .feature_checks import check_features
from .features import PROGRAMS
from .healthcheck import service as healthcheck
from .healthcheck.command import healthcheck as show_healthcheck
from .inventory import NUMBERING
from .maps import remove_pins
from .metrics import BalancerMetrics
from .routing_commands import server_ids, source_routes
from .routing_methods import RoutingMethods
from .tracing import trace


class KatranAccelPlugin:
    """The balancer's hooks. The first one that touches the kernel is `setup`; the import does not."""

    def __init__(self) -> None:
        self._balancer: Balancer | None = None
        self._metrics: BalancerMetrics | None = None
        self._capture: CaptureService | None = None
        self._healthcheck: healthcheck.Healthcheck | None = None

    @hookimpl
    def config_section(self) -> Section:
        """Declare `[katran_accel]`."""
        return Section(KatranTable, _check, count_pairs, check_whole)

    @hookimpl
    def register_commands(self, app: typer.Typer) -> None:
        """Add the commands of captures, connections, server ids, source routes, health checks, and that of reals."""
        from .connections.command import app as connections  # noqa: PLC0415 - a daemon has no use for it

        app.add_typer(connections, name="connections")
        app.command("capture")(capture)
        app.command("decap")(decap)
        app.command("healthcheck")(show_healthcheck)
        app.add_typer(server_ids, name="server-ids")
        app.add_typer(source_routes, name="source-routes")

    @hookimpl
    def preconditions(self, context: Context) -> Iterable[Finding]:
        """Check that the folder of pins and the health checks' interface are nobody else's, and what is pinned fits."""
        table = _table(context.config)
        return [*preconditions(context, table), *healthcheck.preconditions(context, table)]

    @hookimpl
    def setup(self, context: Context) -> None:
        """Create the maps, load the program, register the network function."""
        table = _table(context.config)
        self._balancer = Balancer(context.config, table, meaning_of(context, table))
        self._balancer.open(context)
        self._metrics = BalancerMetrics(self._balancer)
        self._capture = CaptureService(self._balancer)
        context.register_nf(self._balancer)
        context.services.register_method(METHOD, self._balancer.next_hops, reads=True)
        for name, method in self._capture.methods().items():
            context.services.register_method(name, method)
        ConnectionMethods(self._balancer, context.services, context.devices).register()
        RoutingMethods(self._balancer, context.services, self._follow).register()
        context.services.register_method("healthcheck", self._report_healthcheck, reads=True)
        if table.healthcheck is not None and not context.tracing:
            self._healthcheck = healthcheck.Healthcheck(context, table, table.healthcheck)
            self._healthcheck.follow(self._balancer.inventory, table)
            self._balancer.also_resolve = self._healthcheck.resolve
            context.services.when_running(self._healthcheck.attach)

    @hookimpl
    def reconfigure(self, config: Config) -> Steps[NDArray[np.uint64]]:
        """Change VIPs, reals, weights and the gateway while packets flow."""
        sources = None if self._healthcheck is None else (yield partial(self._healthcheck.plan, _table(config)))
        try:
            return (yield from self._running.reconfigure_in_steps(config, _table(config)))
        finally:
            if self._metrics is not None:
                self._metrics.follow()
            if self._healthcheck is not None and self._running.config is config:
                self._healthcheck.follow(self._running.inventory, _table(config), sources)

    def _follow(self) -> None:
        """Let metrics and health checks follow what was changed at run time."""
        if self._metrics is not None:
            self._metrics.follow()
        if self._healthcheck is not None:
            self._healthcheck.follow(self._running.inventory, self._running.table)

    @hookimpl
    def teardown(self) -> None:
        """Detach the program and close it and its maps."""
        if self._healthcheck is not None:
            self._healthcheck.close()
            self._healthcheck = None
        if self._capture is not None:
            self._capture.close()
            self._capture = None
        if self._balancer is not None:
            self._balancer.close()
            self._balancer = self._metrics = None

    @hookimpl
    def publish_marks(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Write `hw_accel_targets`, or check what XDP has written to `hw_accel_mapping`."""
        return self._running.publish(batch, marks)

    @hookimpl
    def retire_marks(self, nf: int, marks: NDArray[np.uint32]) -> None:
        """Erase the entries of the marks."""
        self._running.retire(marks)

    @hookimpl
    def restore_flows(self, batch: FlowBatch) -> None:
        """Put the flows back into the connection table."""
        self._running.restore(batch)

    @hookimpl
    def collect_stats(self) -> Iterable[MetricFamily]:
        """Read packets and bytes per VIP and real, paths, verdicts and drops."""
        families = list(self._metrics.families()) if self._metrics is not None else []
        return families if self._healthcheck is None else [*families, *self._healthcheck.metrics()]

    @hookimpl
    def trace_packet(self, nf: int, frame: bytes, mark: int) -> PacketTrace | None:
        """Run a frame through the program."""
        return trace(self._running, frame, mark) if nf == self._running.number else None

    @hookimpl
    def diagnose(self, context: Context) -> Iterable[Finding]:
        """Check that the program loads and that the gateway can be found, without attaching anything."""
        table = _table(context.config)
        return [*diagnose(context, table), *healthcheck.diagnose(context, table)]

    @hookimpl
    def cleanup(self, context: Context) -> Iterable[str]:
        """Remove the pins of a killed daemon."""
        table = _table(context.config)
        lines = list(healthcheck.remove_leftovers(context))
        if table.pin_dir:
            lines += [f"{NAME}: removed pin {pin}" for pin in remove_pins(Path(table.pin_dir))]
            context.state_file.remove(NUMBERING)
        pins = remove_call_pins(context.config.nf.call_pins, PROGRAMS)
        return lines + [f"{NAME}: removed pin {pin}" for pin in pins]

    @hookimpl
    def benchmark(self) -> object:
        """Let `nfcore bench` measure the balancer."""
        from .benchmark import KatranWorkload  # noqa: PLC0415 - a daemon has no use for it
        from .feature_benchmark import feature_subjects  # noqa: PLC0415

        return KatranWorkload(feature_subjects)

    def _report_healthcheck(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._healthcheck is None:
            raise HostError("the daemon has no health checks: add [katran_accel.healthcheck] to its TOML")
        return self._healthcheck.report()

    @property
    def _running(self) -> Balancer:
        assert self._balancer is not None, "the core calls setup() before any other hook of a network function"
        return self._balancer


def _check(raw: Mapping[str, Any], path: str) -> Iterator[Problem]:
    yield from check_table(raw, path)
    yield from check_features(raw, path)


def _table(config: Config) -> KatranTable:
    table = config.sections[NAME]
    assert isinstance(table, KatranTable), "config_section() declares it"
    return table
