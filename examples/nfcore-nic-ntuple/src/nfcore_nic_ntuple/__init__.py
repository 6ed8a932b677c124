# SPDX-License-Identifier: Apache-2.0
"""nic_ntuple: an nfcore offload backend for NICs that steer flows to receive queues by ethtool's ntuple rules.

The number of the queue is the mark: `[marking] carrier = "rx-queue"`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from nfcore.api.config import Config, ConfigTable, Section
from nfcore.api.context import Context
from nfcore.api.findings import Finding, Status
from nfcore.api.hookspecs import hookimpl
from nfcore.api.metrics import MetricFamily, MetricKind
from nfcore.api.rules import Capabilities, Device, Outcomes, RuleBatch
from nfcore.control.client import daemon_answers
from nfcore.errors import HostError, Problem, key_path

from .backend import NtupleBackend, Settings
from .ethtool import EthtoolSocket, Ioctl, Nic
from .notes import Notes

NAME = "nic_ntuple"
CARRIER = "rx-queue"
_COUNTERS = {
    "installed": "Rules that were installed.",
    "removed": "Rules that were removed.",
    "refused": "Refusals, each reason once per batch.",
    "vanished": "Rules that another program removed or the NIC lost.",
}


def parse_locations(value: object) -> str:
    """Check a text such as ``512-1023``. ValueError."""
    found = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", value) if isinstance(value, str) else None
    if found is None or int(found[1]) > int(found[2]):
        raise ValueError("should be the first and the last location for nfcore, such as '512-1023'")
    return str(value)


class NtupleTable(ConfigTable):
    """`[nic_ntuple]`."""

    locations: dict[str, Annotated[str, BeforeValidator(parse_locations)]] = Field(default={})
    """Interface → first and last location that nfcore may use; any free one if it is not named."""


class NicNtuplePlugin:
    """The backend hooks over :class:`NtupleBackend`, one per device."""

    def __init__(self, open_ioctl: Callable[[Device], Ioctl] | None = None) -> None:
        """Call drivers by `open_ioctl`; by default through the kernel."""
        self._open_ioctl = open_ioctl or (lambda device: EthtoolSocket(device.ifindex))
        self._backends: dict[int, NtupleBackend] = {}
        self._names: dict[int, str] = {}
        self._alone = True
        """No daemon runs beside this process. Beside `nfcore doctor` one may run: then its rules are not touched."""
        self._close_calls: list[Callable[[], None]] = []

    @hookimpl
    def config_section(self) -> Section:
        """Own `[nic_ntuple]`."""
        return Section(NtupleTable, check_whole=check_whole)

    @hookimpl
    def setup(self, context: Context) -> None:
        """Open every device that has this backend, and find the rules that a killed run left there."""
        if context.tracing:
            return
        self._alone = not daemon_answers(Path(context.config.nf.socket))
        for device, settings in _settings(context):
            notes = self._open_notes(context, device)
            backend = NtupleBackend(self._ioctl(device), notes, settings)
            self._backends[device.ifindex], self._names[device.ifindex] = backend, device.name
            backend.open()

    def _open_notes(self, context: Context, device: Device) -> Notes:
        path = notes_path(context, device.ifindex)
        try:
            return Notes(path if self._alone else None)
        except OSError as error:
            raise HostError(f"{NAME}: its notes cannot be written to {path}: {error.strerror or error}") from None

    def _ioctl(self, device: Device) -> Ioctl:
        ioctl = self._open_ioctl(device)
        if isinstance(ioctl, EthtoolSocket):
            self._close_calls.append(ioctl.close)
        return ioctl

    @hookimpl
    def teardown(self) -> None:
        """Close the devices. Rules that could not be removed stay, and so do their notes."""
        for backend in self._backends.values():
            backend.close()
        for close in self._close_calls:
            close()
        self._backends, self._names, self._close_calls = {}, {}, []

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        """Find out what the device can do, by trying."""
        return self._backends[device.ifindex].capabilities(trying=self._alone)

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Install rules."""
        return self._backends[device.ifindex].install(rules)

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Remove rules."""
        return self._backends[device.ifindex].remove(rules)

    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void] | None:
        """Read the own rules; the NIC does not count per rule."""
        return self._backends[device.ifindex].dump()

    @hookimpl
    def collect_stats(self) -> Iterable[MetricFamily]:
        """Return counters and the number of rules per device, without a call to the driver."""
        families = []
        for key, text in _COUNTERS.items():
            family = MetricFamily(f"nfcore_ntuple_{key}_total", MetricKind.COUNTER, text, "rules")
            for ifindex, backend in self._backends.items():
                family.add(backend.counts[key], interface=self._names[ifindex])
            families.append(family)
        held = MetricFamily("nfcore_ntuple_rules", MetricKind.GAUGE, "Own rules on the NIC.", "rules")
        for ifindex, backend in self._backends.items():
            held.add(backend.held, interface=self._names[ifindex])
        return [*families, held]

    @hookimpl
    def cleanup(self, context: Context) -> Iterable[str]:
        """Remove the rules that a killed daemon left, and its notes."""
        lines = []
        self._alone = True
        try:
            for device, settings in _settings(context):
                if not notes_path(context, device.ifindex).exists():
                    continue
                backend = NtupleBackend(self._ioctl(device), self._open_notes(context, device), settings)
                self._backends[device.ifindex] = backend
                backend.open()
                removed = backend.remove_all()
                if removed:
                    lines.append(f"{NAME}: removed {removed} rules from {device.name}")
        finally:
            self.teardown()
        existing = {str(device.ifindex) for device in context.devices}
        for path in notes_path(context, 0).parent.glob(notes_path(context, 0).stem + ".ntuple-*"):
            # The rules of a NIC that no longer exists are gone with it.
            if path.suffix.removeprefix(".ntuple-") not in existing:
                path.unlink(missing_ok=True)
                lines.append(f"{NAME}: removed {path}")
        return lines

    @hookimpl
    def diagnose(self, context: Context) -> Iterable[Finding]:
        """Check features, queues and foreign rules, without changing anything."""
        for device, _ in _settings(context):
            try:
                yield from _examine(Nic(self._ioctl(device)), device.name)
            except OSError as error:
                yield Finding(f"{device.name}: ntuple", Status.WARNING, f"no rules can be read: {error.strerror}")
            finally:
                while self._close_calls:
                    self._close_calls.pop()()


def _examine(nic: Nic, name: str) -> Iterator[Finding]:
    on = nic.ntuple_is_on()
    advice = "" if on else f"ethtool -K {name} ntuple on"
    yield Finding(f"{name}: ntuple-filters", Status.OK if on else Status.WARNING, "on" if on else "off", advice)
    queues = nic.queues()
    few = queues < 2
    advice = f"ethtool -L {name} combined N, a power of two" if few else ""
    found = f"{queues}, so marks of {max(queues.bit_length() - 1, 0)} bits"
    yield Finding(f"{name}: receive queues", Status.FAULT if few else Status.OK, found, advice)
    table = nic.table()
    size = "of unknown size" if table.size is None else f"of {table.size:,}"
    yield Finding(f"{name}: ntuple rules", Status.OK, f"{len(table.used)} in a table {size}; list: ethtool -n {name}")


def notes_path(context: Context, ifindex: int) -> Path:
    """Path of a device's notes, beside the daemon's socket."""
    return context.config.nf.beside_socket(f".ntuple-{ifindex}")


def check_whole(config: Config) -> Iterator[Problem]:
    """Compare `[nic_ntuple]` with the interfaces and the carrier."""
    table = config.sections[NAME]
    assert isinstance(table, NtupleTable)  # by config_section()
    known = [interface.name for interface in config.interfaces if NAME in interface.offload]
    for name in table.locations:
        if name not in known:
            message = f'belongs to no interface with offload = ["{NAME}"]; those are: {", ".join(known) or "none"}'
            yield Problem(key_path(f"{NAME}.locations", name), message)
    if known and config.marking.carrier != CARRIER:
        message = f"is {config.marking.carrier!r}; {NAME} marks packets by their receive queue: set it to {CARRIER!r}"
        yield Problem("marking.carrier", message)


def _settings(context: Context) -> Iterator[tuple[Device, Settings]]:
    """Every device that has this backend, with its settings."""
    table = context.config.sections[NAME]
    assert isinstance(table, NtupleTable)  # by config_section()
    for device in context.devices:
        if NAME in device.backends:
            first, _, last = table.locations.get(device.name, "").partition("-")
            yield device, Settings(device.name, range(int(first), int(last) + 1) if first else None)
