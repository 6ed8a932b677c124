# SPDX-License-Identifier: Apache-2.0
"""Reads the parameters of a method of the daemon's socket: what is wrong with them is told by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError, Problem


def take_parameters(method: str, parameters: object, *names: str) -> Sequence[Any]:
    """Give the values of parameters, None where one is not given. ConfigError: there are others."""
    if not isinstance(parameters, Mapping):
        raise ConfigError(method, [Problem("params", f"is {parameters!r:.80}; should be an object")])
    if unknown := sorted(set(parameters) - set(names)):
        known = f"there are: {', '.join(names)}" if names else "there are none"
        raise ConfigError(method, [Problem(f"{unknown[0]:.40}", f"is no parameter; {known}")])
    return [parameters.get(name) for name in names]


def take_number(method: str, key: str, value: object, default: int, least: int, most: int) -> int:
    """Give a number in its limits, `default` where it is not given. ConfigError: it is something else."""
    if value is None:
        return default
    if type(value) is int and least <= value <= most:
        return value
    raise ConfigError(method, [Problem(key, f"is {value!r:.40}; should be a number from {least:,} to {most:,}")])
