# SPDX-License-Identifier: Apache-2.0
"""Entries as people and programs write them, and their conversion to rows.

    raw tables (TOML, JSON) ──► EntryTable, EntryOrder: keys, types, ranges (pydantic)
                                       │
                                       ▼
                               convert(): what concerns several keys; addresses ──► Entries: rows and columns

Every mistake becomes a problem that names the entry, the key, the value and what would be right.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from nfcore.api.config import ConfigTable, Network, parse_duration
from nfcore.api.flows import (
    ADDRESS_BITS,
    PROTOCOL_NAMES,
    PROTOCOL_NUMBERS,
    Anything,
    fixed_bits,
    join_rows,
    unpack_address,
)
from nfcore.errors import ConfigError, Problem

from .layouts import ENTRY, FASTEST, LONGEST_BURST, SLOWEST_BYTES

MOST_PROBLEMS = 20
"""Problems of one change that are told; of the others only the number."""
LONGEST_NAME = 64
LONGEST_LIFE = 10 * 366 * 24 * 3600.0
"""Seconds."""
ActionName = Literal["drop", "pass", "count", "redirect", "set_dscp", "police", "cpu"]
PARAMETERS: Mapping[str, frozenset[str]] = {
    "drop": frozenset(),
    "pass": frozenset(),
    "count": frozenset(),
    "redirect": frozenset({"interface"}),
    "set_dscp": frozenset({"dscp"}),
    "police": frozenset({"packets_per_second", "bytes_per_second", "burst"}),
    "cpu": frozenset({"cpu"}),
}
"""Action → the keys that it may have."""
ALL_PARAMETERS = frozenset().union(*PARAMETERS.values())
_RATES = ("packets_per_second", "bytes_per_second")


def _name(value: object) -> str:
    if isinstance(value, str) and 1 <= len(value) <= LONGEST_NAME and value.isprintable() and value == value.strip():
        return value
    raise ValueError(f"should be a name of 1 to {LONGEST_NAME} printable characters, without spaces at its ends")


def _life(value: object) -> float:
    seconds = parse_duration(value)
    if 0 < seconds <= LONGEST_LIFE:
        return seconds
    raise ValueError("should be a duration longer than 0 and of at most 10 years, such as '10m'")


def _protocol(value: object) -> int:
    if isinstance(value, str) and value in PROTOCOL_NUMBERS:
        return PROTOCOL_NUMBERS[value]
    if type(value) is int and 0 <= value <= 255:
        return value
    raise ValueError("should be 'tcp', 'udp' or a number from 0 to 255")


def _port(value: object) -> object:
    if isinstance(value, list | str):
        raise ValueError("should be one port from 1 to 65535; for several ports, write an entry for each")
    return value


Port = Annotated[int, BeforeValidator(_port), Field(ge=1, le=65_535)]
Protocol = Annotated[int, BeforeValidator(_protocol)]
Amount = Annotated[int, Field(ge=1, le=FASTEST)]


class RequireTable(ConfigTable):
    """`require` of an entry: what packets with the shared mark of its action must match at least."""

    src: str | None = None
    dst: str | None = None
    proto: Protocol | None = None
    dport: Port | None = None
    family: Literal[4, 6] | None = None


class EntryTable(ConfigTable):
    """One entry: `[[flow_actions.flows]]`."""

    # Defaults are right: to check them for each of 100,000 entries takes as long as all else.
    model_config = ConfigDict(validate_default=False)

    name: Annotated[str, BeforeValidator(_name)]
    src: str | None = None
    """Address or prefix; without it: any."""
    dst: str | None = None
    sport: Port | None = None
    dport: Port | None = None
    proto: Protocol | None = None
    family: Literal[4, 6] | None = None
    """Needed when neither `src` nor `dst` is given."""
    action: ActionName
    interface: str | None = None
    """redirect: where to."""
    dscp: Annotated[int, Field(ge=0, le=63)] | None = None
    """set_dscp: the value."""
    packets_per_second: Amount | None = None
    """police: the rate, in packets."""
    bytes_per_second: Amount | None = None
    """police: the rate, in bytes."""
    burst: Amount | None = None
    """police: what may come at once, in packets or bytes."""
    cpu: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """cpu: its number."""
    priority: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Of two equally specific entries that match a packet, the one with the higher priority wins."""
    offload: bool = True
    """Whether the NIC may get a rule for it."""
    require: RequireTable | None = None


class EntryOrder(EntryTable):
    """One entry of an application."""

    ttl: Annotated[float, BeforeValidator(_life)] | None = None
    """Its lifetime; without it, it stays until it is deleted."""


@dataclass(frozen=True)
class Require:
    """What a packet with a target's mark must match at least. What is None may be anything; family 0: any."""

    family: int
    src: Network | None
    dst: Network | None
    proto: int | None
    dport: int | None


@dataclass(frozen=True)
class Target:
    """What is done with packets: an action with its parameters. Entries share one, but for `police`."""

    action: str
    interface: str = ""
    dscp: int = 0
    packets_per_second: int = 0
    bytes_per_second: int = 0
    burst: int = 0
    cpu: int = 0
    require: Require | None = None
    entry: str = ""
    """police: the name of the only entry that has it, since each has a rate of its own."""

    def parameters(self) -> dict[str, Any]:
        """Give the keys of an entry with this target, `action` included."""
        found: dict[str, Any] = {"action": self.action}
        for key in sorted(PARAMETERS[self.action]):
            if key not in _RATES or getattr(self, key):
                found[key] = getattr(self, key)
        if self.require is not None:
            found["require"] = _require_keys(self.require)
        return found


class EntryError(ConfigError):
    """Entries cannot be taken. `details` tells programs which entries, and which of their keys."""

    def __init__(self, source: str, problems: Sequence[EntryProblem]) -> None:
        shown: list[Problem] = list(problems[:MOST_PROBLEMS])
        if len(problems) > MOST_PROBLEMS:
            shown.append(Problem("", f"and {len(problems) - MOST_PROBLEMS:,} more"))
        super().__init__(source, shown)
        self.found = tuple(problems)
        self.details = {"problems": [each.as_json() for each in problems[:MOST_PROBLEMS]]}

    def within(self, source: str) -> EntryError:
        """Give the same problems, of the file `source`."""
        return EntryError(source, self.found)


@dataclass(frozen=True)
class EntryProblem(Problem):
    """One mistake in one entry."""

    entry: str = ""
    index: int = -1
    key: str = ""

    @classmethod
    def at(cls, place: str, index: int, entry: object, key: str, message: str) -> EntryProblem:
        """Make the problem of a key of an entry in the list at `place`."""
        name = entry if isinstance(entry, str) else ""
        path = f"{place}[{index}]" if index >= 0 else place
        shown = f"entry {name!r:.80}: {message}" if name else message
        return cls(f"{path}.{key}" if key else path, shown, name, index, key)

    def as_json(self) -> dict[str, Any]:
        """Give it to programs."""
        return {"entry": self.entry, "index": self.index, "key": self.key, "message": self.message}


@dataclass(frozen=True)
class Entries:
    """Entries as columns: item i of each belongs to the entry i. They are right, each for itself."""

    names: list[str]
    rows: NDArray[np.void]
    """ENTRY; slot and target are 0."""
    lives: NDArray[np.float64]
    """Lifetimes in seconds, infinite without one."""
    offload: NDArray[np.bool_]
    actions: list[Target]
    action: NDArray[np.int64]
    """Index into `actions`."""

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def join(cls, parts: Sequence[Entries]) -> Entries:
        """Put several together, in order."""
        if len(parts) == 1:
            return parts[0]
        known: dict[Target, int] = {}
        numbers = [
            np.array([known.setdefault(target, len(known)) for target in part.actions], dtype=np.int64)[part.action]
            for part in parts
        ]
        return cls(
            [name for part in parts for name in part.names],
            join_rows((part.rows for part in parts), ENTRY),
            np.concatenate([np.zeros(0), *(part.lives for part in parts)]),
            np.concatenate([np.zeros(0, dtype=bool), *(part.offload for part in parts)]),
            list(known),
            np.concatenate([np.zeros(0, dtype=np.int64), *numbers]),
        )

    def select(self, which: NDArray[Any]) -> Entries:
        """Give those of an index array."""
        names = [self.names[index] for index in which]
        picked = self.rows[which], self.lives[which], self.offload[which], self.action[which]
        return Entries(names, picked[0], picked[1], picked[2], self.actions, picked[3])


_ORDERS: TypeAdapter[list[EntryOrder]] = TypeAdapter(list[EntryOrder])
_TABLES: TypeAdapter[list[EntryTable]] = TypeAdapter(list[EntryTable])


def parse_orders(raw: object, place: str = "add", first: int = 0) -> Entries:
    """Read entries of an application, from JSON. `first`: the number of the first one. EntryError: all problems."""
    if not isinstance(raw, list):
        raise ConfigError("flow", [Problem(place, f"is {raw!r:.80}; should be a list of entries")])
    try:
        return convert(_ORDERS.validate_python(raw), place, first)
    except ValidationError as error:
        found = [_of_pydantic(detail, raw, place, first) for detail in error.errors(include_url=False)]
    raise EntryError("flow", found)


def check_tables(raw: Sequence[object], place: str) -> Iterator[EntryProblem]:
    """Find mistakes of the TOML's entries that a model cannot find, each entry for itself."""
    try:
        good, places = _TABLES.validate_python(raw), list(range(len(raw)))
    except ValidationError as error:
        bad = {detail["loc"][0] for detail in error.errors(include_url=False)}
        places = [index for index in range(len(raw)) if index not in bad]
        good = _TABLES.validate_python([raw[index] for index in places])
    for problem in _Conversion(good, place).problems():
        index = places[problem.index]
        path = problem.path.replace(f"[{problem.index}]", f"[{index}]", 1)
        yield EntryProblem(path, problem.message, problem.entry, index, problem.key)


def convert_raw(raw: Sequence[object], place: str) -> Entries | None:
    """Convert the TOML's entries, which are right, each for itself. None: they are not."""
    try:
        return convert(_TABLES.validate_python(raw), place)
    except (ValidationError, EntryError):
        return None


def convert(specs: Sequence[EntryTable], place: str, first: int = 0) -> Entries:
    """Convert entries whose keys are right, each for itself. EntryError: all problems."""
    work = _Conversion(specs, place, first)
    problems = list(work.problems())
    if problems:
        raise EntryError("flow", problems)
    return work.entries()


def read_target(keys: Mapping[str, Any], entry: str) -> Target:
    """Read what :meth:`Target.parameters` gave, for `entry`. ValueError: the keys are no target."""
    return _make_target(EntryTable.model_validate({"name": entry, **keys}))


def check_machine(
    entries: Entries,
    place: str,
    interfaces: Collection[str],
    cpus: Collection[int],
    which: NDArray[np.int64] | None = None,
    unusable: Mapping[str, str] | None = None,
) -> None:
    """EntryError: an entry, of those at the indices `which`, names an interface or CPU that is not there.

    unusable: interfaces that packets cannot be redirected to, and why.
    """
    problems, unusable = [], unusable or {}
    for number, target in enumerate(entries.actions):
        if target.action == "redirect" and target.interface not in interfaces:
            key, known = "interface", ", ".join(sorted(interfaces))
            message = f"there is no interface {target.interface!r:.40} in this network namespace (there are: {known})"
        elif target.action == "redirect" and target.interface in unusable:
            key, message = "interface", f"{target.interface} {unusable[target.interface]}"
        elif target.action == "cpu" and target.cpu not in cpus:
            key, message = "cpu", f"CPU {target.cpu} is not online; there are {_ranges(cpus)}"
        else:
            continue
        users = _where(entries.action == number)
        for index in users if which is None else sorted(set(users) & set(which.tolist())):
            problems.append(EntryProblem.at(place, index, entries.names[index], key, message))
    if problems:
        raise EntryError("flow", problems)


def describe(rows: NDArray[np.void], targets: Mapping[int, Target]) -> Iterator[dict[str, Any]]:
    """Give the keys of entries that their rows and targets hold."""
    keys = rows["key"]
    parameters = {number: target.parameters() for number, target in targets.items()}
    ends = (
        _texts(keys["src"], keys["wild"][:, 0], rows["family"]),
        _texts(keys["dst"], keys["wild"][:, 1], rows["family"]),
    )
    numbers = (keys["sport"], keys["dport"], keys["proto"], keys["wild"][:, 2], rows["family"], rows["precedence"])
    columns = zip(*ends, *(column.tolist() for column in numbers), rows["target"].tolist(), strict=True)
    for src, dst, sport, dport, proto, anything, family, precedence, target in columns:
        found: dict[str, Any] = {}
        if src:
            found["src"] = src
        if dst:
            found["dst"] = dst
        if not anything & _SPORT:
            found["sport"] = sport
        if not anything & _DPORT:
            found["dport"] = dport
        if not anything & _PROTO:
            found["proto"] = _proto_text(proto)
        if not (src or dst):
            found["family"] = family
        found |= parameters[target]
        if priority := precedence & 0xFFFF:
            found["priority"] = priority
        yield found


_SPORT, _DPORT, _PROTO = (int(flag) for flag in Anything)


def _texts(addresses: NDArray[np.uint8], is_open: NDArray[np.uint8], families: NDArray[np.uint32]) -> Iterator[str]:
    """Write addresses and prefixes, nothing where any address will do."""
    packed = addresses.tobytes()
    for index, (low, family) in enumerate(zip(is_open.tolist(), families.tolist(), strict=True)):
        bits = ADDRESS_BITS[family]
        if low == bits:
            yield ""
            continue
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        text = socket.inet_ntop(kind, packed[16 * index : 16 * index + bits // 8])
        yield f"{text}/{bits - low}" if low else text


class _Ends:
    """One end, source or destination, of a list of entries: addresses as bytes, and how much of them is fixed."""

    def __init__(self, texts: Sequence[str | None]) -> None:
        self.wrong: dict[int, str] = {}
        """Index → what is wrong with the text."""
        self.text = texts
        packed, family, fixed = [_NOWHERE] * len(texts), [0] * len(texts), [0] * len(texts)
        for index, text in enumerate(texts):
            if text is None:
                continue
            address, slash, length = text.partition("/")
            try:
                if ":" in address:
                    packed[index], family[index] = socket.inet_pton(socket.AF_INET6, address), 6
                else:
                    packed[index], family[index] = socket.inet_pton(socket.AF_INET, address) + _REST_OF_IPV4, 4
                bits = ADDRESS_BITS[family[index]]
                fixed[index] = _prefix_length(length, bits) if slash else bits
            except (OSError, ValueError):
                packed[index], family[index] = _NOWHERE, 0
                self.wrong[index] = f"is {text!r:.60}; {_WANTED}"
        self.packed = np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(-1, 16)
        self.family = np.array(family, dtype=np.int64)
        self.fixed = np.array(fixed, dtype=np.int64)
        """Leading bits that are fixed."""


_WANTED = "should be an IPv4 or IPv6 address, or a prefix such as '198.18.10.0/24'"
_NOWHERE = bytes(16)
_REST_OF_IPV4 = bytes(12)


def _prefix_length(text: str, most: int) -> int:
    if text.isascii() and text.isdecimal() and str(number := int(text[:4])) == text and number <= most:
        return number
    raise ValueError


class _Conversion:
    """The conversion of a list of entries: columns first, then all problems, then the result."""

    def __init__(self, specs: Sequence[EntryTable], place: str, first: int = 0) -> None:
        self._specs = specs
        self._place = place
        self._first = first
        total = len(specs)
        self._src, self._dst = _Ends([spec.src for spec in specs]), _Ends([spec.dst for spec in specs])
        self._named = np.fromiter((spec.family or 0 for spec in specs), dtype=np.int64, count=total)
        self._family = np.maximum(np.maximum(self._src.family, self._dst.family), self._named)
        self._sport = np.fromiter((spec.sport or 0 for spec in specs), dtype=np.int64, count=total)
        self._dport = np.fromiter((spec.dport or 0 for spec in specs), dtype=np.int64, count=total)
        protos = (-1 if spec.proto is None else spec.proto for spec in specs)
        self._proto = np.fromiter(protos, dtype=np.int64, count=total)
        self._rows = self._make_rows()

    def problems(self) -> Iterator[EntryProblem]:
        """Give all problems, entry by entry."""
        found = [
            *(self._problem(index, key, text) for key, end in self._ends() for index, text in end.wrong.items()),
            *self._wrong_families(),
            *self._wrong_ports(),
            *self._host_bits(),
            *self._wrong_parameters(),
            *self._wrong_requires(),
            *self._named_twice(),
        ]
        yield from sorted(found, key=lambda problem: problem.index)

    def entries(self) -> Entries:
        """Give the result. There must be no problems."""
        total = len(self._specs)
        targets: dict[Any, Target] = {}
        numbers: dict[Any, int] = {}
        action = np.empty(total, dtype=np.int64)
        for index, spec in enumerate(self._specs):
            key = _target_key(spec)
            number = numbers.setdefault(key, len(numbers))
            if number == len(targets):
                targets[key] = _make_target(spec)
            action[index] = number
        lives = (getattr(spec, "ttl", None) for spec in self._specs)
        return Entries(
            [spec.name for spec in self._specs],
            self._rows,
            np.fromiter((np.inf if life is None else life for life in lives), dtype=np.float64, count=total),
            np.fromiter((spec.offload for spec in self._specs), dtype=np.bool_, count=total),
            list(targets.values()),
            action,
        )

    def _ends(self) -> Iterable[tuple[str, _Ends]]:
        return ("src", self._src), ("dst", self._dst)

    def _problem(self, index: int, key: str, message: str) -> EntryProblem:
        return EntryProblem.at(self._place, index + self._first, self._specs[index].name, key, message)

    def _make_rows(self) -> NDArray[np.void]:
        total = len(self._specs)
        rows = np.zeros(total, dtype=ENTRY)
        bits = np.where(self._family == 6, 128, 32)
        anything = np.zeros(total, dtype=np.uint8)
        for is_open, flag in zip((self._sport == 0, self._dport == 0, self._proto < 0), Anything, strict=True):
            anything[is_open] |= np.uint8(flag)
        # An end that is wrong may have more fixed bits than its family: it is a problem, and nobody reads the row.
        open_bits = [np.maximum(bits - end.fixed, 0) for _, end in self._ends()]
        rows["key"]["src"], rows["key"]["dst"] = self._src.packed, self._dst.packed
        rows["key"]["sport"], rows["key"]["dport"] = self._sport, self._dport
        rows["key"]["proto"] = np.maximum(self._proto, 0)
        rows["key"]["wild"] = np.stack([*open_bits, anything], axis=1)
        rows["family"] = self._family
        specificity = self._src.fixed + self._dst.fixed
        specificity += 16 * (self._sport > 0) + 16 * (self._dport > 0) + 8 * (self._proto >= 0)
        priorities = np.fromiter((spec.priority for spec in self._specs), dtype=np.int64, count=total)
        rows["precedence"] = (specificity << 16) | priorities
        return rows

    def _wrong_families(self) -> Iterator[EntryProblem]:
        for index in _where(self._family == 0):
            if index not in self._src.wrong.keys() | self._dst.wrong.keys():
                yield self._problem(index, "family", "is missing; should be 4 or 6, as neither src nor dst says it")
        both = (self._src.family > 0) & (self._dst.family > 0) & (self._src.family != self._dst.family)
        for index in _where(both):
            text = f"is {self._dst.text[index]!r:.60} and src is {self._src.text[index]!r:.60}; should be of one family"
            yield self._problem(index, "dst", text)
        for key, end in self._ends():
            for index in _where((self._named > 0) & (end.family > 0) & (end.family != self._named)):
                text = f"is {self._named[index]}, but {key} is {end.text[index]!r:.60}; should be {end.family[index]}"
                yield self._problem(index, "family", text)

    def _wrong_ports(self) -> Iterator[EntryProblem]:
        has_ports = (self._sport > 0) | (self._dport > 0)
        for index in _where(has_ports & ~np.isin(self._proto, list(PROTOCOL_NAMES))):
            key = "sport" if self._sport[index] else "dport"
            port = getattr(self._specs[index], key)
            yield self._problem(index, key, f"is {port}; a port needs proto, which should be 'tcp' or 'udp'")

    def _host_bits(self) -> Iterator[EntryProblem]:
        for key, end in self._ends():
            is_open = np.clip(np.where(self._family == 6, 128, 32) - end.fixed, 0, 128)
            has_bits = (end.packed & ~fixed_bits(self._family, is_open)).any(axis=1) & (end.family == self._family)
            for index in _where(has_bits):
                network = ipaddress.ip_network(end.text[index] or "", strict=False)
                text = f"is {end.text[index]!r}, which has host bits; should be {str(network)!r}"
                yield self._problem(index, key, text)

    def _wrong_parameters(self) -> Iterator[EntryProblem]:
        for index, spec in enumerate(self._specs):
            given = spec.model_fields_set
            if spec.action != "police" and not PARAMETERS[spec.action] and given.isdisjoint(ALL_PARAMETERS):
                continue
            present = {key for key in given & ALL_PARAMETERS if getattr(spec, key) is not None}
            for key in sorted(present - PARAMETERS[spec.action]):
                wants = ", ".join(sorted(PARAMETERS[spec.action])) or "no parameter"
                yield self._problem(index, key, f"does not belong to action {spec.action!r}, which has {wants}")
            yield from self._missing_parameters(index, spec, present)

    def _missing_parameters(self, index: int, spec: EntryTable, present: set[str]) -> Iterator[EntryProblem]:
        rates = [key for key in _RATES if key in present]
        if spec.action == "police" and len(rates) != 1:
            wanted = "should have one of packets_per_second and bytes_per_second"
            yield self._problem(index, _RATES[0], f"action 'police' {wanted}, not {'both' if rates else 'none'}")
        elif spec.action == "police":
            yield from self._wrong_rate(index, spec, rates[0])
        for key in sorted(PARAMETERS[spec.action] - present - set(_RATES)):
            yield self._problem(index, key, f"is missing; action {spec.action!r} needs it")
        if spec.interface is not None and not 1 <= len(spec.interface) <= 15:
            yield self._problem(index, "interface", f"is {spec.interface!r:.40}; should be the name of an interface")

    def _wrong_rate(self, index: int, spec: EntryTable, key: str) -> Iterator[EntryProblem]:
        """Find a rate, and a burst, that the datapath cannot count: see :func:`.layouts.police_rate`."""
        rate, slowest = getattr(spec, key), SLOWEST_BYTES if key == "bytes_per_second" else 1
        if rate < slowest:
            yield self._problem(index, key, f"is {rate}; should be from {slowest} to {FASTEST:,}")
        elif (spec.burst or 0) > (most := LONGEST_BURST * rate):
            text = f"is {spec.burst:,}; should be at most {most:,}, which take a year at this rate"
            yield self._problem(index, "burst", text)

    def _wrong_requires(self) -> Iterator[EntryProblem]:
        for index, spec in enumerate(self._specs):
            if spec.require is None:
                continue
            try:
                require = _make_require(spec.require)
            except ValueError as error:
                key, _, message = str(error).partition(" ")
                yield self._problem(index, f"require.{key}", message)
                continue
            if differs := _outside(self._rows[index], require):
                text = "differs from what the entry itself matches: no packet of it could meet it"
                yield self._problem(index, f"require.{differs}", text)

    def _named_twice(self) -> Iterator[EntryProblem]:
        if len({spec.name for spec in self._specs}) == len(self._specs):
            return
        seen: dict[str, int] = {}
        for index, spec in enumerate(self._specs):
            if (before := seen.setdefault(spec.name, index)) != index:
                text = f"is the name of {self._place}[{before + self._first}], too; names should be different"
                yield self._problem(index, "name", text)


def _target_key(spec: EntryTable) -> Any:
    """Give what entries with the same target have in common."""
    if spec.action == "police":
        return spec.name, "police"
    if spec.require is None and not PARAMETERS[spec.action]:
        return spec.action
    return spec.action, spec.interface, spec.dscp, spec.cpu, spec.require and _make_require(spec.require)


def _make_target(spec: EntryTable) -> Target:
    return Target(
        spec.action,
        spec.interface or "",
        spec.dscp or 0,
        spec.packets_per_second or 0,
        spec.bytes_per_second or 0,
        spec.burst or 0,
        spec.cpu or 0,
        _make_require(spec.require) if spec.require is not None else None,
        spec.name if spec.action == "police" else "",
    )


def _make_require(table: RequireTable) -> Require:
    """Read the addresses of `require`. ValueError: the key, a space, and what is wrong with it."""
    ends = [_network(key, text) for key, text in (("src", table.src), ("dst", table.dst))]
    families = {end.version for end in ends if end is not None} | ({table.family} if table.family else set())
    if len(families) > 1:
        raise ValueError("family differs from that of an address; should be of one family")
    if table.dport is not None and table.proto not in PROTOCOL_NAMES:
        raise ValueError(f"dport is {table.dport}; a port needs proto, which should be 'tcp' or 'udp'")
    return Require(next(iter(families), 0), ends[0], ends[1], table.proto, table.dport)


@lru_cache(4096)
def _network(key: str, text: str | None) -> Network | None:
    if text is None:
        return None
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        hint = str(error) if "host bits" in str(error) else _WANTED
        raise ValueError(f"{key} is {text!r:.60}; {hint}") from None


def _outside(row: np.void, require: Require) -> str:
    """Give the key of `require` that packets of an entry do not meet, or nothing."""
    family, key = int(row["family"]), row["key"]
    if require.family not in (0, family):
        return "family"
    for number, (name, network) in enumerate((("src", require.src), ("dst", require.dst))):
        if network is not None:
            fixed = ADDRESS_BITS[family] - int(key["wild"][number])
            if fixed < network.prefixlen or unpack_address(key[name], family) not in network:
                return name
    for name, value in (("proto", require.proto), ("dport", require.dport)):
        flag = Anything.PROTO if name == "proto" else Anything.DPORT
        if value is not None and (int(key["wild"][2]) & flag or int(key[name]) != value):
            return name
    return ""


def _require_keys(require: Require) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, network in (("src", require.src), ("dst", require.dst)):
        if network is not None:
            whole = network.prefixlen == network.max_prefixlen
            found[name] = str(network.network_address) if whole else str(network)
    if require.proto is not None:
        found["proto"] = _proto_text(require.proto)
    if require.dport is not None:
        found["dport"] = require.dport
    if require.family and not found.keys() & {"src", "dst"}:
        found["family"] = require.family
    return found


def _where(mask: NDArray[np.bool_]) -> list[int]:
    found: list[int] = np.flatnonzero(mask).tolist()
    return found


def _proto_text(number: int) -> str | int:
    return PROTOCOL_NAMES.get(number, number)


def _ranges(numbers: Collection[int]) -> str:
    """Write CPU numbers as 0-3,6."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if first != last else f"{first}" for first, last in runs)


def _of_pydantic(detail: Any, raw: Sequence[Any], place: str, first: int) -> EntryProblem:
    """Make a problem of an error of pydantic in a list of entries."""
    index, *steps = detail["loc"]
    entry = raw[index].get("name") if isinstance(raw[index], dict) else None
    key = ".".join(str(step) for step in steps)
    if detail["type"] == "extra_forbidden":
        table = RequireTable if len(steps) > 1 else EntryOrder
        message = f"unknown key; known here: {', '.join(table.model_fields)}"
    elif detail["type"] == "missing":
        message = "is missing"
    elif detail["type"] == "model_type":
        message = f"is {detail['input']!r:.80}; should be a table of keys and values"
    else:
        message = detail["msg"].removeprefix("Value error, ")
        message = f"is {detail['input']!r:.80}; {message[0].lower()}{message[1:]}"
    return EntryProblem.at(place, index + first, entry, key, message)
