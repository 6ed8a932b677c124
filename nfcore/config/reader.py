# SPDX-License-Identifier: Apache-2.0
"""Reads one TOML file into models, and collects every mistake under its full key."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import toml
from pydantic import BaseModel, ValidationError

from ..api.config import ConfigTable
from ..errors import ConfigError, Problem, Remark, describe_error, key_path
from ..hooks.faults import replacement
from ..refusals import explain

_T = TypeVar("_T", bound=ConfigTable)
_R = TypeVar("_R")
_MAX_DEPTH = 64
"""Tables and arrays within each other."""
_MAX_PROBLEMS = 10_000
"""Problems that a plugin may find: a generator without end must not use up all memory."""


def read_toml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the file and apply overrides ``key.path=VALUE``; a VALUE that is not TOML is a plain text."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows begin a file with a mark
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"cannot be read: {explain(error, path)}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Problem("", f"is not UTF-8 text: {error}")]) from None
    except (ValueError, RecursionError) as error:  # also numbers too long for int(), and too many brackets
        # What Python says of such a number ends with advice for programmers.
        raise ConfigError(str(path), [Problem("", f"is not TOML: {str(error).partition('; use sys.')[0]}")]) from None
    for override in overrides:
        _apply_override(raw, override)
    problems = [Problem(key_path("", *steps), message) for steps, message in _unusable(raw, ())]
    if problems:
        raise ConfigError(str(path), problems)
    return raw


def _unusable(value: object, steps: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Find what no table can have. Nothing after this has to fear a number or a depth that Python cannot write."""
    if isinstance(value, int):
        yield steps, f"is an integer of {value.bit_length()} bits; those of TOML have at most 64, with the sign"
    elif isinstance(value, dict | list) and len(steps) >= _MAX_DEPTH:
        yield steps[:4], f"has tables or arrays in more than {_MAX_DEPTH} levels"
    elif isinstance(value, dict | list):
        for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict | list) or (isinstance(inner, int) and not -(1 << 63) <= inner < 1 << 63):
                yield from _unusable(inner, (*steps, step))


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    parts = _read_keys(key) if sign else []
    if not parts:
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


def _read_keys(dotted: str) -> list[str]:
    """Read a key as TOML does, quoted parts included; an empty list when it is none."""
    try:
        table: Any = tomllib.loads(f"{dotted} = 0")
    except (ValueError, RecursionError):
        return []
    parts = []
    while isinstance(table, dict) and len(table) == 1:
        ((part, table),) = table.items()
        parts.append(part)
    return [] if isinstance(table, dict) else parts


class Reader:
    """Reads the tables of one file; collects problems instead of stopping at the first."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.problems: list[Problem] = []
        self.remarks: list[Remark] = []

    def table(self, model: type[_T], raw: object, path: str) -> _T | None:
        """Read one table at `path`; None when it has problems."""
        if not isinstance(raw, dict):
            self.problems.append(Problem(path, f"is {show(raw)}; should be a table"))
            return None
        return self.call(path, "read its table", lambda table: table, self._validate, model, raw, path)

    def _validate(self, model: type[_T], raw: dict[str, Any], path: str) -> _T | None:
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            found: dict[tuple[str, str], list[str]] = {}
            for detail in error.errors(include_url=False):
                where, shown, message = _describe(detail, raw, path, model)
                found.setdefault((where, shown), []).append(message)
            # The members of a union each have their say about the same value.
            for (where, shown), messages in found.items():
                self.problems.append(Problem(where, shown + "; or ".join(dict.fromkeys(messages))))
            return None

    def tables(self, model: type[_T], raw: object, path: str) -> list[_T]:
        """Read an array of tables at `path`; those that have problems are left out."""
        if not isinstance(raw, list):
            self.problems.append(Problem(path, f"is {show(raw)}; should be an array of tables, written [[{path}]]"))
            return []
        read = [self.table(model, item, f"{path}[{number}]") for number, item in enumerate(raw)]
        return [table for table in read if table is not None]

    def call(
        self, plugin: str, purpose: str, convert: Callable[[Any], _R], function: Callable[..., Any], *arguments: object
    ) -> _R | None:
        """Call a function of a plugin and convert the result. None, with a problem, when it raises or exits."""
        try:
            return convert(function(*arguments))
        except BaseException as error:
            fault = replacement(error, keep_interrupt=True) or error
            if not isinstance(fault, Exception):
                raise
            self.problems.append(Problem(plugin, f"plugin {plugin!r} cannot {purpose}: {describe_error(fault)}"))
            return None

    def check(self, plugin: str, purpose: str, function: Callable[..., Any], *arguments: object) -> None:
        """Let a function of a plugin find problems, and what is to be remarked."""
        for problem in self.call(plugin, purpose, _read_problems, function, *arguments) or ():
            if isinstance(problem, Remark):
                self.remarks.append(problem)
            else:
                self.problems.append(problem)


def _read_problems(found: Iterable[Any]) -> list[Problem]:
    problems = list(islice(found, _MAX_PROBLEMS))
    for problem in problems:
        if not isinstance(problem, Problem):
            raise TypeError(f"it gave {show(problem)}; should be a nfcore.errors.Problem")
    return problems


def _describe(detail: Any, raw: dict[str, Any], path: str, model: type[ConfigTable]) -> tuple[str, str, str]:
    """Give the full key, the value as text, and the message of one of pydantic's errors in the table at `path`."""
    loc, kind = detail["loc"], detail["type"]
    steps, value = _follow(raw, loc)
    if loc and loc[-1] == "[key]" and steps[-1:] != ["[key]"]:
        return key_path(path, *steps), "is no key for this table: ", _message(detail)
    if kind == "missing":
        return key_path(path, *steps, str(loc[-1])), "", "is missing"
    if kind == "extra_forbidden":
        return key_path(path, *steps), "", "unknown key" + suggest(str(loc[-1]), _known_keys(model, loc))
    return key_path(path, *steps), f"is {show(value)}; ", _message(detail)


def _follow(raw: Any, loc: Sequence[int | str]) -> tuple[list[int | str], Any]:
    """Follow the steps of pydantic's `loc` that the TOML has, and give its value there.

    The others are no keys: members of a union, names of validators.
    """
    steps: list[int | str] = []
    for step in loc:
        is_key = step in raw if isinstance(raw, dict) else isinstance(raw, list) and step in range(len(raw))
        if is_key:
            raw = raw[step]
            steps.append(step)
    return steps, raw


def _message(detail: Any) -> str:
    """Word an error for someone who writes TOML."""
    match detail["type"]:
        case "model_type" | "dict_type":
            return "should be a table (a dictionary of keys and values)"
        case "too_short" | "too_long" as kind:
            short = kind == "too_short"
            count = detail["ctx"]["min_length" if short else "max_length"]
            return f"should have at {'least' if short else 'most'} {count} item{'s' * (count != 1)}"
    message: str = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message if len(message) <= 400 else message[:399] + "…"
    return message[:1].lower() + message[1:] or "is refused without a reason"


def _known_keys(model: type[BaseModel], loc: Sequence[int | str]) -> set[str]:
    """Give the keys of the tables that may stand where `loc` has an unknown key; none where that cannot be told."""
    kinds: list[Any] = [model]
    for step in loc[:-1]:
        models = [kind for each in kinds for kind in _members(each)]
        kinds = [inner for kind in models for inner in _inside(kind, step)] or kinds
    tables = [kind for each in kinds for kind in _members(each) if _is_model(kind)]
    return {field.alias or name for table in tables for name, field in table.model_fields.items()}


def _members(kind: Any) -> Iterator[Any]:
    """Give the types for which an annotation stands: of a union each, without what `Annotated` adds."""
    kind = getattr(kind, "__value__", kind)  # of an alias
    if get_origin(kind) is Annotated:
        yield from _members(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind


def _inside(kind: Any, step: int | str) -> Iterator[Any]:
    """Give the annotation of what stands under a key or an index of a value of type `kind`, if it can have one."""
    if _is_model(kind):
        yield from (each.annotation for name, each in kind.model_fields.items() if step in (name, each.alias))
    elif isinstance(origin := get_origin(kind), type):
        yield from (
            get_args(kind)[1:] if issubclass(origin, Mapping) else get_args(kind) if isinstance(step, int) else ()
        )


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, BaseModel)


def show(value: object) -> str:
    """Show a value of the TOML in a message, cut off where it is long."""
    text = value.isoformat() if isinstance(value, date | time) else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def suggest(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that is close, or list all. The text begins with "; ", or is empty."""
    known = sorted(known)
    close = difflib.get_close_matches(word[:80], known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def write_toml(tables: Mapping[str, Any]) -> str:
    """Write tables, such as :meth:`Config.resolved` gives, as a TOML document."""
    return "\n".join(_lines(tables, "")) + "\n"


def _lines(table: Mapping[str, Any], path: str) -> Iterator[str]:
    """Write a table: its values, then its tables and arrays of tables, each with a head.

    toml's own `dumps` loses empty tables in an array of tables, and takes a table in a list of lists for its keys.
    """
    later = []
    for key, value in table.items():
        is_array = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
        if isinstance(value, dict):
            later.append((f"[{key_path(path, key)}]", value, key_path(path, key)))
        elif is_array:
            later += [(f"[[{key_path(path, key)}]]", item, key_path(path, key)) for item in value]
        else:
            yield f"{key_path('', key)} = {_encode(value)}"
    for head, inner, inner_path in later:
        yield f"\n{head}"
        yield from _lines(inner, inner_path)


def _encode(value: Any) -> str:
    match value:
        case str():
            # toml writes a backslash before an x wrongly. A JSON string is valid TOML, except for the character DEL.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
        case dict():
            return "{" + ", ".join(f"{key_path('', key)} = {_encode(inner)}" for key, inner in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_encode, value)) + "]"
    return str(_ENCODER.dump_value(value))


_ENCODER: toml.TomlEncoder[dict[str, Any]] = toml.TomlEncoder()
