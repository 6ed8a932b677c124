# SPDX-License-Identifier: Apache-2.0
"""A network function that does what an application says: "action Y for flow X", "drop flow Z"."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray

from nfcore.api.carriers import Carrier, carrier_defines
from nfcore.api.config import Config, Section
from nfcore.api.context import Context
from nfcore.api.findings import Finding, Status, finding_of
from nfcore.api.flows import FlowBatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.metrics import MetricFamily
from nfcore.api.network_function import PacketTrace
from nfcore.errors import ConfigError, NfcoreError, Problem

from .config import FlowActionsTable, check_table, count_targets
from .data_plane import DataPlane
from .entries import EntryError
from .function import NAME, FlowActions
from .journal import Journal, journal_path
from .maps import Sizes, check_pins, remove_pins
from .methods import FlowMethods
from .metrics import families
from .orders import Orders
from .table import Table
from .tracing import trace

log = logging.getLogger(__name__)
LOOK_AROUND = 0.25
"""Seconds between two looks at the interfaces of redirects, and at lifetimes that have ended."""
NEEDS_RESTART = ("entries", "targets", "pin_dir", "marked_packets", "missing_interface")
"""Keys of the table that are read only at the start."""


class FlowActionsPlugin:
    """The hooks of flow_actions. The first one that touches the kernel is `setup`; the import does not."""

    def __init__(self) -> None:
        self._function: FlowActions | None = None
        self._orders: Orders | None = None
        self._methods: FlowMethods | None = None
        self._new_pins: Path | None = None
        """Folder of pins that this start has created: they are removed when it fails."""

    @hookimpl
    def config_section(self) -> Section:
        """Declare `[flow_actions]`."""
        return Section(FlowActionsTable, check_table, count_targets)

    @hookimpl
    def preconditions(self, context: Context) -> Iterable[Finding]:
        """Check that nobody else has the folder of pins, and that counters and journal can be read."""
        pin_dir = _table(context.config).pin_dir
        if not pin_dir:
            return ()
        folder, journal = Path(pin_dir), journal_path(context.config.nf)

        def check() -> None:
            context.locks.folder(folder)
            check_pins(folder)
            Journal(journal).read(time.time())

        return [finding_of(f"{NAME}.pin_dir", check, f"{folder}, what is kept there fits")]

    @hookimpl
    def setup(self, context: Context) -> None:
        """Create the maps, load the program, and begin with the entries of the TOML and of the run before."""
        table = _table(context.config)
        pin_dir = Path(table.pin_dir) if table.pin_dir and not context.tracing else None
        if pin_dir is not None:
            context.locks.folder(pin_dir)
            self._new_pins = None if pin_dir.exists() else pin_dir
        data_plane = _open(context, table, pin_dir)
        self._function = function = FlowActions(context, Table(table.entries, table.targets), data_plane)
        context.register_nf(function)
        journal = Journal(journal_path(context.config.nf) if pin_dir is not None else None)
        if pin_dir is None and not context.tracing:
            # So that entries of long ago do not come back when `pin_dir` is set again.
            Journal(journal_path(context.config.nf)).forget()
        self._orders = Orders(function.table, journal, function.apply)
        self._orders.start(table.flows, check=not context.tracing)
        self._methods = FlowMethods(self._orders, function.facts, function.settle, function.refresh)
        self._methods.register(context.services)
        if not context.tracing:
            context.services.when_running(self._look_around)
            context.services.health.warning_sources.append(self._warnings)

    def _look_around(self) -> None:
        """Notice interfaces that come and go, lifetimes that end, and clients that are gone, again and again."""
        if self._function is None or self._orders is None or self._methods is None:
            return
        # First: the next look comes, whatever goes wrong in this one.
        asyncio.get_running_loop().call_later(LOOK_AROUND, self._look_around)
        self._methods.drop_idle()
        for change in self._function.targets_in_use.follow_links():
            log.warning("%s: %s", NAME, change)
        try:
            self._orders.expire()
        except NfcoreError as error:
            log.error("%s: entries whose lifetime has ended stay: %s", NAME, error)

    def _warnings(self) -> list[str]:
        troubles = self._function.targets_in_use.troubles() if self._function is not None else []
        return [f"{NAME}: {trouble}" for trouble in troubles]

    @hookimpl
    def reconfigure(self, config: Config) -> None:
        """Let the TOML's entries be those of another configuration."""
        before, after = _table(self._running.context.config), _table(config)
        changed = [key for key in NEEDS_RESTART if getattr(before, key) != getattr(after, key)]
        if changed:
            message = "has changed, which takes a restart"
            raise ConfigError(config.source, [Problem(f"{NAME}.{key}", message) for key in changed])
        assert self._orders is not None, "setup() has made it"
        try:
            self._orders.reload(after.flows)
        except EntryError as error:
            raise ConfigError(config.source, list(error.found)) from None

    @hookimpl
    def teardown(self) -> None:
        """Close journal, program and maps. Pinned counters and the journal stay for the next run."""
        if self._orders is not None:
            self._orders.close()
        unused = self._new_pins
        if self._function is not None:
            unused = None if self._function.is_attached else unused
            self._function.close()
        self._orders = self._function = self._methods = None
        if unused is not None:
            list(remove_pins(unused))

    @hookimpl
    def publish_marks(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Write what the marks lead to."""
        return self._running.publish(batch, marks)

    @hookimpl
    def retire_marks(self, nf: int, marks: NDArray[np.uint32]) -> None:
        """Let the marks lead to nothing."""
        self._running.retire(marks)

    @hookimpl
    def restore_flows(self, batch: FlowBatch) -> None:
        """Do nothing: the slow path knows every entry."""

    @hookimpl
    def collect_stats(self) -> Iterable[MetricFamily]:
        """Count packets by action, and entries."""
        return list(families(self._function)) if self._function is not None else ()

    @hookimpl
    def trace_packet(self, nf: int, frame: bytes, mark: int) -> PacketTrace | None:
        """Run a frame through the program."""
        return trace(self._running, frame, mark) if nf == self._running.number else None

    @hookimpl
    def diagnose(self, context: Context) -> Iterable[Finding]:
        """Check that the program loads, without attaching anything."""
        what = f"{NAME}: program"
        try:
            with _open(context, _table(context.config), None) as data_plane:
                return [Finding(what, Status.OK, f"loads, {data_plane.program.jited_size:,} bytes")]
        except NfcoreError as error:
            return [Finding(what, Status.FAULT, str(error))]

    @hookimpl
    def cleanup(self, context: Context) -> Iterable[str]:
        """Remove the pinned counters and the journal of a killed daemon."""
        pin_dir = _table(context.config).pin_dir
        lines = [f"{NAME}: removed pin {pin}" for pin in remove_pins(Path(pin_dir))] if pin_dir else []
        journal = journal_path(context.config.nf)
        if journal.is_file():
            Journal(journal).forget()
            lines.append(f"{NAME}: removed {journal}, the entries of applications")
        return lines

    @hookimpl
    def register_commands(self, app: typer.Typer) -> None:
        """Add `nfcore flow`."""
        from .commands import app as commands  # noqa: PLC0415 - a daemon has no use for it

        app.add_typer(commands, name="flow")

    @hookimpl
    def benchmark(self) -> object:
        """Measure the program with up to 100,000 entries, in chains, and beside xdp-filter."""
        from .benchmark import FlowActionsWorkload  # noqa: PLC0415 - a daemon has no use for it

        return FlowActionsWorkload()

    @property
    def _running(self) -> FlowActions:
        assert self._function is not None, "the core calls setup() before any other hook of a network function"
        return self._function


def _table(config: Config) -> FlowActionsTable:
    table = config.sections[NAME]
    assert isinstance(table, FlowActionsTable), "config_section() declares it"
    return table


def _open(context: Context, table: FlowActionsTable, pin_dir: Path | None) -> DataPlane:
    meaning = context.strategy.meaning if context.strategy is not None else None
    build = context.chain_build(NAME)
    carrier = Carrier(context.config.marking.carrier) if meaning is not None else None
    defines: dict[str, int | str] = {
        "MISSING_INTERFACE": f"XDP_{table.missing_interface.upper()}",
        **carrier_defines(carrier, tracing=context.tracing),
        **build.defines,
    }
    if table.marked_packets == "look-up":
        defines["MARKED_LOOK_UP"] = 1
    sizes = Sizes(table.entries, table.targets, context.config.marking.width)
    return DataPlane.open(sizes, meaning, defines, build.maps, pin_dir)
