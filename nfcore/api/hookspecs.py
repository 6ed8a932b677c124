# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="empty-body"
"""Every hook of nfcore, on one page.

Batches, not single flows: a call per flow is the difference between 10,000 and 500,000 flows a second. Whom a hook is
called on, and where it runs, is in :data:`ROLES`: those of flows and marks on the event loop, where they must not
block; those of a device on its worker's thread.

`docs/plugins.md` is the guide for whoever implements them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pluggy
import typer
from numpy.typing import NDArray

from .config import Config, Section
from .context import Context
from .findings import Finding
from .flows import FlowBatch
from .marks import StrategyInfo
from .metrics import MetricFamily
from .network_function import PacketTrace
from .rules import Capabilities, Device, Outcomes, RuleBatch

PROJECT = "nfcore"
API = 1
"""Version of all that a plugin may rely on. It grows when a plugin written for the last would no longer work; a plugin
may state the one that it was written for as its attribute ``nfcore_api``."""
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The specifications. A plugin is an object with some of these methods, marked with ``@hookimpl``."""

    # The four that the framework is about.

    @hookspec
    def on_new_flow(self, batch: FlowBatch) -> NDArray[np.uint8] | None:
        """Observe new flows, and judge them: a reason per row, 0 = admit (`nfcore.api.reasons`); None = no opinion."""

    @hookspec(firstresult=True)
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        """Give each flow its mark, 0 = none; None when another strategy is in charge."""

    @hookspec
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes | None:
        """Put rules on the NIC; a status per rule, partial success is normal."""

    @hookspec
    def collect_stats(self) -> Iterable[MetricFamily]:
        """Give the plugin's figures as they are now; counters never go back."""

    # Marks and what they mean.

    @hookspec
    def marking_strategies(self) -> Sequence[StrategyInfo]:
        """Name the strategies that the plugin offers to `[marking] strategy`."""

    @hookspec(firstresult=True)
    def publish_marks(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_] | None:
        """Write in the NF's maps what each mark means, before any rule sets it; whether it stands, per row."""

    @hookspec
    def retire_marks(self, nf: int, marks: NDArray[np.uint32]) -> None:
        """Erase in the NF's maps what the marks meant, after the last rule that set them is gone."""

    @hookspec
    def release_mark(self, marks: NDArray[np.uint32]) -> None:
        """Take back marks that no rule and no entry uses any more."""

    @hookspec
    def restore_flows(self, batch: FlowBatch) -> None:
        """Make the slow path know these flows again, with the same target, before their rules go.

        It reports them anew when they deserve it. Flows whose target exists no more are left out.
        """

    # The NIC.

    @hookspec
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes | None:
        """Take rules off the NIC; removing what is not there is no error."""

    @hookspec
    def dump_offload(self, device: Device) -> NDArray[np.void] | None:
        """Read back our rules with their counters, rows of `nfcore.api.rules.INSTALLED_ROW`."""

    @hookspec
    def probe_offload(self, device: Device) -> Capabilities | None:
        """Find out what the device can do, by trying."""

    # The plugin's own life.

    @hookspec
    def config_section(self) -> Section | None:
        """Declare the plugin's TOML table: its pydantic model and further checks."""

    @hookspec
    def setup(self, context: Context) -> None:
        """Get ready: create maps, open devices, register network functions. Nothing is attached yet."""

    @hookspec
    def reconfigure(self, config: Config) -> NDArray[np.uint64] | None:
        """Take over what `config` changes in the plugin's table; the targets of its NF that exist no more.

        What is gone must have stopped steering by the time that this returns. ConfigError, before anything is
        changed, when a change needs a restart.
        """

    @hookspec
    def teardown(self) -> None:
        """Give everything back that `setup` took; called also when a later `setup` failed."""

    @hookspec
    def cleanup(self, context: Context) -> Iterable[str]:
        """Remove what a killed daemon left behind; a line for each thing removed."""

    @hookspec
    def diagnose(self, context: Context) -> Iterable[Finding]:
        """Look for what would keep the plugin from working, without changing anything, for `nfcore doctor`."""

    @hookspec
    def register_commands(self, app: typer.Typer) -> None:
        """Add commands to the command line. Keep the import light: it happens at every start."""

    @hookspec(firstresult=True)
    def trace_packet(self, nf: int, frame: bytes, mark: int) -> PacketTrace | None:
        """Run one frame through the NF's loaded program; what it did and why."""

    @hookspec
    def benchmark(self) -> object | None:
        """Give the `nfcore.bench.workload.Workload` of the plugin's NF: what `nfcore bench` is to measure."""


class Asked(StrEnum):
    """Whom a hook is called on, and in which order."""

    ALL = "every plugin, in the order of [nf] plugins"
    OURS_FIRST = "every plugin, nfcore's own first, each in the order of [nf] plugins"
    FIRST = "plugin after plugin, in the order of [nf] plugins, until one answers"
    REVERSED = "every plugin, the last first"
    FUNCTION = "the network function alone"
    BACKEND = "the device's backends, in the order of interfaces[].offload"
    ITSELF = "the plugin whose table has changed"


class Runs(StrEnum):
    """Where a hook runs, and so for how long it may."""

    LOOP = "event loop: must not block"
    ORDER = "event loop, on somebody's order: may take a moment"
    WORKER = "the device's worker thread: may wait for the NIC"
    START = "main thread, before the loop runs or after it"
    COMMAND = "a command of its own process"


@dataclass(frozen=True)
class Role:
    """How a hook is called."""

    asked: Asked
    runs: Runs


ROLES: Mapping[str, Role] = {
    "on_new_flow": Role(Asked.ALL, Runs.LOOP),
    "allocate_mark": Role(Asked.FIRST, Runs.LOOP),
    "install_offload": Role(Asked.BACKEND, Runs.WORKER),
    "collect_stats": Role(Asked.OURS_FIRST, Runs.LOOP),
    "marking_strategies": Role(Asked.ALL, Runs.START),
    "publish_marks": Role(Asked.FUNCTION, Runs.LOOP),
    "retire_marks": Role(Asked.FUNCTION, Runs.LOOP),
    "release_mark": Role(Asked.ALL, Runs.LOOP),
    "restore_flows": Role(Asked.FUNCTION, Runs.LOOP),
    "remove_offload": Role(Asked.BACKEND, Runs.WORKER),
    "dump_offload": Role(Asked.BACKEND, Runs.WORKER),
    "probe_offload": Role(Asked.BACKEND, Runs.WORKER),
    "config_section": Role(Asked.ALL, Runs.START),
    "setup": Role(Asked.ALL, Runs.START),
    "reconfigure": Role(Asked.ITSELF, Runs.ORDER),
    "teardown": Role(Asked.REVERSED, Runs.START),
    "cleanup": Role(Asked.ALL, Runs.COMMAND),
    "diagnose": Role(Asked.ALL, Runs.COMMAND),
    "register_commands": Role(Asked.ALL, Runs.COMMAND),
    "trace_packet": Role(Asked.FUNCTION, Runs.COMMAND),
    "benchmark": Role(Asked.ALL, Runs.COMMAND),
}
"""Every hook's role, by its name."""
