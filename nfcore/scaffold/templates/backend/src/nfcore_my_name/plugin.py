# SPDX-License-Identifier: Apache-2.0
"""The hooks of an offload backend: from rules of nfcore to rules of the NIC, and back."""

from __future__ import annotations

import logging

import numpy as np
from nfcore.api.config import ConfigTable, Section
from nfcore.api.context import Context
from nfcore.api.hookspecs import hookimpl
from nfcore.api.rules import INSTALLED_ROW, Capabilities, Device, Outcome, Outcomes, Rule, RuleBatch
from numpy.typing import NDArray
from pydantic import Field

from .nic import MARK_WIDTH, Nic, find_nic

NAME = "my_name"
log = logging.getLogger(__name__)


class MyNameTable(ConfigTable):
    """`[my_name]`: strict, like every table of nfcore."""

    rules: int = Field(default=4096, ge=1, le=1_000_000)
    """Rules that fit into the NIC."""
    verbose: bool = True
    """Whether each rule that comes and goes is logged."""


class MyNamePlugin:
    """Answers the hooks. They run on the worker thread of their device, but for `setup` and `teardown`."""

    nfcore_api = 1
    """The version of nfcore's hooks that this was written for."""

    def __init__(self) -> None:
        self._table = MyNameTable()
        self._nics: dict[int, Nic] = {}
        """By ifindex."""

    @hookimpl
    def config_section(self) -> Section:
        """Own `[my_name]`. `Section` takes checks across keys and across tables, too."""
        return Section(MyNameTable)

    @hookimpl
    def setup(self, context: Context) -> None:
        """Open the devices whose `offload` names this plugin. Rules of an earlier run stay: the core asks for them."""
        table = context.config.sections[NAME]
        assert isinstance(table, MyNameTable)  # config_section() said so
        self._table = table
        for device in context.devices:
            if NAME in device.backends:
                self._nics[device.ifindex] = find_nic(device.ifindex, table.rules)

    @hookimpl
    def teardown(self) -> None:
        """Let go of the devices. The core has removed the rules; what it left is to stay."""
        self._nics.clear()

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities | None:
        """Say what the device can do: try it on the real thing, where that can be done."""
        nic = self._nics.get(device.ifindex)
        return None if nic is None else Capabilities(mark_width=MARK_WIDTH, table_size=nic.size)

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Answer each rule: INSTALLED, FULL (no room now), UNSUPPORTED (never), FAILED (tried again), with words."""
        nic = self._nics[device.ifindex]
        answers = [nic.install(rule) for rule in rules]
        self._log("install", rules, [outcome for outcome, _ in answers])
        words = {number: words for number, (_, words) in enumerate(answers) if words}
        return Outcomes(np.array([outcome for outcome, _ in answers], dtype=np.uint8), words)

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Answer each rule: REMOVED with what it had counted to its end, or ABSENT, which is no failure."""
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
        """Read back our rules with their counters: how the core notices idle flows, and rules of an earlier run."""
        entries = self._nics[device.ifindex].ours()
        rows = np.zeros(len(entries), dtype=INSTALLED_ROW)
        rows["rule"] = RuleBatch.of([entry.rule for entry in entries]).rows
        for field in ("packets", "bytes", "last_used"):
            rows[field] = [getattr(entry, field) for entry in entries]
        return rows

    def _log(self, what: str, rules: RuleBatch, outcomes: list[Outcome]) -> None:
        if self._table.verbose:
            for rule, outcome in zip(rules, outcomes, strict=True):
                log.info("%s %s: %s", what, _say(rule), outcome.name)


def _say(rule: Rule) -> str:
    return f"{rule.match} {rule.action} cookie {rule.cookie:#x}"
