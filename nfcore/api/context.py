# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="empty-body"
"""What a plugin is given at `setup`, and what a network function gives back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import HostError
from .config import Config
from .flows import FlowBatch
from .health import Health
from .locks import Claims
from .marks import CpuPools, MarkAllocator, StrategyInfo
from .metrics import MetricFamily
from .rules import Device
from .state_file import State

Method = Callable[[Mapping[str, Any]], Any]
"""A method of the control socket: parameters in, JSON out, or an awaitable of it when there is something to wait for.
Long lists go in as :class:`~nfcore.api.json_rows.Rows`. It runs on the event loop and must not block."""


class NetworkFunction(Protocol):
    """What the engine needs of an NF. `number` is given by :meth:`Context.register_nf`."""

    name: str
    number: int
    pools: CpuPools | None
    """Leased marks, when the strategy lets XDP take them."""

    def wake_fds(self) -> Sequence[int]:
        """Descriptors that become readable when a report cannot wait for the next look."""

    def read_events(self, limit: int) -> FlowBatch:
        """Take up to `limit` reports of new flows; never waits."""

    def targets(self) -> FlowBatch:
        """All targets in the configuration's order, a row each with nf and target set and the key zero."""

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Give the group of each target, a small number: what shares of the NIC's table are granted to."""

    def describe(self, target: int) -> Mapping[str, str]:
        """Name a target for people, such as ``{"vip": "198.18.10.1:80/tcp", "real": "198.18.20.11"}``."""

    def fingerprint(self) -> bytes:
        """Whatever decides which number stands for what: equal in two runs, targets mean the same in both."""

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Fill in the targets of flows whose rules an earlier run left; False where a mark does not lead there.

        Asked at the start, after the targets were published, and only when the fingerprints of both runs are equal.
        """

    def attach(self, device: Device) -> None:
        """Put the program on the device. HostError when that cannot be."""

    def detach(self, device: Device) -> None:
        """Take the program off the device, if it is still ours."""


@dataclass(frozen=True)
class PacketTrace:
    """What a program did with one frame."""

    verdict: str
    """``XDP_TX``, ``XDP_PASS``, ``XDP_DROP``, …"""
    output: bytes
    """The frame afterwards, without metadata."""
    path: str
    """``fast`` by a mark, ``slow`` by lookup, ``none`` when it was no traffic of the NF."""
    vip: str | None
    real: str | None
    why: str = ""
    """In words, what kept it from the fast path or from being sent; not part of the JSON."""


@dataclass
class Context:
    """The world of one run, as plugins may see it."""

    config: Config
    devices: Sequence[Device]
    strategy: StrategyInfo | None
    """None: no interface is accelerated."""
    marks: MarkAllocator
    strategist: str | None = None
    """The plugin that offers the strategy."""
    tracing: bool = False
    """True under `nfcore trace`: nothing will be attached or pinned."""
    claims: Claims = field(default_factory=Claims)
    """Locks that this run holds: an interface is driven by one process."""
    state: State = field(default_factory=State)
    """Kept for the next run, so that it recognises what a killed one left."""
    nfs: list[NetworkFunction] = field(default_factory=list)
    methods: dict[str, Method] = field(default_factory=dict)
    questions: set[str] = field(default_factory=set)
    """Names of the methods that change nothing: what the members of `[nf] socket_group` may use."""
    collect: Callable[[], Iterable[tuple[str, Iterable[MetricFamily]]]] = field(default=lambda: ())
    """Everybody's figures with their plugin's name. Works once the engine is there."""
    figures: list[Callable[[], Iterable[MetricFamily]]] = field(default_factory=list)
    """Figures of the core that are not the engine's, part of `collect`."""
    blame: Callable[[str, str, str], None] = field(default=lambda plugin, hook, words: None)
    """Counts and logs a plugin's fault: plugin, hook, words. Works once the engine is there."""
    soon: Callable[[Callable[[], None]], None] = field(default=lambda job: job())
    """Runs a job on the event loop's thread, soon; for any thread. Without an event loop: now."""
    starters: list[Callable[[], None]] = field(default_factory=list)
    health: Health = field(default_factory=Health)
    """Whether the daemon is alive."""
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("nfcore"))

    def register_nf(self, nf: NetworkFunction) -> None:
        """Make a network function known to the engine; numbers it from 1."""
        nf.number = len(self.nfs) + 1
        self.nfs.append(nf)

    def register_method(self, name: str, method: Method, *, reads: bool = False) -> None:
        """Answer `name` on the control socket. reads: it changes nothing, so that operators without root may ask it.

        HostError when somebody answers it already.
        """
        if name in self.methods:
            raise HostError(f"two want to answer {name!r} on the daemon's socket: leave one of the plugins out")
        self.methods[name] = method
        if reads:
            self.questions.add(name)

    def when_running(self, start: Callable[[], None]) -> None:
        """Call `start` once the daemon is ready, on the event loop's thread; never where there is no daemon."""
        self.starters.append(start)

    def devices_of(self, nf_name: str) -> list[Device]:
        """Give the devices whose chain names the network function."""
        names = {interface.name for interface in self.config.interfaces if nf_name in interface.chain}
        return [device for device in self.devices if device.name in names]
