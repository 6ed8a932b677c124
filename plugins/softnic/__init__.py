# SPDX-License-Identifier: Apache-2.0
"""A backend for softnic, a NIC emulated in eBPF. Needs no hardware."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from nfcore.api.config import NO_BACKEND, ConfigTable, InterfaceName, Section
from nfcore.api.context import Context
from nfcore.api.findings import Finding, finding_of
from nfcore.api.hookspecs import hookimpl
from nfcore.api.metrics import MetricFamily, counter
from nfcore.api.rules import Capabilities, Device, Outcomes, RuleBatch, split_cookies
from nfcore.errors import ConfigError, HostError, Problem, key_path
from nfcore.kernel.links import ports_of, read_link

from .backend import SoftnicBackend
from .commands import app as commands
from .layouts import NicCounter

NAME = "softnic"


def _path(value: object) -> str:
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise ValueError("should be the path of a folder, such as '/run/nfcore/bpf/softnic-eth1'")


class SoftnicTable(ConfigTable):
    """`[softnic]`."""

    pins: dict[InterfaceName, Annotated[str, BeforeValidator(_path)]] = Field(default={})
    """Interface → folder where `nfcore softnic create` has pinned the NIC in front of it."""


class SoftnicPlugin:
    """The backend's hooks, over one :class:`SoftnicBackend` per device."""

    def __init__(self) -> None:
        self._nics: dict[int, SoftnicBackend] = {}
        self._names: dict[int, str] = {}

    @hookimpl
    def config_section(self) -> Section:
        """Declare `[softnic]`."""
        return Section(SoftnicTable)

    @hookimpl
    def register_commands(self, app: typer.Typer) -> None:
        """Add `nfcore softnic`."""
        app.add_typer(commands, name=NAME)

    @hookimpl
    def preconditions(self, context: Context) -> Iterable[Finding]:
        """Check that nobody else has the NICs."""
        return [finding_of(f"{NAME}: lock", partial(_lock, context), "no other nfcore uses its NICs")]

    @hookimpl
    def setup(self, context: Context) -> None:
        """Open the NIC of every device that has this backend."""
        if not context.tracing:
            self._open(context)

    def _open(self, context: Context) -> None:
        _lock(context)
        optional = {each.name for each in context.config.interfaces if NO_BACKEND in each.offload}
        for device, pin_dir in _pin_dirs(context):
            where = f"{context.config.source}: {key_path('softnic.pins', device.name)}"
            open_nic = SoftnicBackend.expect if device.name in optional else SoftnicBackend.open
            self._nics[device.ifindex] = open_nic(pin_dir, where)
            self._names[device.ifindex] = device.name

    @hookimpl
    def teardown(self) -> None:
        """Close the NICs' maps; the NICs stay."""
        for nic in self._nics.values():
            nic.close()
        self._nics.clear()

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        """Give what the NIC can do: nothing while there is none."""
        return self._nics[device.ifindex].capabilities()

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Install rules in the NIC's table."""
        return self._nics[device.ifindex].install(rules)

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Remove rules from the NIC's table."""
        return self._nics[device.ifindex].remove(rules)

    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        """Read all rules with their counters."""
        return self._nics[device.ifindex].dump()

    @hookimpl
    def collect_stats(self) -> Iterable[MetricFamily]:
        """Give the NIC's own counters by interface."""
        text = "Frames in the emulated NIC, by what it did."
        family = counter("nfcore_softnic_packets_total", text, "packets", "interface", "kind")
        for ifindex, nic in self._nics.items():
            for which, value in zip(NicCounter, nic.counters().tolist(), strict=True):
                family.add(value, interface=self._names[ifindex], kind=which.name.lower())
        return [family]

    @hookimpl
    def cleanup(self, context: Context) -> Iterable[str]:
        """Remove the rules of a killed daemon. The NIC itself stays, as hardware does."""
        self._open(context)
        try:
            return [line for ifindex, nic in self._nics.items() if (line := _remove_rules(nic, self._names[ifindex]))]
        finally:
            self.teardown()


def _lock(context: Context) -> None:
    """Lock the NICs. HostError, ConfigError: see :func:`_pin_dirs`."""
    for _, pin_dir in _pin_dirs(context):
        context.locks.folder(pin_dir)


def _pin_dirs(context: Context) -> Iterator[tuple[Device, Path]]:
    """Yield each device that has this backend, with the folder of its NIC.

    ConfigError: a folder is for an interface that there is not. HostError: no NIC can stand in front of the device.
    """
    table = context.config.sections[NAME]
    assert isinstance(table, SoftnicTable), "config_section() declares it"
    known = [each.name for each in context.config.interfaces]
    unknown = [name for name in table.pins if name not in known]
    if unknown:
        message = f"belongs to no interface; those of [[interfaces]] are: {', '.join(known)}"
        problems = [Problem(key_path(f"{NAME}.pins", name), message) for name in unknown]
        raise ConfigError(context.config.source, problems)
    for device in context.devices:
        if NAME in device.backends:
            _refuse_aggregate(device)
            yield device, Path(table.pins.get(device.name, f"/run/nfcore/bpf/softnic-{device.name}"))


def _refuse_aggregate(device: Device) -> None:
    """HostError when packets of a device come by several wires: one emulated NIC stands in front of one."""
    link = read_link(device.ifindex)
    if link is not None and link.is_aggregate:
        ports = ", ".join(port.name for port in ports_of(device.ifindex)) or "none yet"
        raise HostError(
            f"{device.name} is a {link.kind} (its ports: {ports}), and softnic emulates one NIC on one wire: "
            f'set offload = ["none"] for this interface, or name one port in [[interfaces]]'
        )


def _remove_rules(nic: SoftnicBackend, name: str) -> str:
    """Remove nfcore's rules from a NIC; returns a line about it, empty when there were none."""
    rules = nic.dump()["rule"]
    own, _, _ = split_cookies(rules["cookie"])
    nic.remove(RuleBatch(np.ascontiguousarray(rules[own])))
    count = int(own.sum())
    return f"{NAME}: removed {count} rules from {name}" if count else ""
