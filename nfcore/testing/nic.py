# SPDX-License-Identifier: Apache-2.0
"""A NIC before the suite: the plugin that drives it, and what else the author's fixture can do with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..api.rules import Capabilities, Device

ABILITIES = {
    "send": "put frames on its wire",
    "restart": "be found by a new process",
    "table_size": "be filled",
    "foreign": "hold a rule of somebody else",
    "leftovers": "tell what is left of the plugin",
}
"""Optional parts of :class:`NicUnderTest`, by what they let the NIC do."""


@dataclass(frozen=True)
class Seen:
    """How frames arrived at the network function."""

    marks: Mapping[int, int] = field(default_factory=dict)
    """Mark → frames that came with it; 0 for those without a mark."""
    dropped: int = 0
    """Frames that did not arrive."""


@dataclass
class NicUnderTest:
    """What a fixture `nic` gives.

    An ability that is missing and named in `lacks` makes the tests that need it not applicable; one that is missing
    without a word makes them skipped.
    """

    plugin: object
    """The plugin object, set up for `device`."""
    device: Device
    """As the core would hand it to the hooks; the first of its `backends` is the plugin's name in messages."""
    capabilities: Capabilities | None = None
    """What the NIC must say of itself, where the author knows; None to take what it says."""
    send: Callable[[bytes, int], Seen | None] | None = None
    """Put a frame on the wire so many times and wait until all are through: how they arrived, None where only the
    NIC's counters can tell. Frames are whole Ethernet frames to the broadcast address, checksums right."""
    restart: Callable[[], object] | None = None
    """Leave the NIC as a killed process does, without `teardown`, and set up a new plugin object as the next process
    would: the new object, or None when it was put into `plugin` here."""
    table_size: int | None = None
    """Rules that fit, eight or more, where filling the table is no trouble; None for what `capabilities` say, up to
    :data:`FILLABLE`."""
    foreign: Callable[[], Callable[[], bool]] | None = None
    """Put a rule of somebody else on the NIC, as another program would: what tells whether it still stands."""
    leftovers: Callable[[], Sequence[str]] | None = None
    """What of the plugin's is on the machine after `teardown`, a line each: rules, qdiscs, pins, files."""
    protocols: Sequence[str] = ("tcp", "udp")
    """Protocols that the NIC matches."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Name of a missing ability (:data:`ABILITIES`; `arrival`: `send` gives None) → why it cannot be."""
    patience: float = 5.0
    """Seconds that counters, and marks of removed rules, may be late."""
    batch: int = 500
    """Rules in a batch of the throughput test, which handles four of them."""
    heard: list[str] = field(default_factory=list)
    """Words that the plugin has given with refusals so far: they need not be given twice."""

    @property
    def name(self) -> str:
        """Name of the plugin, for messages."""
        return self.device.backends[0] if self.device.backends else type(self.plugin).__name__


FILLABLE = 4096
"""Rules in the largest table that the suite fills without being told so."""
