# SPDX-License-Identifier: Apache-2.0
"""Reads one TOML file into models, and collects every mistake under its full key."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import toml
from pydantic import BaseModel, ValidationError

from ..api.config import ConfigTable
from ..errors import ConfigError, Problem, describe_error
from ..hooks.faults import replacement

_T = TypeVar("_T", bound=ConfigTable)
_R = TypeVar("_R")


def read_toml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the file and apply overrides ``key.path=VALUE``; a VALUE that is not TOML is a plain text."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"cannot be read: {error.strerror or error}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Problem("", f"is not UTF-8 text: {error}")]) from None
    except (ValueError, RecursionError) as error:  # also numbers too long for int(), and too many brackets
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


class Reader:
    """Reads the tables of one file; collects problems instead of stopping at the first."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.problems: list[Problem] = []

    def table(self, model: type[_T], raw: object, path: str) -> _T | None:
        """Read one table at `path`; None when it has problems."""
        if not isinstance(raw, dict):
            self.problems.append(Problem(path, f"is {raw!r}; should be a table"))
            return None
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            self.problems.extend(_problem(detail, path, model) for detail in error.errors())
            return None

    def tables(self, model: type[_T], raw: object, path: str) -> list[_T]:
        """Read an array of tables at `path`; those that have problems are left out."""
        if not isinstance(raw, list):
            self.problems.append(Problem(path, f"is {raw!r}; should be an array of tables, written [[{path}]]"))
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


def _problem(detail: Any, path: str, model: type[ConfigTable]) -> Problem:
    """Make a problem of a pydantic error in the table at `path`."""
    where = path + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if detail["type"] == "extra_forbidden":
        return Problem(where, "unknown key" + suggest(str(detail["loc"][-1]), _known_keys(model, detail["loc"])))
    if detail["type"] == "missing":
        return Problem(where, "is missing")
    shown = repr(detail["input"])
    return Problem(where, f"is {shown if len(shown) <= 80 else shown[:77] + '…'}; {message}")


def _known_keys(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Give the keys of the table that has the unknown key at `loc`: follows the models along `loc`."""
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


def suggest(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that is close, or list all. The text begins with "; ", or is empty."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def write_toml(tables: Mapping[str, Any]) -> str:
    """Write tables, such as :meth:`Config.resolved` gives, as a TOML document."""
    encoder: toml.TomlEncoder[dict[str, Any]] = toml.TomlEncoder()
    # toml writes a backslash before an x wrongly. A JSON string is valid TOML, except for the character DEL.
    encoder.dump_funcs[str] = lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
    return toml.dumps(dict(tables), encoder)
