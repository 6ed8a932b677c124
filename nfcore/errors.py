# SPDX-License-Identifier: Apache-2.0
"""The errors that a user sees.

The text of each names the thing, its place and what would be right. The command line turns them into an exit status;
nothing else calls ``sys.exit``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .refusals import explain


def describe_error(error: BaseException) -> str:
    """Give the type and the message of an exception; for a refusal of the kernel, its cause and what to do.

    ``str()`` of a plugin's own exception may raise itself.
    """
    try:
        if isinstance(error, OSError) and error.errno:
            return explain(error) + (f" ({error.filename})" if error.filename else "")
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - whatever it raises, there is no message
        return f"{type(error).__name__}, whose message cannot be read"


def key_path(table: str, *steps: str | int) -> str:
    """Give the full path of a key as TOML writes it, such as ``softnic.pins."eth0.100"`` or ``vips[2].port``.

    `table` is the path where the steps begin, and may be empty.
    """
    shown = "".join(f"[{step}]" if isinstance(step, int) else f".{_key(step)}" for step in steps)
    return table + shown if table else shown.removeprefix(".")


def _key(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]+", name):
        return name
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007F")  # TOML escapes this one, too


class NfcoreError(Exception):
    """Base of the errors that a user sees without a traceback."""

    exit_status = 1
    details: Mapping[str, Any] = {}
    """What a program may want to know beside the text, as JSON values; the socket hands it on."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration file."""

    path: str
    """Full path of the key, such as ``katran_accel.vips[2].port``; empty for the file as a whole."""
    message: str
    """What is wrong, with the value, and what would be right."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(frozen=True)
class Remark(Problem):
    """Something in a configuration that is allowed and hardly meant. It is told, and hinders nothing."""


class ConfigError(NfcoreError):
    """The configuration cannot be used. Has every problem that one reading found."""

    exit_status = 2

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


class HostError(NfcoreError):
    """The machine is not as needed: missing privileges, interface or headers, or the kernel refuses."""


def in_use(what: str, process: object, socket: str = "") -> HostError:
    """Refuse what another nfcore has: a process, perhaps a daemon with a socket."""
    where = f" with the socket {socket}" if socket else ""
    return HostError(f"{what} is in use by another nfcore, process {process}{where}: stop it first")


class UnsupportedError(HostError):
    """This kernel, NIC or installation lacks a feature. The only error on which a test may skip."""

    def __init__(self, feature: str, requirement: str) -> None:
        self.feature = feature
        self.requirement = requirement
        super().__init__(f"{feature} is not supported here (requires {requirement})")
