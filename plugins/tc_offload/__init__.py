# SPDX-License-Identifier: Apache-2.0
"""The backend tc_offload: installs rules as TC flower filters, for any NIC whose driver offloads them."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from nfcore.api.config import ConfigTable, InterfaceName, Section, parse_interface
from nfcore.api.context import Context
from nfcore.api.findings import Finding, finding_of
from nfcore.api.hookspecs import hookimpl
from nfcore.api.metrics import MetricFamily, counter, gauge
from nfcore.api.rules import Capabilities, Device, Outcomes, RuleBatch
from nfcore.errors import ConfigError, HostError, Problem, key_path

from .backend import Settings, TcBackend
from .shapes import PRIORITIES

NAME = "tc_offload"
_COUNTERS = {
    "installed": "Rules installed.",
    "removed": "Rules removed.",
    "refused": "Refusals by the kernel or the driver, each kind once per batch.",
    "vanished": "Rules that another program removed or the hardware lost.",
    "unheard": "Netlink messages whose acknowledgement was lost; a dump finds out what they did.",
    "resyncs": "Dumps that compared the known rules with those of the kernel.",
}


def _filter_on(value: object) -> str:
    return "" if value == "" else parse_interface(value)


class DeviceTable(ConfigTable):
    """`[tc_offload.devices.NAME]`: where the rules of interface NAME are installed."""

    filter_on: Annotated[str, BeforeValidator(_filter_on)] = ""
    """Interface that carries the filters: empty for NAME itself; its veth peer for marks that the kernel sets."""
    direction: Literal["ingress", "egress"] = "ingress"
    """`egress` of the veth peer is what NAME receives."""


class TcOffloadTable(ConfigTable):
    """`[tc_offload]`."""

    prio: int = Field(default=6000, ge=1, le=0xFFFF - PRIORITIES + 1)
    """First of the 16 filter priorities that only nfcore may use, on every device."""
    skip_sw: Literal["auto", "on", "off"] = "auto"
    """`on`: rules in hardware only; `off`: the kernel evaluates them, too; `auto`: `on` where the driver accepts it."""
    last_used: bool = False
    """Also read when each rule was last hit: reading counters then takes about twice the time."""
    devices: dict[InterfaceName, DeviceTable] = Field(default={})


class TcOffloadPlugin:
    """The hooks of the plugin; a :class:`TcBackend` per device does the work."""

    def __init__(self) -> None:
        self._backends: dict[int, TcBackend] = {}
        self._names: dict[int, str] = {}
        self._probed: set[int] = set()
        """ifindexes of devices for which `probe_offload` was called."""

    @hookimpl
    def config_section(self) -> Section:
        """Declare `[tc_offload]`."""
        return Section(TcOffloadTable, _check)

    @hookimpl
    def preconditions(self, context: Context) -> Iterable[Finding]:
        """Check that nobody else has the interfaces that carry the filters."""
        return [finding_of(f"{NAME}: lock", partial(_lock, context), "no other nfcore uses its interfaces")]

    @hookimpl
    def setup(self, context: Context) -> None:
        """Probe every device that names this backend, and take over the rules of an earlier run on it."""
        if context.tracing:
            return
        _lock(context)
        for device, settings in _settings(context):
            backend = TcBackend(settings)
            # Stored before open(), so that teardown also cleans up after an open() that fails.
            self._backends[device.ifindex], self._names[device.ifindex] = backend, device.name
            backend.open(looking=context.looking)

    @hookimpl
    def teardown(self) -> None:
        """Remove the qdiscs that nfcore created and that nobody else uses, and close the sockets."""
        for backend in self._backends.values():
            backend.close()
        self._backends.clear()
        self._probed.clear()

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        """Return what the device can do. The first call returns what setup() found; later calls probe again."""
        backend = self._backends[device.ifindex]
        if device.ifindex in self._probed:
            backend.reprobe()
        self._probed.add(device.ifindex)
        return backend.capabilities()

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Install rules."""
        return self._backends[device.ifindex].install(rules)

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Remove rules."""
        return self._backends[device.ifindex].remove(rules)

    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        """Read rules and counters."""
        return self._backends[device.ifindex].dump()

    @hookimpl
    def collect_stats(self) -> Iterable[MetricFamily]:
        """Return the counters of each device; does not call the kernel."""
        families = []
        for key, help_text in _COUNTERS.items():
            family = counter(f"nfcore_tc_{key}_total", help_text, "rules", "interface")
            for ifindex, backend in self._backends.items():
                family.add(backend.counts[key], interface=self._names[ifindex])
            families.append(family)
        rules = gauge("nfcore_tc_rules", "nfcore's flower rules on the device.", "rules", "interface")
        for ifindex, backend in self._backends.items():
            rules.add(backend.held, interface=self._names[ifindex])
        return [*families, rules]

    @hookimpl
    def cleanup(self, context: Context) -> Iterable[str]:
        """Remove the rules that a killed daemon left, and its qdisc if that has no other filters."""
        lines = []
        _lock(context)
        for _, settings in _settings(context):
            backend = TcBackend(settings)
            removed = backend.sweep()
            if removed:
                lines.append(f"{NAME}: removed {removed} rules from {settings.filter_on} {settings.direction}")
            if backend.close():
                lines.append(f"{NAME}: removed qdisc clsact from {settings.filter_on}")
        return lines


def _check(raw: Mapping[str, Any], path: str) -> Iterator[Problem]:
    devices = raw.get("devices")
    for name, device in devices.items() if isinstance(devices, dict) else ():
        if isinstance(device, dict) and device.get("direction") == "egress" and not device.get("filter_on"):
            message = f"is 'egress'; what leaves {name} does not pass its XDP program: set filter_on to its veth peer"
            yield Problem(key_path(f"{path}.devices", name, "direction"), message)


def _lock(context: Context) -> None:
    """Lock the interfaces that carry the filters. HostError, ConfigError: see :func:`_settings`."""
    for _, settings in _settings(context):
        context.locks.interface(settings.filter_on, settings.ifindex)


def _settings(context: Context) -> Iterator[tuple[Device, Settings]]:
    """Yield each device that names this backend with its settings.

    ConfigError: a table is for a device that does not. HostError: there is no interface `filter_on`.
    """
    table = context.config.sections[NAME]
    assert isinstance(table, TcOffloadTable)  # by config_section()
    known = [interface.name for interface in context.config.interfaces if NAME in interface.offload]
    unknown = [name for name in table.devices if name not in known]
    if unknown:
        message = f'belongs to no interface with offload = ["{NAME}"]; those are: {", ".join(known) or "none"}'
        problems = [Problem(key_path(f"{NAME}.devices", name), message) for name in unknown]
        raise ConfigError(context.config.source, problems)
    for device in context.devices:
        if NAME not in device.backends:
            continue
        own = table.devices.get(device.name, DeviceTable())
        filter_on, ifindex = own.filter_on or device.name, device.ifindex
        if own.filter_on:
            try:
                ifindex = socket.if_nametoindex(own.filter_on)
            except OSError:
                key = key_path(f"{NAME}.devices", device.name, "filter_on")
                where = f"{context.config.source}: {key}"
                raise HostError(f"{where}: there is no interface {own.filter_on!r} in this network namespace") from None
        yield (
            device,
            Settings(
                filter_on,
                ifindex,
                own.direction,
                prio=table.prio,
                skip_sw=table.skip_sw,
                software_helps=ifindex != device.ifindex,
                terse=not table.last_used,
            ),
        )
