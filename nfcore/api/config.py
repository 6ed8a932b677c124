# SPDX-License-Identifier: Apache-2.0
"""The configuration as pydantic models: the tables of the core, the base of plugins' tables, and the whole `Config`.

The core has the tables `nf`, `interfaces`, `marking` and `offload`; each plugin has the table of its name.
`nfcore.config` reads and checks the TOML.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from ..errors import ConfigError, Problem, Remark, describe_error

_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
NO_BACKEND = "none"
MAX_QUEUE_BITS = 12
"""Linux allows a device at most 4,096 receive queues."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_duration(value: object) -> float:
    """Read a text such as ``30s`` or ``1.5ms`` as seconds; ValueError explains the form."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|m|h)", value) if isinstance(value, str) else None
    if not found or not math.isfinite(float(found[1])):
        raise ValueError("should be a duration with its unit, such as '30s', '500ms' or '5m'")
    return float(found[1]) * _DURATION_UNITS[found[2]]


def format_duration(seconds: float) -> str:
    """Write seconds so that :func:`parse_duration` reads the same float: in the largest unit without a fraction."""
    for unit, size in reversed(_DURATION_UNITS.items()):
        if seconds >= size and round(seconds / size) * size == seconds:
            return f"{round(seconds / size)}{unit}"
    return f"{Decimal(repr(seconds)).normalize():f}s"


Duration = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(format_duration)]
"""Seconds, written in the TOML as a text with a unit."""


class ConfigTable(BaseModel):
    """Base of all TOML tables: unknown keys and wrong types are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)


def parse_interface(value: object) -> str:
    """Check the name of a network interface; ValueError explains the form."""
    if isinstance(value, str) and re.fullmatch(r"[^/\s\x00]{1,15}", value):
        return value
    raise ValueError("should be the name of an interface: at most 15 characters, no '/' and no white space")


InterfaceName = Annotated[str, BeforeValidator(parse_interface)]
"""Name of a network interface, whether it exists or not."""


def _socket_path(value: object) -> str:
    path = Path(value) if isinstance(value, str) and "\0" not in value else Path()
    # The address of a unix socket holds 107 bytes.
    fits = len(os.fsencode(path)) <= 107 and path.is_absolute() and path.name
    if not fits or re.search(r"\.(state|chain|flows)(\.new)?$", path.name):
        raise ValueError(
            "should be the absolute path of a socket, at most 107 bytes, not ending in .state, .chain or .flows, "
            "as files beside another daemon's socket do"
        )
    return str(value)


def _group_name(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[^:,\s\x00]{0,32}", value):
        return value
    raise ValueError("should be the name of a group, at most 32 characters, or empty")


def parse_network(value: object) -> Network:
    """Read an address or a prefix; ValueError explains the form."""
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError as error:
        hint = f" ({error})" if isinstance(value, str) and "host bits" in str(error) else ""
        raise ValueError(f"should be an IPv4 or IPv6 address, or a prefix such as '198.18.10.0/24'{hint}") from None


class NfTable(ConfigTable):
    """`[nf]`: the daemon."""

    plugins: list[str] = Field(min_length=1)
    """The plugins to load, and no others."""
    socket: Annotated[str, BeforeValidator(_socket_path)] = "/run/nfcore/nfcore.sock"
    """The control socket, by which commands such as `nfcore stats` reach the daemon."""
    socket_group: Annotated[str, BeforeValidator(_group_name)] = ""
    """Group whose members may use the read-only methods of the socket; empty: only root may use any."""
    order_group: Annotated[str, BeforeValidator(_group_name)] = ""
    """Group whose members may also give orders for flows (`nfcore flow`); empty: only root may."""
    hook_patience: Annotated[Duration, Field(ge=1.0, le=3600.0)] = "5s"  # type: ignore[assignment]
    """How long a plugin's hook may block the event loop before it is interrupted."""
    events_kept: int = Field(default=65_536, ge=1_000, le=16_000_000)
    """Number of past events of flows that `nfcore events` can show."""

    def beside_socket(self, ending: str) -> Path:
        """Give the path of a file that belongs to this socket and to no other: its whole name, and an ending."""
        path = Path(self.socket)
        return path.with_name(path.name + ending)

    @property
    def call_pins(self) -> Path:
        """Folder for the pins of maps by which programs call each other."""
        return self.beside_socket(".chain")


class InterfaceTable(ConfigTable):
    """`[[interfaces]]`: one device."""

    name: InterfaceName
    chain: list[str] = Field(min_length=1, max_length=8)
    """Network functions in the order in which they see a packet."""
    offload: list[str] = Field(default=[NO_BACKEND], min_length=1)
    """Offload backends, best first; with `none` the remaining flows get no rule."""
    xdp_mode: Literal["native", "generic", "auto"] = "native"
    """`auto` falls back to generic, which is slow and works with few carriers."""


class MarkingTable(ConfigTable):
    """`[marking]`: what a mark means, and how it gets from the NIC to XDP."""

    strategy: str = "dest-id"
    carrier: Literal["metadata", "skb-mark", "rx-queue"] = "metadata"
    width: int = Field(default=16, ge=1, le=24)
    """Bits of a mark that both NIC and carrier can transport."""
    quarantine: Duration = "1s"  # type: ignore[assignment]
    """How long a released mark is not used before it may mean something else."""
    pool_chunk: int = Field(default=512, ge=2, le=4095)
    """Marks leased to a CPU at a time (flow-id)."""


class OffloadTable(ConfigTable):
    """`[offload]`: which flows get a rule, and for how long."""

    min_packets: int = Field(default=8, ge=1, le=32_767)
    """Packets on the slow path before a flow is reported."""
    min_rate: float = Field(default=0.0, ge=0.0, le=1e9)
    """Packets a second that a flow must have between two reports to get a rule; 0: no minimum."""
    exclude: list[Annotated[Network, BeforeValidator(parse_network), PlainSerializer(str)]] = Field(default=[])
    """Prefixes; a flow whose source or destination is in one never gets a rule."""
    max_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of `max_rules` that the flows of one VIP may hold."""
    inserts_per_second: float = Field(default=5_000.0, ge=0.0, le=1e9)
    """Rules installed per second and device, on average; 0: no limit."""
    insert_burst: int = Field(default=5_000, ge=1)
    """Rules that may be installed at once, after a quiet time."""
    max_rules: int = Field(default=60_000, ge=1, le=16_000_000)
    waiting: int = Field(default=16_384, ge=1, le=1_000_000)
    """Flows that wait until rate and table allow a rule; beyond this number the coldest are refused (`shed`)."""
    remembered: int = Field(default=65_536, ge=20_000, le=16_000_000)
    """Flows without a rule whose reason is remembered."""
    idle_timeout: Annotated[Duration, Field(ge=0.1)] = "30s"  # type: ignore[assignment]
    """A rule whose counter has not changed for this time is removed; sooner while the table is nearly full."""
    counter_lag: Duration = "1s"  # type: ignore[assignment]
    """By how much the NIC's counters may be late; this time does not count as idle."""
    grace: Duration = "100ms"  # type: ignore[assignment]
    """Time between the removal of a rule and of the entry of its mark: marked packets are still on their way."""
    events: Literal["ringbuf", "perf"] = "ringbuf"
    """The kind of buffer by which XDP reports flows."""


CheckTable = Callable[[Mapping[str, Any], str], Iterable[Problem]]
"""Further checks of a plugin's raw table; the text is the path of the table. Runs also when single values are wrong.

A `nfcore.errors.Remark` among the problems is told and hinders nothing.
"""
CheckWhole = Callable[["Config"], Iterable[Problem]]
"""Checks of a plugin's table against other tables, such as `[marking]`. Runs once all of them could be read."""


@dataclass(frozen=True)
class Section:
    """A plugin's TOML table: its model, and checks that the types of the model cannot express."""

    model: type[ConfigTable]
    check: CheckTable | None = None
    count_targets: Callable[[Any], int] | None = None
    """For a network function: gives the number of targets in a table (a `model`); each needs its own mark."""
    check_whole: CheckWhole | None = None


@dataclass(frozen=True)
class Config:
    """A configuration that passed every check."""

    source: str
    nf: NfTable
    interfaces: Sequence[InterfaceTable]
    marking: MarkingTable
    offload: OffloadTable
    sections: Mapping[str, ConfigTable] = field(default_factory=dict)
    """Plugin name → its table."""
    overrides: Sequence[str] = ()
    """The ``key.path=VALUE`` that were applied to the file."""
    remarks: Sequence[Remark] = ()
    """What the checks found that is allowed and hardly meant."""

    def resolved(self) -> dict[str, Any]:
        """Give all values that are in effect, defaults included, as the TOML would have them.

        ConfigError: a plugin's table cannot be written.
        """
        tables: dict[str, Any] = {
            "nf": self.nf.model_dump(mode="json"),
            "interfaces": [interface.model_dump(mode="json") for interface in self.interfaces],
            "marking": self.marking.model_dump(mode="json"),
            "offload": self.offload.model_dump(mode="json"),
        }
        for name, table in self.sections.items():
            try:
                tables[name] = _without_none(table.model_dump(mode="json", by_alias=True))
            except Exception as error:  # the model is the plugin's
                problem = Problem(name, f"plugin {name!r} cannot write its table: {describe_error(error)}")
                raise ConfigError(self.source, [problem]) from error
        return tables


def _without_none(value: Any) -> Any:
    """Drop None, which TOML does not have. pydantic's exclude_none also drops a None that is serialized as a text."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value
