# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="empty-body"
"""What a plugin is given at `setup`, and what a network function gives back."""

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
"""A method of the control socket: parameters in, JSON out, or an awaitable of it when there is something to wait for.
Long lists go in as :class:`~nfcore.api.json_rows.JsonRows`. It runs on the event loop and must not block."""


@dataclass
class Services:
    """What the core does for the plugins of a run. The defaults are those of a command without an event loop."""

    collect: Callable[[], Iterable[tuple[str, Iterable[MetricFamily]]]] = field(default=lambda: ())
    """Gives everybody's metrics, with the plugin's name."""
    report_fault: Callable[[str, str, str], None] = field(default=lambda plugin, hook, text: None)
    """Counts and logs a plugin's fault: plugin, hook, text."""
    call_soon: Callable[[Callable[[], None]], None] = field(default=lambda job: job())
    """Runs a job on the event loop's thread, soon; for any thread. Without an event loop: at once."""
    metric_sources: list[Callable[[], Iterable[MetricFamily]]] = field(default_factory=list)
    """Those of the core, part of `collect`."""
    health: Health = field(default_factory=Health)
    """Whether the daemon is alive."""
    methods: dict[str, Method] = field(default_factory=dict)
    """Of the control socket, by name."""
    read_methods: set[str] = field(default_factory=set)
    """Names of the methods that change nothing: what the members of `[nf] socket_group` may use."""
    starters: list[Callable[[], None]] = field(default_factory=list)
    """Called once the daemon is ready."""

    def register_method(self, name: str, method: Method, *, reads: bool = False) -> None:
        """Answer `name` on the control socket. reads: it changes nothing, so that operators without root may use it.

        HostError when a plugin answers it already.
        """
        if name in self.methods:
            raise HostError(f"two plugins answer {name!r} on the daemon's socket: leave one of them out")
        self.methods[name] = method
        if reads:
            self.read_methods.add(name)

    def when_running(self, start: Callable[[], None]) -> None:
        """Call `start` once the daemon is ready, on the event loop's thread; never where there is no daemon."""
        self.starters.append(start)


@dataclass
class Context:
    """One run, as plugins see it."""

    config: Config
    devices: Sequence[Device]
    strategy: StrategyInfo | None
    """None: no interface is accelerated."""
    marks: MarkAllocator
    strategist: str | None = None
    """The plugin that offers the strategy."""
    tracing: bool = False
    """True under `nfcore trace`: nothing will be attached or pinned."""
    services: Services = field(default_factory=Services)
    locks: Locks = field(default_factory=Locks)
    """Held by this run: an interface is driven by one process."""
    state_file: StateFile = field(default_factory=StateFile)
    """Notes for the next run, so that it recognises what a killed one left."""
    nfs: list[NetworkFunction] = field(default_factory=list)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("nfcore"))

    def register_nf(self, nf: NetworkFunction) -> None:
        """Make a network function known to the engine; numbers it from 1."""
        nf.number = len(self.nfs) + 1
        self.nfs.append(nf)

    def devices_of(self, nf_name: str) -> list[Device]:
        """Give the devices whose chain names the network function."""
        names = {interface.name for interface in self.config.interfaces if nf_name in interface.chain}
        return [device for device in self.devices if device.name in names]
