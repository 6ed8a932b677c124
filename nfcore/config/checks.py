# SPDX-License-Identifier: Apache-2.0
"""Checks across tables: names that must exist, the order of backends, enough marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..api.config import MAX_QUEUE_BITS, NO_BACKEND, Config, ConfigTable, MarkingTable, OffloadTable
from ..errors import Problem, key_path
from ..hooks import discovery
from ..hooks.manager import PluginManager, load_installed
from .reader import Reader, show, suggest


def check_tables_owned(reader: Reader, plugins: PluginManager) -> None:
    """Check that each table is the core's or a loaded plugin's."""
    owned = {"nf", "interfaces", "marking", "offload", *plugins.implementing("config_section")}
    installed = discovery.installed()
    nf = reader.raw.get("nf")
    named = nf.get("plugins") if isinstance(nf, dict) else None
    for name in reader.raw:
        if name in owned:
            continue
        if name in installed and isinstance(named, list) and name in named and name not in plugins.loaded():
            continue  # it could not be loaded: there is a problem about that already
        if name in installed and name not in plugins.loaded():
            reader.problems.append(Problem(key_path("", name), "belongs to a plugin that nf.plugins does not name"))
        else:
            reader.problems.append(Problem(key_path("", name), "unknown table" + suggest(name, owned)))


def check_interfaces(reader: Reader, plugins: PluginManager) -> None:
    """Check that each interface is named once, and that its functions and backends are loaded plugins."""
    interfaces = reader.raw.get("interfaces", [])
    if not isinstance(interfaces, list):
        return
    functions, backends = plugins.implementing("publish_marks"), plugins.implementing("install_offload")
    seen: dict[str, int] = {}
    for number, interface in enumerate(interfaces):
        if not isinstance(interface, dict):
            continue
        where = f"interfaces[{number}]"
        name = interface.get("name")
        if isinstance(name, str) and seen.setdefault(name, number) != number:
            reader.problems.append(Problem(f"{where}.name", f"{show(name)} is already interfaces[{seen[name]}]"))
        _check_names(reader, interface.get("chain"), f"{where}.chain", "network function", functions)
        _check_names(reader, interface.get("offload"), f"{where}.offload", "offload backend", [*backends, NO_BACKEND])
        _check_order(reader, interface.get("offload"), f"{where}.offload")
    _check_chains(reader, interfaces)


def _check_names(reader: Reader, names: object, where: str, kind: str, known: Sequence[str]) -> None:
    if not isinstance(names, list):
        return
    for number, name in enumerate(names):
        if isinstance(name, str) and name not in known:
            message = f"{show(name)} is no {kind} among nf.plugins" + suggest(name, known)
            reader.problems.append(Problem(f"{where}[{number}]", message))


def _check_chains(reader: Reader, interfaces: Sequence[object]) -> None:
    """Check that a chain names each function once, and that a function has the same successor on all interfaces.

    The successor is a constant in the function's program, and there is one program.
    """
    successors: dict[str, tuple[object, str]] = {}
    for number, interface in enumerate(interfaces):
        chain = interface.get("chain") if isinstance(interface, dict) else None
        chain = chain if isinstance(chain, list) else []
        for position, name in enumerate(chain):
            where = f"interfaces[{number}].chain[{position}]"
            if not isinstance(name, str):
                continue
            if name in chain[:position]:
                reader.problems.append(Problem(where, f"{show(name)} is named twice"))
                continue
            following = chain[position + 1] if position + 1 < len(chain) else None
            expected, there = successors.setdefault(name, (following, where))
            if following != expected:
                message = f"{_describe_place(name, following)}, but {_describe_place('it', expected)} in {there}: "
                reader.problems.append(Problem(where, message + "what follows a function must be the same everywhere"))


def _describe_place(name: str, following: object) -> str:
    subject = name if name == "it" else show(name)
    return f"{subject} is the last function" if following is None else f"{subject} comes before {show(following)}"


def _check_order(reader: Reader, backends: object, where: str) -> None:
    if not isinstance(backends, list):
        return
    for number, name in enumerate(backends):
        if name in backends[:number]:
            reader.problems.append(Problem(f"{where}[{number}]", f"{show(name)} is named twice"))
        elif NO_BACKEND in backends[:number]:
            message = f'{show(name)} would never be used: "{NO_BACKEND}" before it means no further backend'
            reader.problems.append(Problem(f"{where}[{number}]", message))


def check_strategy(reader: Reader, plugins: PluginManager) -> None:
    """Check that exactly one loaded plugin offers the marking strategy, and that there is one if there are backends."""
    marking = reader.raw.get("marking", {})
    wanted = marking.get("strategy") if isinstance(marking, dict) else None
    known = [info.name for _, infos in plugins.call_each("marking_strategies") for info in infos or ()]
    interfaces = reader.raw.get("interfaces", [])
    tables = [table for table in interfaces if isinstance(table, dict)] if isinstance(interfaces, list) else []
    lists = [table.get("offload") for table in tables]
    backends = [name for names in lists if isinstance(names, list) for name in names if name != NO_BACKEND]
    if backends and not known and wanted is None:
        default = MarkingTable.model_fields["strategy"].default
        message = f"offload backend {backends[0]!r} needs a marking strategy{_advise_strategy(default, known)}"
        reader.problems.append(Problem("nf.plugins", message))
    if isinstance(wanted, str) and known.count(wanted) > 1:
        offering = [
            plugin for plugin, infos in plugins.call_each("marking_strategies") for info in infos if info.name == wanted
        ]
        message = f"{show(wanted)} is offered by several of nf.plugins, {', '.join(offering)}: name only one of them"
        reader.problems.append(Problem("marking.strategy", message))
    if isinstance(wanted, str) and wanted not in known:
        message = f"{show(wanted)} is no marking strategy of nf.plugins" + suggest(wanted, known)
        reader.problems.append(Problem("marking.strategy", message + _advise_strategy(wanted, known)))


def _advise_strategy(wanted: str, known: Sequence[str]) -> str:
    """Name the installed plugin that offers a strategy; when none does and none is `known`, what is offered."""
    offered = {
        plugin: [info.name for info in infos or ()]
        for plugin, infos in load_installed().call_each("marking_strategies")
    }
    for plugin, names in offered.items():
        if wanted in names:
            return f'; add "{plugin}" to nf.plugins'
    if known:
        return ""
    lists = ", ".join(f'"{plugin}" ({", ".join(names)})' for plugin, names in offered.items() if names)
    return f"; no installed plugin offers it; those with strategies are: {lists or 'none'}"


def check_carrier(reader: Reader, marking: MarkingTable | None) -> None:
    """Check that the carrier can transport marks of this width, in the XDP mode of each interface."""
    if marking is None:
        return
    if marking.carrier == "rx-queue" and marking.width > MAX_QUEUE_BITS:
        message = f"is {marking.width}; should be at most {MAX_QUEUE_BITS} with the carrier rx-queue: "
        message += "the number of receive queues in bits, rounded down (8 queues: 3)"
        reader.problems.append(Problem("marking.width", message))
    if marking.carrier != "skb-mark":
        return
    interfaces = reader.raw.get("interfaces", [])
    for number, interface in enumerate(interfaces if isinstance(interfaces, list) else ()):
        mode = interface.get("xdp_mode") if isinstance(interface, dict) else None
        if mode in ("generic", "auto"):
            message = f"is {mode!r}; should be 'native': the carrier skb-mark exists in no other mode"
            reader.problems.append(Problem(f"interfaces[{number}].xdp_mode", message))


def check_width(
    reader: Reader,
    plugins: PluginManager,
    marking: MarkingTable,
    offload: OffloadTable,
    sections: Mapping[str, ConfigTable],
) -> None:
    """Check that the width gives at least the marks that the strategy certainly needs."""
    infos = [info for _, infos in plugins.call_each("marking_strategies") for info in infos or ()]
    meaning = next((info.meaning for info in infos if info.name == marking.strategy), None)
    marks = (1 << marking.width) - 1
    gives = f"marking.width = {marking.width} gives {marks:,}"
    if meaning == "flow" and offload.max_rules > marks:
        message = f"is {offload.max_rules}; {marking.strategy} needs a mark per rule, and {gives}"
        reader.problems.append(Problem("offload.max_rules", message))
    if meaning == "target":
        needed = 0
        for name, section in plugins.call_each("config_section"):
            if section is None or section.count_targets is None or name not in sections:
                continue
            needed += reader.call(name, "count its targets", int, section.count_targets, sections[name]) or 0
        if needed > marks:
            message = f"{marking.strategy} needs {needed:,} marks, one per target; {gives}"
            reader.problems.append(Problem("marking.width", message))


def check_whole(reader: Reader, plugins: PluginManager, config: Config) -> None:
    """Let each plugin check its table against the others."""
    for name, section in plugins.call_each("config_section"):
        if section is None or section.check_whole is None or name not in config.sections:
            continue
        reader.check(name, "check the configuration", section.check_whole, config)
