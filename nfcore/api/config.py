# SPDX-License-Identifier: Apache-2.0
"""One TOML file, strict: every mistake in it is found in one reading and named by its full key.

The core owns the tables `nf`, `interfaces`, `marking` and `offload`; every plugin owns one of its own name.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import logging
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import toml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from ..errors import ConfigError, NfcoreError, Problem, words_of

if TYPE_CHECKING:
    from ..hooks.manager import PluginHost

log = logging.getLogger(__name__)
_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
NO_BACKEND = "none"
MOST_QUEUE_BITS = 12
"""Linux makes no device with more than 4,096 receive queues."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_T = TypeVar("_T", bound="Table")


def parse_duration(value: object) -> float:
    """Seconds behind a text such as ``30s`` or ``1.5ms``; ValueError says how to write one."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|m|h)", value) if isinstance(value, str) else None
    if not found or not math.isfinite(float(found[1])):
        raise ValueError("should be a duration with its unit, such as '30s', '500ms' or '5m'")
    return float(found[1]) * _DURATION_UNITS[found[2]]


def format_duration(seconds: float) -> str:
    """Write what :func:`parse_duration` reads as the same float, in the largest unit that leaves a whole number."""
    for unit, size in reversed(_DURATION_UNITS.items()):
        if seconds >= size and round(seconds / size) * size == seconds:
            return f"{round(seconds / size)}{unit}"
    return f"{Decimal(repr(seconds)).normalize():f}s"


Duration = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(format_duration)]
"""Seconds, written in the TOML as a text with a unit."""


class Table(BaseModel):
    """Base of all TOML tables: unknown keys and wrong types are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)


def _interface_name(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[^/\s\x00]{1,15}", value):
        return value
    raise ValueError("should be the name of an interface: at most 15 characters, no '/' and no white space")


def _socket_path(value: object) -> str:
    path = Path(value) if isinstance(value, str) and "\0" not in value else Path()
    # 107 bytes are what a unix socket's address holds; beside it the daemon keeps notes in a file ending in .state.
    fits = len(os.fsencode(path)) <= 107 and path.is_absolute() and path.name
    if not fits or path.suffix == ".state":
        raise ValueError("should be the absolute path of a socket, at most 107 bytes, not ending in .state")
    return str(value)


def _group_name(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[^:,\s\x00]{0,32}", value):
        return value
    raise ValueError("should be the name of a group, at most 32 characters, or empty")


def parse_network(value: object) -> Network:
    """Read an address or a prefix; ValueError says how to write one."""
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError as error:
        hint = f" ({error})" if isinstance(value, str) and "host bits" in str(error) else ""
        raise ValueError(f"should be an IPv4 or IPv6 address, or a prefix such as '198.18.10.0/24'{hint}") from None


class NfTable(Table):
    """`[nf]`: the daemon."""

    plugins: list[str] = Field(min_length=1)
    """Plugins to load; only these are."""
    socket: Annotated[str, BeforeValidator(_socket_path)] = "/run/nfcore/nfcore.sock"
    """Where `nfcore stats` and its like reach the daemon."""
    socket_group: Annotated[str, BeforeValidator(_group_name)] = ""
    """Group whose members may ask, but not order; empty: root alone."""
    hook_patience: Annotated[Duration, Field(ge=1.0, le=3600.0)] = "5s"  # type: ignore[assignment]
    """How long a plugin's hook may hold up the event loop before it is broken off."""
    events_kept: int = Field(default=65_536, ge=1_000, le=16_000_000)
    """Events of flows that `nfcore events` can look back on."""


class InterfaceTable(Table):
    """`[[interfaces]]`: one device."""

    name: Annotated[str, BeforeValidator(_interface_name)]
    chain: list[str] = Field(min_length=1, max_length=1)
    """Network functions in packet order; this version runs one per interface."""
    offload: list[str] = Field(default=[NO_BACKEND], min_length=1)
    """Offload backends, best first; `none` goes on unaccelerated."""
    xdp_mode: Literal["native", "generic", "auto"] = "native"
    """`auto` falls back to generic, which is slow and loses most carriers."""


class MarkingTable(Table):
    """`[marking]`: what a mark means and how it travels."""

    strategy: str = "dest-id"
    carrier: Literal["metadata", "skb-mark", "rx-queue"] = "metadata"
    width: int = Field(default=16, ge=1, le=24)
    """Bits of a mark that NIC and carrier transport."""
    quarantine: Duration = "1s"  # type: ignore[assignment]
    """How long a mark rests before it may mean something else."""
    pool_chunk: int = Field(default=512, ge=2, le=4095)
    """Marks leased to a CPU at a time (flow-id)."""


class OffloadTable(Table):
    """`[offload]`: which flows get a rule, and for how long."""

    min_packets: int = Field(default=8, ge=1, le=32_767)
    """Packets on the slow path before a flow is reported."""
    min_rate: float = Field(default=0.0, ge=0.0, le=1e9)
    """Packets a second between two reports, below which a flow gets no rule; 0 asks for none."""
    exclude: list[Annotated[Network, BeforeValidator(parse_network), PlainSerializer(str)]] = Field(default=[])
    """Prefixes whose flows, by either address, never get a rule."""
    max_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of `max_rules` that the flows of one VIP may hold."""
    inserts_per_second: float = Field(default=5_000.0, ge=0.0, le=1e9)
    """Rules installed a second and device, on average; 0 sets no limit."""
    insert_burst: int = Field(default=5_000, ge=1)
    """Rules installed at once, after a quiet time."""
    max_rules: int = Field(default=60_000, ge=1, le=16_000_000)
    waiting: int = Field(default=16_384, ge=1, le=1_000_000)
    """Flows that wait for budget or room; beyond them the coldest are shed."""
    remembered: int = Field(default=65_536, ge=20_000, le=16_000_000)
    """Flows without a rule whose reason is remembered."""
    idle_timeout: Annotated[Duration, Field(ge=0.1)] = "30s"  # type: ignore[assignment]
    """A rule whose counter stands still for so long is removed; sooner while the table is nearly full."""
    counter_lag: Duration = "1s"  # type: ignore[assignment]
    """By how much the NIC's counters may be late: never counts as idle time."""
    grace: Duration = "100ms"  # type: ignore[assignment]
    """Between the removal of a rule and of what its mark meant: packets are still on their way."""
    events: Literal["ringbuf", "perf"] = "ringbuf"
    """How XDP tells of new flows."""


CheckTable = Callable[[Mapping[str, Any], str], Iterable[Problem]]
"""Further checks of a plugin's raw table, given with its path. Runs even where single values are wrong."""
CheckWhole = Callable[["Config"], Iterable[Problem]]
"""Checks of a plugin's table against the others', such as `[marking]`, once all of these could be read."""


@dataclass(frozen=True)
class Section:
    """A plugin's TOML table: its model, and checks across keys that a model's types cannot express."""

    model: type[Table]
    check: CheckTable | None = None
    count_targets: Callable[[Any], int] | None = None
    """Of a network function: how many targets a table (a `model`) names, each of which needs a mark of its own."""
    check_whole: CheckWhole | None = None


@dataclass(frozen=True)
class Config:
    """A configuration that passed every check."""

    source: str
    nf: NfTable
    interfaces: Sequence[InterfaceTable]
    marking: MarkingTable
    offload: OffloadTable
    sections: Mapping[str, Table] = field(default_factory=dict)
    """Plugin name → its table."""
    overrides: Sequence[str] = ()
    """``key.path=VALUE`` that were applied to the file."""

    def resolved(self) -> dict[str, Any]:
        """Give all that is in effect, defaults included, in the TOML's own form."""
        tables: dict[str, Any] = {
            "nf": self.nf.model_dump(mode="json"),
            "interfaces": [interface.model_dump(mode="json") for interface in self.interfaces],
            "marking": self.marking.model_dump(mode="json"),
            "offload": self.offload.model_dump(mode="json"),
        }
        tables |= {name: _without_none(table.model_dump(mode="json")) for name, table in self.sections.items()}
        return tables


def _without_none(value: Any) -> Any:
    """Drop what TOML cannot write. pydantic's exclude_none would drop values that are None only in Python, too."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def write_toml(tables: Mapping[str, Any]) -> str:
    """Write tables, such as :meth:`Config.resolved` gives, as a TOML document."""
    encoder: toml.TomlEncoder[dict[str, Any]] = toml.TomlEncoder()
    # toml's own escaping turns a backslash before an x into no TOML; a JSON string is one, but for the DEL character.
    encoder.dump_funcs[str] = lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
    return toml.dumps(dict(tables), encoder)


def read_toml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the file and apply ``key.path=VALUE`` overrides, whose values are TOML (or plain text)."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"cannot be read: {error.strerror or error}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Problem("", f"is not UTF-8 text: {error}")]) from None
    except (ValueError, RecursionError) as error:  # tomllib lets int()'s and the stack's limits through
        raise ConfigError(str(path), [Problem("", f"is not TOML: {error}")]) from None
    for override in overrides:
        _apply_override(raw, override)
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    parts = key.strip().split(".")
    if not sign or not all(parts):
        raise ConfigError("--set", [Problem(override, "should be KEY.PATH=VALUE, such as marking.strategy=flow-id")])
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    table: Any = raw
    for part in parts[:-1]:
        table = table.setdefault(part, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            raise ConfigError("--set", [Problem(key, f"{part!r} is not a table")])
    table[parts[-1]] = value


class _Reader:
    """One reading of one file: collects problems instead of stopping at the first."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.problems: list[Problem] = []

    def table(self, model: type[_T], raw: object, path: str) -> _T | None:
        if not isinstance(raw, dict):
            self.problems.append(Problem(path, f"is {raw!r}; should be a table"))
            return None
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            self.problems.extend(_problem(detail, path, model) for detail in error.errors())
            return None

    def tables(self, model: type[_T], raw: object, path: str) -> list[_T]:
        if not isinstance(raw, list):
            self.problems.append(Problem(path, f"is {raw!r}; should be an array of tables, written [[{path}]]"))
            return []
        read = [self.table(model, item, f"{path}[{number}]") for number, item in enumerate(raw)]
        return [table for table in read if table is not None]


def _problem(detail: Any, path: str, model: type[Table]) -> Problem:
    where = path
    for step in detail["loc"]:
        where += f"[{step}]" if isinstance(step, int) else f".{step}"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if detail["type"] == "extra_forbidden":
        return Problem(where, "unknown key" + _suggest(str(detail["loc"][-1]), _known_keys(model, detail["loc"])))
    if detail["type"] == "missing":
        return Problem(where, "is missing")
    shown = repr(detail["input"])
    return Problem(where, f"is {shown if len(shown) <= 80 else shown[:77] + '…'}; {message}")


def _known_keys(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Keys of the table in which an unknown one was found: walks the models along `loc`."""
    for step in loc[:-1]:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        inner = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _suggest(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def load_config(path: Path, host: PluginHost, overrides: Sequence[str] = ()) -> Config:
    """Read and check `path`, loading the plugins that it names into `host`. ConfigError has all problems."""
    reader = _Reader(read_toml(path, overrides))
    raw = reader.raw
    nf = reader.table(NfTable, raw["nf"], "nf") if "nf" in raw else None
    if "nf" not in raw:
        reader.problems.append(Problem("nf", "is missing; should be a table [nf] with plugins = [...]"))
    _load_plugins(reader, host)
    sections = _read_sections(reader, host)
    interfaces = reader.tables(InterfaceTable, raw.get("interfaces", []), "interfaces")
    marking = reader.table(MarkingTable, raw.get("marking", {}), "marking")
    offload = reader.table(OffloadTable, raw.get("offload", {}), "offload")
    _check_tables_owned(reader, host)
    _check_interfaces(reader, host)
    _check_strategy(reader, host)
    _check_carrier(reader, marking, interfaces)
    if marking is not None and offload is not None:
        _check_width(reader, host, marking, offload, sections)
    if nf is None or marking is None or offload is None:
        raise ConfigError(str(path), reader.problems)
    config = Config(str(path), nf, interfaces, marking, offload, sections, tuple(overrides))
    _check_whole(reader, host, config)
    if reader.problems:
        raise ConfigError(str(path), reader.problems)
    return config


def _load_plugins(reader: _Reader, host: PluginHost) -> None:
    nf = reader.raw.get("nf")
    names = nf.get("plugins") if isinstance(nf, dict) else None
    if not isinstance(names, list):
        return
    installed = host.installed()
    for number, name in enumerate(names):
        where = f"nf.plugins[{number}]"
        if not isinstance(name, str):
            continue  # the model says so
        if name in names[:number]:
            reader.problems.append(Problem(where, f"{name!r} is named twice"))
        elif name not in installed:
            reader.problems.append(Problem(where, f"no plugin {name!r} is installed" + _suggest(name, installed)))
        else:
            try:
                host.load(name)
            except Exception as error:  # noqa: BLE001 - whatever a plugin raises is its problem, named
                told = isinstance(error, NfcoreError)
                words = str(error) if told else f"plugin {name!r} cannot be loaded: {words_of(error)}"
                reader.problems.append(Problem(where, words))
    for words in host.remarks:
        log.warning("%s", words)


def _read_sections(reader: _Reader, host: PluginHost) -> dict[str, Table]:
    from ..hooks.results import accept  # noqa: PLC0415 - which knows what a section is from here

    sections: dict[str, Table] = {}
    for name in host.implementing("config_section"):
        try:
            section = accept("config_section", {}, host.call(name, "config_section"))
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is its problem, named
            reader.problems.append(Problem(name, f"plugin {name!r} cannot say what its table should be: {error}"))
            continue
        if section is None:
            continue
        raw = reader.raw.get(name, {})
        table = reader.table(section.model, raw, name)
        if table is not None:
            sections[name] = table
        if section.check is not None and isinstance(raw, dict):
            try:
                reader.problems.extend(section.check(raw, name))
            except Exception as error:  # noqa: BLE001 - as above
                reader.problems.append(Problem(name, f"plugin {name!r} cannot check its table: {error}"))
    return sections


def _check_whole(reader: _Reader, host: PluginHost, config: Config) -> None:
    for name, section in host.each("config_section"):
        if section is None or section.check_whole is None or name not in config.sections:
            continue
        try:
            reader.problems.extend(section.check_whole(config))
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is its problem, named
            reader.problems.append(Problem(name, f"plugin {name!r} cannot check the configuration: {error}"))


def _check_tables_owned(reader: _Reader, host: PluginHost) -> None:
    owned = {"nf", "interfaces", "marking", "offload", *host.implementing("config_section")}
    installed = host.installed()
    nf = reader.raw.get("nf")
    named = nf.get("plugins") if isinstance(nf, dict) else None
    for name in reader.raw:
        if name in owned:
            continue
        if name in installed and isinstance(named, list) and name in named and name not in host.loaded():
            continue  # it could not be loaded, which has been said
        if name in installed and name not in host.loaded():
            reader.problems.append(Problem(name, "belongs to a plugin that nf.plugins does not name"))
        else:
            reader.problems.append(Problem(name, "unknown table" + _suggest(name, owned)))


def _check_interfaces(reader: _Reader, host: PluginHost) -> None:
    interfaces = reader.raw.get("interfaces", [])
    if not isinstance(interfaces, list):
        return
    functions, backends = host.implementing("publish_marks"), host.implementing("install_offload")
    seen: dict[str, int] = {}
    for number, interface in enumerate(interfaces):
        if not isinstance(interface, dict):
            continue
        where = f"interfaces[{number}]"
        name = interface.get("name")
        if isinstance(name, str) and seen.setdefault(name, number) != number:
            reader.problems.append(Problem(f"{where}.name", f"{name!r} is already interfaces[{seen[name]}]"))
        _check_names(reader, interface.get("chain"), f"{where}.chain", "network function", functions)
        _check_names(reader, interface.get("offload"), f"{where}.offload", "offload backend", [*backends, NO_BACKEND])
        _check_order(reader, interface.get("offload"), f"{where}.offload")


def _check_names(reader: _Reader, names: object, where: str, kind: str, known: Sequence[str]) -> None:
    if not isinstance(names, list):
        return
    for number, name in enumerate(names):
        if isinstance(name, str) and name not in known:
            message = f"{name!r} is no {kind} among nf.plugins" + _suggest(name, known)
            reader.problems.append(Problem(f"{where}[{number}]", message))


def _check_order(reader: _Reader, backends: object, where: str) -> None:
    if not isinstance(backends, list):
        return
    for number, name in enumerate(backends):
        if name in backends[:number]:
            reader.problems.append(Problem(f"{where}[{number}]", f"{name!r} is named twice"))
        elif NO_BACKEND in backends[:number]:
            message = f'{name!r} would never be asked: "{NO_BACKEND}" before it goes on unaccelerated'
            reader.problems.append(Problem(f"{where}[{number}]", message))


def _check_strategy(reader: _Reader, host: PluginHost) -> None:
    marking = reader.raw.get("marking", {})
    wanted = marking.get("strategy") if isinstance(marking, dict) else None
    known = [info.name for _, infos in host.each("marking_strategies") for info in infos or ()]
    interfaces = reader.raw.get("interfaces", [])
    tables = [table for table in interfaces if isinstance(table, dict)] if isinstance(interfaces, list) else []
    lists = [table.get("offload") for table in tables]
    backends = [name for names in lists if isinstance(names, list) for name in names if name != NO_BACKEND]
    if backends and not known and wanted is None:
        message = f'offload backend {backends[0]!r} sets marks that no strategy gives; add "marking" to nf.plugins'
        reader.problems.append(Problem("nf.plugins", message))
    if isinstance(wanted, str) and known.count(wanted) > 1:
        by = [plugin for plugin, infos in host.each("marking_strategies") for info in infos if info.name == wanted]
        message = f"{wanted!r} is offered by several of nf.plugins, {', '.join(by)}: name one of them alone"
        reader.problems.append(Problem("marking.strategy", message))
    if isinstance(wanted, str) and wanted not in known:
        message = f"{wanted!r} is no marking strategy of nf.plugins" + _suggest(wanted, known)
        if not known:
            message += '; add "marking" to nf.plugins'
        reader.problems.append(Problem("marking.strategy", message))


def _check_carrier(reader: _Reader, marking: MarkingTable | None, interfaces: Sequence[InterfaceTable]) -> None:
    if marking is None:
        return
    if marking.carrier == "rx-queue" and marking.width > MOST_QUEUE_BITS:
        message = f"is {marking.width}; should be at most {MOST_QUEUE_BITS} with the carrier rx-queue: "
        message += "the number of receive queues in bits, rounded down (8 queues: 3)"
        reader.problems.append(Problem("marking.width", message))
    if marking.carrier != "skb-mark":
        return
    for number, interface in enumerate(interfaces):
        if interface.xdp_mode != "native":
            message = f"is {interface.xdp_mode!r}; should be 'native': the carrier skb-mark exists in no other mode"
            reader.problems.append(Problem(f"interfaces[{number}].xdp_mode", message))


def _check_width(
    reader: _Reader, host: PluginHost, marking: MarkingTable, offload: OffloadTable, sections: Mapping[str, Table]
) -> None:
    """Compare the marks that the strategy needs for sure with those that the width gives."""
    infos = [info for _, infos in host.each("marking_strategies") for info in infos or ()]
    meaning = next((info.meaning for info in infos if info.name == marking.strategy), None)
    marks = (1 << marking.width) - 1
    gives = f"marking.width = {marking.width} gives {marks:,}"
    if meaning == "flow" and offload.max_rules > marks:
        message = f"is {offload.max_rules}; {marking.strategy} needs a mark per rule, and {gives}"
        reader.problems.append(Problem("offload.max_rules", message))
    if meaning == "target":
        counters = {name: s.count_targets for name, s in host.each("config_section") if s is not None}
        needed = 0
        for name, count in counters.items():
            try:
                needed += int(count(sections[name])) if count and name in sections else 0
            except Exception as error:  # noqa: BLE001 - whatever a plugin raises is its problem, named
                reader.problems.append(Problem(name, f"plugin {name!r} cannot count its targets: {error}"))
        if needed > marks:
            message = f"{marking.strategy} needs {needed:,} marks, one per target; {gives}"
            reader.problems.append(Problem("marking.width", message))
