# SPDX-License-Identifier: Apache-2.0
"""Makes the `Context` for a plugin's `setup`, without a TOML file and without an installed distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..api.config import NO_BACKEND, Config, ConfigTable, InterfaceTable, MarkingTable, NfTable, OffloadTable
from ..api.context import Context
from ..api.locks import NoLocks
from ..api.rules import Device
from ..daemon.bootstrap import make_context
from ..errors import ConfigError, Problem
from ..hooks.manager import PluginManager

SOURCE = "conformance.toml"
"""The file name of the configuration in error messages."""


def context_for(
    plugin: object,
    name: str,
    devices: Sequence[Device],
    table: Mapping[str, Any] | None = None,
    *,
    folder: Path,
    strategy: str = "dest-id",
    width: int = 16,
) -> Context:
    """Return a context whose configuration has `devices`, and `table` as the plugin's own table.

    `folder` is for the socket and the state file. ConfigError or pydantic's ValidationError when the plugin refuses
    the table.
    """
    plugins = PluginManager()
    plugins.register(plugin, name)
    interfaces = [
        InterfaceTable(name=device.name, chain=["nf"], offload=list(device.backends) or [NO_BACKEND])
        for device in devices
    ]
    config = Config(
        source=SOURCE,
        nf=NfTable(plugins=[name], socket=str(folder / "nf.sock")),
        interfaces=interfaces,
        marking=MarkingTable(strategy=strategy, width=width),
        offload=OffloadTable(),
        sections=_sections(plugins, name, dict(table or {})),
    )
    section = plugins.call(name, "config_section")
    problems = list(section.check_whole(config)) if section is not None and section.check_whole is not None else []
    if problems:
        raise ConfigError(SOURCE, problems)
    context = make_context(config, plugins, list(devices))
    context.locks = NoLocks()  # the runs of one test are to be different processes, and none of them ends
    return context


def _sections(plugins: PluginManager, name: str, raw: dict[str, Any]) -> dict[str, ConfigTable]:
    section = plugins.call(name, "config_section")
    if section is None:
        if raw:
            raise ConfigError(SOURCE, [Problem(name, "belongs to a plugin without config_section()")])
        return {}
    problems = list(section.check(raw, name)) if section.check is not None else []
    if problems:
        raise ConfigError(SOURCE, problems)
    return {name: section.model.model_validate(raw)}
