# SPDX-License-Identifier: Apache-2.0
"""tc_offload: rules as flower filters, which any NIC with TC offload takes, as an ordinary offload backend."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nfcore.api.config import ConfigTable, Section
from nfcore.api.context import Context
from nfcore.api.hookspecs import hookimpl
from nfcore.api.metrics import MetricFamily, counter, gauge
from nfcore.api.rules import Capabilities, Device, Outcomes, RuleBatch
from nfcore.control.client import daemon_answers
from nfcore.errors import ConfigError, HostError, Problem

from .backend import Settings, TcBackend
from .shapes import PRIORITIES

NAME = "tc_offload"
_COUNTERS = {
    "installed": "Rules that the kernel took.",
    "removed": "Rules that were removed.",
    "refused": "Refusals of the kernel or the driver, each kind once a batch.",
    "vanished": "Rules that somebody else removed or the hardware lost.",
    "unheard": "Messages whose answer was lost, settled by a dump.",
    "resyncs": "Dumps that settled a doubt.",
}


class DeviceTable(ConfigTable):
    """`[tc_offload.devices.NAME]`: where the rules of interface NAME sit."""

    filter_on: str = Field(default="", max_length=15)
    """Interface that carries the filters: empty for NAME itself; its veth peer for marks that the kernel sets."""
    direction: Literal["ingress", "egress"] = "ingress"
    """`egress` of the veth peer is what NAME receives."""


class TcOffloadTable(ConfigTable):
    """`[tc_offload]`."""

    prio: int = Field(default=6000, ge=1, le=0xFFFF - PRIORITIES + 1)
    """First of the 16 filter priorities that are ours alone on every device."""
    skip_sw: Literal["auto", "on", "off"] = "auto"
    """`on`: rules in hardware alone; `off`: the kernel evaluates them, too; `auto`: `on` where the driver agrees."""
    last_used: bool = False
    """Read when each rule was last hit, too: costs twice the time of reading counters."""
    devices: dict[str, DeviceTable] = Field(default={})


class TcOffloadPlugin:
    """The backend hooks over :class:`TcBackend`, one per device."""

    def __init__(self) -> None:
        self._backends: dict[int, TcBackend] = {}
        self._names: dict[int, str] = {}
        self._told: set[int] = set()
        """Devices whose capabilities were asked for before."""
        self._context: Context | None = None

    @hookimpl
    def config_section(self) -> Section:
        """Own `[tc_offload]`."""
        return Section(TcOffloadTable, _check)

    @hookimpl
    def setup(self, context: Context) -> None:
        """Find out what every device that names this backend can do, and take over the rules of ours on it."""
        if context.tracing:
            return
        self._context = context
        for device, settings in _settings(context):
            backend = TcBackend(settings)
            # Entered first: teardown gives back what open() leaves half done.
            self._backends[device.ifindex], self._names[device.ifindex] = backend, device.name
            # Beside a running daemon, as `nfcore doctor` may be, its qdisc is not ours to remove.
            alone = not daemon_answers(Path(context.config.nf.socket))
            backend.owns_qdisc = alone and context.state_file.recall(_qdisc_key(settings)) == settings.ifindex
            backend.open(alone=alone)
            self._note_qdisc(context, backend)

    @staticmethod
    def _note_qdisc(context: Context, backend: TcBackend) -> None:
        if backend.owns_qdisc:
            context.state_file.remember(_qdisc_key(backend.settings), backend.settings.ifindex)

    @hookimpl
    def teardown(self) -> None:
        """Remove the qdiscs that are ours and empty, and close the sockets."""
        for backend in self._backends.values():
            if self._context is not None and backend.owns_qdisc:
                self._note_qdisc(self._context, backend)
            if backend.close() and self._context is not None:
                self._context.state_file.forget(_qdisc_key(backend.settings))
        self._backends.clear()
        self._told.clear()

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        """Tell what the device can do: as tried at setup; asked again, as tried now."""
        backend = self._backends[device.ifindex]
        if device.ifindex in self._told:
            backend.reprobe()
        self._told.add(device.ifindex)
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
        """Give what happened on each device, without asking the kernel."""
        families = []
        for key, text in _COUNTERS.items():
            family = counter(f"nfcore_tc_{key}_total", text, "rules", "interface")
            for ifindex, backend in self._backends.items():
                family.add(backend.counts[key], interface=self._names[ifindex])
            families.append(family)
        held = gauge("nfcore_tc_rules", "Flower rules of ours on the device.", "rules", "interface")
        for ifindex, backend in self._backends.items():
            held.add(backend.held, interface=self._names[ifindex])
        return [*families, held]

    @hookimpl
    def cleanup(self, context: Context) -> Iterable[str]:
        """Remove the rules that a killed daemon left, and its qdisc when nothing else hangs on it."""
        lines = []
        for _, settings in _settings(context):
            backend = TcBackend(settings)
            backend.owns_qdisc = context.state_file.recall(_qdisc_key(settings)) == settings.ifindex
            removed = backend.sweep()
            if removed:
                lines.append(f"{NAME}: removed {removed} rules from {settings.filter_on} {settings.direction}")
            if backend.close():
                context.state_file.forget(_qdisc_key(settings))
                lines.append(f"{NAME}: removed qdisc clsact from {settings.filter_on}")
        return lines


def _qdisc_key(settings: Settings) -> str:
    return f"{NAME}.qdisc.{settings.filter_on}"


def _check(raw: Mapping[str, Any], path: str) -> Iterator[Problem]:
    devices = raw.get("devices")
    for name, device in devices.items() if isinstance(devices, dict) else ():
        if isinstance(device, dict) and device.get("direction") == "egress" and not device.get("filter_on"):
            message = f"is 'egress'; what leaves {name} never comes to its XDP program: set filter_on to its veth peer"
            yield Problem(f"{path}.devices.{name}.direction", message)


def _settings(context: Context) -> Iterator[tuple[Device, Settings]]:
    """Settings of every device that names this backend. ConfigError or HostError for a table of no such device."""
    table = context.config.sections[NAME]
    assert isinstance(table, TcOffloadTable)  # config_section() said so
    known = [interface.name for interface in context.config.interfaces if NAME in interface.offload]
    unknown = [name for name in table.devices if name not in known]
    if unknown:
        message = f'belongs to no interface with offload = ["{NAME}"]; those are: {", ".join(known) or "none"}'
        problems = [Problem(f"{NAME}.devices.{name}", message) for name in unknown]
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
                where = f"{context.config.source}: {NAME}.devices.{device.name}.filter_on"
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
