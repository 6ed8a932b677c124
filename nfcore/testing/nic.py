# SPDX-License-Identifier: Apache-2.0
"""The NIC under test: the backend plugin, and what else the author's fixture can do with the NIC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..api.rules import Capabilities, Device

ABILITIES = {
    "send": "send frames to the NIC",
    "restart": "simulate a new process",
    "table_size": "fill the NIC's table",
    "foreign": "install a rule of another program",
    "leftovers": "list what is left of the plugin",
    "arrival": "see how frames arrive",
}
"""Ability → what the test can do with it, for messages: optional fields of :class:`NicUnderTest`, and `arrival`, which
is missing when `send` returns None. They are the keys of its `lacks`."""


def require_known(what: str, lacks: Mapping[str, str], abilities: Mapping[str, str]) -> None:
    """ValueError for a key of `lacks` that is no ability."""
    if unknown := sorted(lacks.keys() - abilities.keys()):
        raise ValueError(f"{what}.lacks has {unknown[0]!r}; its keys are {', '.join(abilities)}")


@dataclass(frozen=True)
class Seen:
    """How frames arrived at the network function."""

    marks: Mapping[int, int] = field(default_factory=dict)
    """Mark → number of frames that arrived with it; 0: without a mark."""
    dropped: int = 0
    """Frames that did not arrive."""


@dataclass
class NicUnderTest:
    """What the fixture `nic` returns.

    If an ability is missing, tests that need it are *not applicable* when `lacks` has the reason, else *skipped*.
    """

    plugin: object
    """The plugin object, set up for `device`."""
    device: Device
    """The device that the hooks get; the first of its `backends` is the plugin's name in messages."""
    capabilities: Capabilities | None = None
    """The correct result of `probe_offload`, if the author knows it; None: it is not compared."""
    send: Callable[[bytes, int], Seen | None] | None = None
    """Send a frame that many times and wait until all have passed the NIC. Returns how they arrived, None if only the
    NIC's counters can show it. Frames are complete Ethernet frames to the broadcast address, with right checksums."""
    restart: Callable[[], object] | None = None
    """Drop the plugin object as a killed process does, without `teardown`, and set up a new one as the next process
    does. Returns the new object, or None if it has set `plugin` itself."""
    table_size: int | None = None
    """Rules that fit, at least eight, if the suite may fill the table; None: `Capabilities.table_size` if that is at
    most :data:`FILLABLE`."""
    foreign: Callable[[], Callable[[], bool]] | None = None
    """Install a rule as another program would. Returns a function: whether that rule is still installed."""
    leftovers: Callable[[], Sequence[str]] | None = None
    """Lists what the plugin has left on the machine after `teardown`, a line each: rules, qdiscs, pins, files."""
    protocols: Sequence[str] = ("tcp", "udp")
    """Protocols that the NIC matches."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Missing ability, a key of :data:`ABILITIES` → the reason."""
    patience: float = 5.0
    """Seconds that counters, and the end of marks of removed rules, may be late."""
    batch: int = 500
    """Rules in a batch of the throughput test, which has four batches."""
    messages: list[str] = field(default_factory=list)
    """Messages that the plugin has returned so far; a plugin need not repeat a message."""

    def __post_init__(self) -> None:
        require_known("NicUnderTest", self.lacks, ABILITIES)

    @property
    def name(self) -> str:
        """The plugin's name, for messages."""
        return self.device.backends[0] if self.device.backends else type(self.plugin).__name__


FILLABLE = 4096
"""Rules in the largest table that the suite fills if `NicUnderTest.table_size` is not set."""
