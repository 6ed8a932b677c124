# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="empty-body"
"""The context of one run: what a plugin gets in `setup`, and where it registers network functions and methods."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import HostError
from .config import Config
from .health import Health
from .locks import Locks
from .marks import MarkAllocator, StrategyInfo
from .metrics import MetricFamily
from .network_function import NetworkFunction
from .rules import Device
from .state_file import StateFile

Method = Callable[[Mapping[str, Any]], Any]
"""A method of the control socket: takes parameters and gives a JSON value, or an awaitable of one if it has to wait.
A long list is a :class:`~nfcore.api.json_rows.JsonRows`. A method runs on the event loop and must not block."""


@dataclass
class Services:
    """What the core offers to the plugins of a run. The defaults are for commands without an event loop."""

    collect: Callable[[], Iterable[tuple[str, Iterable[MetricFamily]]]] = field(default=lambda: ())
    """Gives the metrics of the core and of all plugins, each with the plugin's name."""
    report_fault: Callable[[str, str, str], None] = field(default=lambda plugin, hook, text: None)
    """Counts and logs a fault: name of the plugin, hook, text."""
    call_soon: Callable[[Callable[[], None]], None] = field(default=lambda job: job())
    """Runs a job soon on the event loop's thread; any thread may call it. Without an event loop: at once."""
    metric_sources: list[Callable[[], Iterable[MetricFamily]]] = field(default_factory=list)
    """Sources of the core's own metrics; `collect` includes them."""
    health: Health = field(default_factory=Health)
    """Whether the daemon works: its event loop, its workers, its programs."""
    methods: dict[str, Method] = field(default_factory=dict)
    """Name → method of the control socket."""
    read_methods: set[str] = field(default_factory=set)
    """Names of the methods that change nothing; members of `[nf] socket_group` may use them."""
    starters: list[Callable[[], None]] = field(default_factory=list)
    """Functions to call once the daemon is ready."""

    def register_method(self, name: str, method: Method, *, reads: bool = False) -> None:
        """Add a method to the control socket. reads: it changes nothing, so that users without root may call it.

        HostError when the socket has a method of this name.
        """
        if name in self.methods:
            raise HostError(f"two plugins have the method {name!r} of the daemon's socket: leave one of them out")
        self.methods[name] = method
        if reads:
            self.read_methods.add(name)

    def when_running(self, start: Callable[[], None]) -> None:
        """Have `start` called on the event loop's thread once the daemon is ready; without a daemon, never."""
        self.starters.append(start)


@dataclass
class Context:
    """One run: its configuration, devices, marks and services."""

    config: Config
    devices: Sequence[Device]
    strategy: StrategyInfo | None
    """None: no interface is accelerated."""
    marks: MarkAllocator
    strategy_plugin: str | None = None
    """The plugin that offers the strategy."""
    tracing: bool = False
    """True under `nfcore trace`: attach and pin nothing."""
    services: Services = field(default_factory=Services)
    locks: Locks = field(default_factory=Locks)
    """The locks of this run: only one process at a time may use an interface."""
    state_file: StateFile = field(default_factory=StateFile)
    """Values for the next run, so that it recognises what a killed one left."""
    nfs: list[NetworkFunction] = field(default_factory=list)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("nfcore"))

    def register_nf(self, nf: NetworkFunction) -> None:
        """Add a network function for the engine and give it a number, from 1."""
        nf.number = len(self.nfs) + 1
        self.nfs.append(nf)

    def devices_of(self, nf_name: str) -> list[Device]:
        """Give the devices whose chain names the network function."""
        names = {interface.name for interface in self.config.interfaces if nf_name in interface.chain}
        return [device for device in self.devices if device.name in names]
