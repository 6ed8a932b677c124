# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="empty-body"
"""The context of one run: what a plugin gets in `setup`, and where it registers network functions and methods."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import HostError
from ..kernel import Map
from .config import Config
from .flows import FlowBatch
from .health import Health
from .locks import Locks
from .mark_owners import MarkOwners, NoOwners
from .marks import MarkAllocator, StrategyInfo
from .metrics import MetricFamily
from .network_function import NetworkFunction, TargetFacts
from .rules import Device
from .state_file import StateFile

Method = Callable[[Mapping[str, Any]], Any]
"""A method of the control socket: takes parameters and gives a JSON value, or an awaitable of one if it has to wait.
A long list is a :class:`~nfcore.api.json_rows.JsonRows`. A method runs on the event loop and must not block."""


@dataclass(frozen=True)
class FlowFacts:
    """What the engine knows of flows that a network function has ordered: a row per flow."""

    known: NDArray[np.bool_]
    """Whether the engine tracks the flow."""
    in_hardware: NDArray[np.bool_]
    reason: NDArray[np.uint8]
    """:class:`~.reasons.Reason` why it has no rule; 0: none is known."""
    counts: NDArray[np.uint64]
    """Packets and bytes that the NIC has counted for the flow's present rule, shape (rows, 2)."""
    idle: NDArray[np.float64]
    """Seconds since the NIC's counter was seen to grow; infinite when it has not."""

    @classmethod
    def none(cls, length: int) -> FlowFacts:
        """Know nothing of so many flows."""
        zeros = np.zeros(length, dtype=np.bool_)
        reasons, counts = np.zeros(length, dtype=np.uint8), np.zeros((length, 2), dtype=np.uint64)
        return cls(zeros, zeros.copy(), reasons, counts, np.full(length, np.inf))


@dataclass(frozen=True)
class Forgotten:
    """Flows that the engine has forgotten: no mark, rule or record leads to their old targets any more."""

    flows: FlowBatch
    """Those that had a rule or waited for one. Nothing is kept for them now (:meth:`NetworkFunction.let_go`)."""
    rules: int
    """How many of them had a rule, or were about to get it. Packets that it marks follow it until it is gone."""
    left: Callable[[], int]
    """How many rules of forgotten flows, of this call or another, may still be on a NIC."""

    @classmethod
    def none(cls) -> Forgotten:
        """Have forgotten nothing."""
        return cls(FlowBatch.empty(), 0, lambda: 0)


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
    flow_facts: Callable[[FlowBatch], FlowFacts] = field(default=lambda batch: FlowFacts.none(len(batch)))
    """Gives what the engine knows of ordered flows; key, family, nf and ifindex of a row name the flow."""
    read_counters: Callable[[], Callable[[], bool]] = field(default=lambda: lambda: True)
    """Has the counters of all NICs read now; the result tells whether that has happened."""
    claims_settled: Callable[[NetworkFunction], bool] = field(default=lambda nf: True)
    """Whether no NIC does what a function's changes have ended: withdrawn orders, marks for a later function."""
    take_reports: Callable[[], bool] = field(default=lambda: True)
    """Takes the reports of network functions that are there now, at most those of a turn; whether these were all."""
    forget_flows: Callable[[int, FlowBatch | NDArray[np.uint64]], Forgotten] = field(
        default=lambda nf, flows: Forgotten.none()
    )
    """Forgets flows of a network function, by its number: these flows (key and family), or all to these targets. The
    function itself forgets them, too, and decides anew where their next packets go."""
    methods: dict[str, Method] = field(default_factory=dict)
    """Name → method of the control socket."""
    read_methods: set[str] = field(default_factory=set)
    """Names of the methods that change nothing; members of `[nf] socket_group` may use them."""
    order_methods: set[str] = field(default_factory=set)
    """Names of the methods that give orders for flows; members of `[nf] order_group` may use them."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by a reload, and by a plugin's method while it changes what a reload changes, too."""
    changed_at_run_time: set[str] = field(default_factory=set)
    """Plugins in which something else is in effect than their table says: the next reload has them take it over."""
    starters: list[Callable[[], None]] = field(default_factory=list)
    """Functions to call once the daemon is ready."""

    def register_method(self, name: str, method: Method, *, reads: bool = False, orders: bool = False) -> None:
        """Add a method to the control socket. HostError when the socket has a method of this name.

        reads: it changes nothing, so that users without root may call it: members of `[nf] socket_group`. orders: it
        gives orders for flows, which is for members of `[nf] order_group`. Without either: for root alone.
        """
        if name in self.methods:
            raise HostError(f"two plugins have the method {name!r} of the daemon's socket: leave one of them out")
        self.methods[name] = method
        if reads:
            self.read_methods.add(name)
        if orders:
            self.order_methods.add(name)

    def when_running(self, start: Callable[[], None]) -> None:
        """Have `start` called on the event loop's thread once the daemon is ready; without a daemon, never."""
        self.starters.append(start)


@dataclass(frozen=True)
class ChainBuild:
    """What the program of a network function is built with, so that it can pass packets on (`bpf/lib/chain.h`).

    Both are empty for the last function of a chain, and for the only one.
    """

    defines: Mapping[str, int] = field(default_factory=dict)
    maps: Mapping[str, Map] = field(default_factory=dict)


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
    looking: bool = False
    """`nfcore doctor` asks: what is on the devices, of a running daemon or a killed one, is to stay as it is."""
    services: Services = field(default_factory=Services)
    mark_owners: MarkOwners = field(default_factory=NoOwners)
    chain_builds: Mapping[str, ChainBuild] = field(default_factory=dict)
    """What each function is built with that has another one behind it; :meth:`chain_build` reads it."""
    locks: Locks = field(default_factory=Locks)
    """The locks of this run: only one process at a time may use an interface."""
    state_file: StateFile = field(default_factory=StateFile)
    """Values for the next run, so that it recognises what a killed one left."""
    nfs: list[NetworkFunction] = field(default_factory=list)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("nfcore"))

    def register_nf(self, nf: NetworkFunction) -> None:
        """Add a network function for the engine and give it a number, from 1.

        The daemon refuses one that lacks a part of the protocol when the plugin's `setup` is through.
        """
        nf.number = len(self.nfs) + 1
        self.nfs.append(nf)

    def target_facts(self, nf: int, target: int) -> TargetFacts:
        """Give what a network function, by its number, says of a target; nothing where there is no such function."""
        return self.nfs[nf - 1].target_facts(target) if 0 < nf <= len(self.nfs) else TargetFacts()

    def chain_build(self, nf_name: str) -> ChainBuild:
        """Give the compiler flags and maps by which a network function passes packets on to the next of its chain."""
        return self.chain_builds.get(nf_name, ChainBuild())

    def earlier_functions(self, nf: NetworkFunction, ifindex: int) -> list[NetworkFunction]:
        """Give the network functions that come before one in the chain of a device."""
        names = {device.name for device in self.devices if device.ifindex == ifindex}
        chain = next((each.chain for each in self.config.interfaces if each.name in names), [])
        before = chain[: chain.index(nf.name)] if nf.name in chain else []
        return [each for each in self.nfs if each.name in before]

    def devices_of(self, nf_name: str) -> list[Device]:
        """Give the devices whose chain names the network function."""
        names = {interface.name for interface in self.config.interfaces if nf_name in interface.chain}
        return [device for device in self.devices if device.name in names]
