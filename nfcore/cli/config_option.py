# SPDX-License-Identifier: Apache-2.0
"""One way to name the TOML: each command with an argument CONFIG, also of a plugin, takes it as `-c CONFIG`, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

NAME = "config"
"""The parameter of a command that is the argument CONFIG."""
_GIVEN = "nfcore.config"
_OPTIONS = ("--config", "-c")


def take_option(command: Any) -> Any:
    """Let a command, or all commands of a group, take its argument CONFIG as an option; returns it. Idempotent."""
    for inner in getattr(command, "commands", {}).values():
        take_option(inner)
    argument = next((each for each in command.params if each.name == NAME and each.param_type_name == "argument"), None)
    taken = {option for each in command.params for option in each.opts}
    if argument is not None and argument.callback is None and not taken.intersection(_OPTIONS):
        argument.callback = _once
        command.params.append(_option())
    return command


def _option() -> Any:
    made = typer.Typer(add_completion=False)
    made.command()(_declare)
    (option,) = get_command(made).params
    option.expose_value = False
    return option


def _give(context: typer.Context, value: Path | None) -> None:
    """Make the value the argument's default: options are read before arguments."""
    if value is not None:
        context.meta[_GIVEN] = value
        context.default_map = {**(context.default_map or {}), NAME: value}


def _declare(
    same: Annotated[
        Path | None,
        typer.Option(
            *_OPTIONS, metavar="CONFIG", help="The same as the argument CONFIG.", callback=_give, readable=False
        ),
    ] = None,
) -> None:
    """Only its parameter is used."""


def _once(context: Any, parameter: Any, value: Any) -> Any:
    given = context.meta.get(_GIVEN, value)
    if given != value:
        raise typer.BadParameter(f"is {value}, and --config is {given}: name one", param_hint="CONFIG")
    return value
