# SPDX-License-Identifier: Apache-2.0
"""From a path to a `Config`: reads the file, loads the plugins that it names, checks all, reports every mistake."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..api.config import Config, ConfigTable, InterfaceTable, MarkingTable, NfTable, OffloadTable
from ..errors import ConfigError, NfcoreError, Problem, describe_error
from ..hooks import discovery
from ..hooks.manager import PluginManager
from ..hooks.results import check_result
from .checks import check_carrier, check_interfaces, check_strategy, check_tables_owned, check_whole, check_width
from .reader import Reader, read_toml, show, suggest

log = logging.getLogger(__name__)


def load_config(path: Path, plugins: PluginManager, overrides: Sequence[str] = ()) -> Config:
    """Read and check the file, and load the plugins that it names into `plugins`. ConfigError has all problems."""
    reader = Reader(read_toml(path, overrides))
    raw = reader.raw
    nf = reader.table(NfTable, raw["nf"], "nf") if "nf" in raw else None
    if "nf" not in raw:
        reader.problems.append(Problem("nf", "is missing; should be a table [nf] with plugins = [...]"))
    _load_plugins(reader, plugins)
    sections = _read_sections(reader, plugins)
    interfaces = reader.tables(InterfaceTable, raw.get("interfaces", []), "interfaces")
    marking = reader.table(MarkingTable, raw.get("marking", {}), "marking")
    offload = reader.table(OffloadTable, raw.get("offload", {}), "offload")
    check_tables_owned(reader, plugins)
    check_interfaces(reader, plugins)
    check_strategy(reader, plugins)
    check_carrier(reader, marking)
    if marking is not None and offload is not None:
        check_width(reader, plugins, marking, offload, sections)
    if nf is None or marking is None or offload is None:
        raise ConfigError(str(path), reader.problems)
    config = Config(str(path), nf, interfaces, marking, offload, sections, tuple(overrides))
    check_whole(reader, plugins, config)
    if reader.problems:
        raise ConfigError(str(path), reader.problems)
    return replace(config, remarks=tuple(reader.remarks))


def _load_plugins(reader: Reader, plugins: PluginManager) -> None:
    nf = reader.raw.get("nf")
    names = nf.get("plugins") if isinstance(nf, dict) else None
    if not isinstance(names, list):
        return
    installed = discovery.installed()
    for number, name in enumerate(names):
        where = f"nf.plugins[{number}]"
        if not isinstance(name, str):
            continue  # the model reports it
        if name in names[:number]:
            reader.problems.append(Problem(where, f"{show(name)} is named twice"))
        elif name not in installed and plugins.plugin(name) is None:
            reader.problems.append(Problem(where, f"no plugin {show(name)} is installed" + suggest(name, installed)))
        else:
            try:
                plugins.load(name)
            except NfcoreError as error:
                reader.problems.append(Problem(where, str(error)))
            except Exception as error:  # noqa: BLE001 - a plugin may raise anything
                message = f"plugin {name!r} cannot be loaded: {describe_error(error)}"
                reader.problems.append(Problem(where, message))
    for remark in plugins.remarks:
        log.warning("%s", remark)


def _read_sections(reader: Reader, plugins: PluginManager) -> dict[str, ConfigTable]:
    sections: dict[str, ConfigTable] = {}
    for name in plugins.implementing("config_section"):
        try:
            section = check_result("config_section", {}, plugins.call(name, "config_section"))
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            reader.problems.append(Problem(name, f"plugin {name!r} cannot describe its table: {describe_error(error)}"))
            continue
        if section is None:
            continue
        raw = reader.raw.get(name, {})
        table = reader.table(section.model, raw, name)
        if table is not None:
            sections[name] = table
        if section.check is not None and isinstance(raw, dict):
            reader.check(name, "check its table", section.check, raw, name)
    return sections
