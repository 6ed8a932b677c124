# SPDX-License-Identifier: Apache-2.0
"""Health-check encapsulation in the daemon: attached while it runs, following the reals of the TOML."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from nfcore.api.context import Context
from nfcore.api.findings import Finding, Status, finding_of
from nfcore.api.metrics import MetricFamily, counter, gauge
from nfcore.errors import HostError, NfcoreError, in_use
from nfcore.kernel import Ownership, TcProgram, attach_egress, detach_egress, egress_programs, interface_exists
from nfcore.kernel.links import format_mac

from ..config import NAME, HealthcheckTable, KatranTable
from ..inventory import Inventory
from .path import TABLE, ProbePath, Sources, find_path, find_sources, own_mac
from .presence import Presence, is_attached
from .program import FILTER_PRIORITY, KIND, ProbeProgram, find_attached


class Healthcheck:
    """Probes of one balancer. HostError: this machine cannot do it."""

    def __init__(self, context: Context, table: KatranTable, wanted: HealthcheckTable) -> None:
        """Find the way of the probes and load the program. Attaches nothing."""
        self._context, self._table, self._wanted = context, table, wanted
        self._path = path = find_path(context, table, wanted)
        context.locks.interface(path.interface, path.ifindex)
        with ExitStack() as opened:
            previous = _program_to_replace(context, path)
            if previous is not None:
                opened.enter_context(previous)
            self._previous = None if previous is None else previous.id
            self._program = ProbeProgram(path, _gue_port(wanted), previous)
        self._ownership = Ownership(KIND, context.config.nf.socket)
        self._presence: Presence | None = None
        self._troubles: tuple[str, ...] = ()
        context.services.health.trouble_sources.append(lambda: self._troubles)
        self._marks: dict[int, str] = {}
        self._vips: dict[int, str] = {}

    def plan(self, table: KatranTable) -> Sources:
        """Find the sources for the reals of another table. Changes nothing. ConfigError: there is none for some."""
        return find_sources(self._context, table, self._wanted, self._path.out_interface)

    def resolve(self) -> Callable[[], Sequence[str]]:
        """Look anew for the addresses that probes come from, on a thread of its own; see NetworkFunction.resolve()."""
        before, table = self._path, self._table
        try:
            mac = own_mac(before.out_interface, before.out_ifindex)
            now, self._troubles = replace(before, source_mac=mac, sources=self.plan(table)), ()
        except NfcoreError as error:
            now, self._troubles = before, (f"health checks: {error}",)
        return lambda: self._send_by(now) if before is self._path and now != before else ()

    def _send_by(self, path: ProbePath) -> Sequence[str]:
        self._path = path
        self._program.write_path(path)
        sources = " or ".join(map(str, path.sources.values()))
        return [
            f"health checks: probes have the source {sources} now, and the MAC address {format_mac(path.source_mac)}"
        ]

    def follow(self, inventory: Inventory, table: KatranTable, sources: Sources | None = None) -> None:
        """Give each real its mark, and count the probes of each VIP; from other sources, if they are given."""
        self._table = table
        if sources is not None:
            self._send_by(replace(self._path, sources=sources))
        reals = {self._wanted.base_mark + number: address for address, number in inventory.reals.items()}
        self._program.write_marks(reals)
        single = {number: vip for number, vip in inventory.vips.items() if vip.port and not vip.is_prefix}
        keys = {number: (vip.address.network_address, vip.port, vip.proto) for number, vip in single.items()}
        self._program.write_keys(keys)
        self._marks = {mark: str(address) for mark, address in sorted(reals.items())}
        self._vips = {number: vip.name for number, vip in single.items()}

    def attach(self) -> None:
        """Attach the program, in place of the one that a killed run left."""
        program, path = self._program.program, self._path
        self._ownership.claim(program)
        attach_egress(path.ifindex, program, FILTER_PRIORITY, replace=self._previous)
        self._presence = Presence(path.interface, path.ifindex, program.id)
        self._context.services.health.warning_sources.append(self._presence.warnings)

    def close(self) -> None:
        """Detach the program and close it. HostError: the kernel does not detach it; a later run may."""
        with ExitStack() as closing:
            closing.callback(self._program.close)
            closing.callback(self._ownership.close)
            if self._presence is not None:
                self._presence.close()
            if is_attached(self._path.ifindex, self._program.program.id):
                detach_egress(self._path.ifindex, self._program.program, FILTER_PRIORITY)

    @property
    def _attached(self) -> bool:
        return self._presence is not None and self._presence.attached

    def report(self) -> dict[str, Any]:
        """Answer the method `healthcheck` of the socket."""
        probes = self._program.probes()
        return {
            "interface": self._path.interface,
            "out_interface": self._path.out_interface,
            "encapsulation": self._wanted.encapsulation,
            "attached": self._attached,
            "marks": [{"real": real, "mark": mark} for mark, real in self._marks.items()],
            "packets": self._program.packets(),
            "probes": [{"vip": vip, "packets": int(probes[number])} for number, vip in self._vips.items()],
        }

    def metrics(self) -> Iterator[MetricFamily]:
        """Give the counters, and whether the program is still there."""
        text = "Whether the program of health checks is attached to the egress of its interface."
        attached = gauge("nfcore_healthcheck_attached", text, "", "interface")
        attached.add(int(self._attached), interface=self._path.interface)
        yield attached
        text = "Packets at the egress that health checks pass: processed, i.e. encapsulated; dropped; skipped."
        packets = counter("nfcore_healthcheck_packets_total", text, "packets", "result")
        for result, value in self._program.packets().items():
            packets.add(value, result=result)
        yield packets
        probes = counter("nfcore_healthcheck_probes_total", "Encapsulated packets to a VIP.", "packets", "vip")
        counts = self._program.probes()
        for number, vip in self._vips.items():
            probes.add(int(counts[number]), vip=vip)
        yield probes


def _program_to_replace(context: Context, path: ProbePath) -> TcProgram | None:
    """Open the program of a killed daemon. HostError: it is a living one's, or the kernel cannot do it."""
    try:
        there = find_attached(path.ifindex)
    except NfcoreError as error:
        raise HostError(f"{context.config.source}: {TABLE}: {error}") from error
    if there is None:
        return None
    if there.owner.lives:
        raise in_use(f"the egress of {path.interface}", there.owner.process, there.owner.place)
    return there.open()


def preconditions(context: Context, table: KatranTable) -> Iterator[Finding]:
    """Find, for `run` and `doctor`, whether the interface of the probes is free."""
    wanted = table.healthcheck
    if wanted is None:
        return

    def check() -> None:
        path = find_path(context, table, wanted)
        context.locks.interface(path.interface, path.ifindex)
        if (previous := _program_to_replace(context, path)) is not None:
            previous.close()

    yield finding_of(f"{TABLE}.interface", check, "no other nfcore uses it for health checks")


def remove_leftovers(context: Context) -> Iterator[str]:
    """Detach what killed daemons with this socket left, at whatever interface; yields a line for each.

    HostError, after all interfaces: the kernel does not tell of some.
    """
    faults = []
    for ifindex, name in socket.if_nameindex():
        try:
            there = find_attached(ifindex)
            if there is None or there.owner.lives or not there.owner.is_at(context.config.nf.socket):
                continue
            if detach_egress(ifindex, there.id, FILTER_PRIORITY):
                yield f"{NAME}: detached program {there.id} from the egress of {name}"
        except HostError as error:
            if interface_exists(ifindex):
                faults.append(str(error))
    if faults:
        raise HostError("; ".join(faults))


def diagnose(context: Context, table: KatranTable) -> Iterator[Finding]:
    """Find, for `nfcore doctor`, whether health checks can be encapsulated."""
    if table.healthcheck is None:
        return
    try:
        path = find_path(context, table, table.healthcheck)
        egress_programs(path.ifindex, FILTER_PRIORITY)
        ProbeProgram(path, _gue_port(table.healthcheck)).close()
    except NfcoreError as error:
        yield Finding(f"{NAME}: health checks", Status.FAULT, str(error))
        return
    sources = ", ".join(map(str, path.sources.values()))
    text = f"the program loads; probes pass {path.interface} and leave by {path.out_interface} from {sources}"
    yield Finding(f"{NAME}: health checks", Status.OK, text)


def _gue_port(wanted: HealthcheckTable) -> int | None:
    return wanted.gue_port if wanted.encapsulation == "gue" else None
