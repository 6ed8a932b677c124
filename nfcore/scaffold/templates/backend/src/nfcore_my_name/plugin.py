# SPDX-License-Identifier: Apache-2.0
"""The hooks of an offload backend: turn nfcore's rules into rules of the NIC, and back."""

from __future__ import annotations

import logging

import numpy as np
from nfcore.api.config import ConfigTable, Section
from nfcore.api.context import Context
from nfcore.api.hookspecs import hookimpl
from nfcore.api.rules import INSTALLED_ROW, Capabilities, Device, Outcome, Outcomes, RuleBatch
from numpy.typing import NDArray
from pydantic import Field

from .nic import MARK_WIDTH, PROTOCOLS, Nic, find_nic

NAME = "my_name"
log = logging.getLogger(__name__)


class MyNameTable(ConfigTable):
    """`[my_name]`: strict, like every table of nfcore."""

    rules: int = Field(default=4096, ge=1, le=1_000_000)
    """Number of rules that fit into the NIC."""
    verbose: bool = True
    """Whether each installation and removal is logged."""


class MyNamePlugin:
    """Implements the hooks. They run on the worker thread of their device, except `setup` and `teardown`."""

    nfcore_api = 1
    """The version of nfcore's hooks for which this plugin was written."""

    def __init__(self) -> None:
        self._table = MyNameTable()
        self._nics: dict[int, Nic] = {}
        """ifindex → NIC."""

    @hookimpl
    def config_section(self) -> Section:
        """Declare `[my_name]`; a `Section` may also check several keys or tables."""
        return Section(MyNameTable)

    @hookimpl
    def setup(self, context: Context) -> None:
        """Open the devices whose `offload` names this plugin. Rules of an earlier run stay: the core reads them."""
        table = context.config.sections[NAME]
        assert isinstance(table, MyNameTable)  # as config_section() declares
        self._table = table
        for device in context.devices:
            if NAME in device.backends:
                self._nics[device.ifindex] = find_nic(device.ifindex, table.rules)

    @hookimpl
    def teardown(self) -> None:
        """Close the devices. The core has removed its rules; whatever is left must stay."""
        self._nics.clear()

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities | None:
        """Find out what the device can do; if possible, by trial."""
        nic = self._nics.get(device.ifindex)
        return None if nic is None else Capabilities(MARK_WIDTH, table_size=nic.size, protocols=PROTOCOLS)

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Give each rule's status: INSTALLED, FULL (no room now), UNSUPPORTED (never) or FAILED (tried again)."""
        nic = self._nics[device.ifindex]
        results = [nic.install(rule) for rule in rules]
        self._log("install", rules, [outcome for outcome, _ in results])
        messages = {number: message for number, (_, message) in enumerate(results) if message}
        return Outcomes(np.array([outcome for outcome, _ in results], dtype=np.uint8), messages)

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Give each rule's status: REMOVED, with its last counters, or ABSENT, which is no failure."""
        nic = self._nics[device.ifindex]
        entries = [nic.remove(rule) for rule in rules]
        status = [Outcome.ABSENT if entry is None else Outcome.REMOVED for entry in entries]
        counted = [(0, 0) if entry is None else (entry.packets, entry.bytes) for entry in entries]
        self._log("remove", rules, status)
        return Outcomes(
            np.array(status, dtype=np.uint8), counted=np.array(counted, dtype=np.uint64).reshape(len(rules), 2)
        )

    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        """Read nfcore's rules and their counters: the core finds idle flows in them, and rules of an earlier run."""
        entries = self._nics[device.ifindex].own_entries()
        rows = np.zeros(len(entries), dtype=INSTALLED_ROW)
        rows["rule"] = RuleBatch.of([entry.rule for entry in entries]).rows
        for field in ("packets", "bytes", "last_used"):
            rows[field] = [getattr(entry, field) for entry in entries]
        return rows

    def _log(self, action: str, rules: RuleBatch, outcomes: list[Outcome]) -> None:
        if self._table.verbose:
            for rule, outcome in zip(rules, outcomes, strict=True):
                log.info("%s %s %s cookie %#x: %s", action, rule.match, rule.action, rule.cookie, outcome.name)
