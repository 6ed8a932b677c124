# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="empty-body"
"""All hooks of nfcore, on one page.

Hooks take batches: with one call per flow, nfcore would handle 10,000 flows a second instead of 500,000.
:data:`ROLES` lists on which plugins a hook is called, and where it runs: the hooks of flows and marks on the event
loop, which they must not block; the hooks of a device on the thread of its worker.

`docs/plugins.md` is the guide for authors of plugins.
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
from .steps import Steps

PROJECT = "nfcore"
API = 1
"""Version of the plugin API. It increases when plugins for the version before no longer work. A plugin may state the
version for which it was written in its attribute ``nfcore_api``."""
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The specifications. A plugin is an object with some of these methods, marked with ``@hookimpl``."""

    # The four main hooks.

    @hookspec
    def on_new_flow(self, batch: FlowBatch) -> NDArray[np.uint8] | None:
        """Observe and judge new flows: a reason per row (`nfcore.api.reasons`), 0 = admit; None = no opinion."""

    @hookspec(firstresult=True)
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        """Give each flow its mark, 0 = none; None when another strategy is in charge."""

    @hookspec
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes | None:
        """Install rules on the NIC: a status per rule. Partial success is normal."""

    @hookspec
    def collect_stats(self) -> Iterable[MetricFamily]:
        """Give the present metrics of the plugin. Counters never decrease."""

    # Marks and what they mean.

    @hookspec
    def marking_strategies(self) -> Sequence[StrategyInfo]:
        """List the strategies that the plugin offers for `[marking] strategy`."""

    @hookspec(firstresult=True)
    def publish_marks(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_] | None:
        """Write the entries of marks to the NF's maps, before any rule sets the marks: per row, whether it is there."""

    @hookspec
    def retire_marks(self, nf: int, marks: NDArray[np.uint32]) -> None:
        """Erase the entries of marks from the NF's maps, after the last rule that set the marks is gone."""

    @hookspec
    def release_mark(self, marks: NDArray[np.uint32]) -> None:
        """Take back marks that no rule and no entry uses any more."""

    @hookspec
    def restore_flows(self, batch: FlowBatch) -> None:
        """Put flows back into the slow path's tables, with the same target, before their rules are removed.

        The slow path reports them again when they have enough packets. Flows whose target is gone are left out.
        """

    # The NIC.

    @hookspec
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes | None:
        """Remove rules from the NIC: a status per rule. A rule that is not there is no error."""

    @hookspec
    def dump_offload(self, device: Device) -> NDArray[np.void] | None:
        """Read nfcore's rules and their counters from the NIC, rows of `nfcore.api.rules.INSTALLED_ROW`."""

    @hookspec
    def probe_offload(self, device: Device) -> Capabilities | None:
        """Find out, by trial, what the device can do."""

    # The life of the plugin itself.

    @hookspec
    def config_section(self) -> Section | None:
        """Declare the plugin's TOML table: its pydantic model and further checks."""

    @hookspec
    def setup(self, context: Context) -> None:
        """Prepare: create maps, open devices, register network functions. Attach nothing yet."""

    @hookspec
    def preconditions(self, context: Context) -> Iterable[Finding]:
        """Find what `setup` would refuse: `nfcore run` refuses at a fault, `nfcore doctor` reports. Change nothing."""

    @hookspec
    def reconfigure(self, config: Config) -> NDArray[np.uint64] | Steps[NDArray[np.uint64] | None] | None:
        """Apply what `config` changes in the plugin's table, and give the targets of its NF that no longer exist.

        When this returns, no packet goes to such a target any more. ConfigError, before anything is changed, when a
        change needs a restart. What takes long is done in steps (`nfcore.api.steps`), by a generator.
        """

    @hookspec
    def teardown(self) -> None:
        """Release everything that `setup` acquired; called also when a `setup` failed, this one or a later one."""

    @hookspec
    def cleanup(self, context: Context) -> Iterable[str]:
        """Remove what a killed daemon left: a line for each thing that was removed."""

    @hookspec
    def diagnose(self, context: Context) -> Iterable[Finding]:
        """Find, for `nfcore doctor`, what prevents the plugin from working. Change nothing."""

    @hookspec
    def register_commands(self, app: typer.Typer) -> None:
        """Add commands to the command line. Keep imports light: help and commands of other plugins load them, too."""

    @hookspec(firstresult=True)
    def trace_packet(self, nf: int, frame: bytes, mark: int) -> PacketTrace | None:
        """Run one frame through the loaded program of the NF: what the program did, and why."""

    @hookspec
    def benchmark(self) -> object | None:
        """Give the `nfcore.bench.workload.Workload` that `nfcore bench` measures for the plugin's NF."""


class CalledOn(StrEnum):
    """The plugins on which a hook is called, and their order."""

    ALL = "every plugin, in the order of [nf] plugins"
    BUILTIN_FIRST = "every plugin, nfcore's own first, each in the order of [nf] plugins"
    FIRST = "plugin after plugin, in the order of [nf] plugins, until one gives a result"
    REVERSED = "every plugin, the last first"
    FUNCTION = "the network function alone"
    BACKEND = "the device's backends, in the order of interfaces[].offload"
    ITSELF = "the plugin whose table has changed"


class Runs(StrEnum):
    """Where a hook runs, and so how long it may take."""

    LOOP = "event loop: must not block"
    REQUEST = "event loop, at an operator's command: may take a moment"
    WORKER = "the device's worker thread: may wait for the NIC"
    START = "main thread, before or after the event loop runs"
    COMMAND = "a command, in a process of its own"


@dataclass(frozen=True)
class Role:
    """On which plugins a hook is called, and where it runs."""

    asked: CalledOn
    runs: Runs


ROLES: Mapping[str, Role] = {
    "on_new_flow": Role(CalledOn.ALL, Runs.LOOP),
    "allocate_mark": Role(CalledOn.FIRST, Runs.LOOP),
    "install_offload": Role(CalledOn.BACKEND, Runs.WORKER),
    "collect_stats": Role(CalledOn.BUILTIN_FIRST, Runs.LOOP),
    "marking_strategies": Role(CalledOn.ALL, Runs.START),
    "publish_marks": Role(CalledOn.FUNCTION, Runs.LOOP),
    "retire_marks": Role(CalledOn.FUNCTION, Runs.LOOP),
    "release_mark": Role(CalledOn.ALL, Runs.LOOP),
    "restore_flows": Role(CalledOn.FUNCTION, Runs.LOOP),
    "remove_offload": Role(CalledOn.BACKEND, Runs.WORKER),
    "dump_offload": Role(CalledOn.BACKEND, Runs.WORKER),
    "probe_offload": Role(CalledOn.BACKEND, Runs.WORKER),
    "config_section": Role(CalledOn.ALL, Runs.START),
    "setup": Role(CalledOn.ALL, Runs.START),
    "preconditions": Role(CalledOn.ALL, Runs.START),
    "reconfigure": Role(CalledOn.ITSELF, Runs.REQUEST),
    "teardown": Role(CalledOn.REVERSED, Runs.START),
    "cleanup": Role(CalledOn.ALL, Runs.COMMAND),
    "diagnose": Role(CalledOn.ALL, Runs.COMMAND),
    "register_commands": Role(CalledOn.ALL, Runs.COMMAND),
    "trace_packet": Role(CalledOn.FUNCTION, Runs.COMMAND),
    "benchmark": Role(CalledOn.ALL, Runs.COMMAND),
}
"""Hook → role."""
