# SPDX-License-Identifier: Apache-2.0
"""Every command takes CONFIG in the same ways: as the argument after its own, as -c, and some other by --socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from nfcore.cli.main import app
from nfcore.cli.plugin_commands import CommandGroup

REQUIRED = {
    "explain": ["198.18.1.2:4000 > 198.18.10.1:80/tcp"],
    "offload": ["off"],
    "flow add": ["flood", "--action", "drop"],
    "flow del": ["flood"],
    "flow list": [],
    "flow show": ["flood"],
    "flow load": ["-"],
    "flow clear": ["--yes"],
    "connections find": ["198.18.1.2:4000 > 198.18.10.1:80/tcp"],
    "connections delete": ["198.18.1.2:4000 > 198.18.10.1:80/tcp"],
    "connections purge": ["--real", "198.18.20.11", "--yes"],
    "trace": ["--hex", "00" * 60],
    "server-ids add": ["7=198.18.20.11"],
    "server-ids load": ["ids.csv"],
    "server-ids remove": ["7"],
    "server-ids invalidate": ["7"],
    "server-ids restore": ["7"],
    "source-routes add": ["198.18.7.0/24=198.18.20.11"],
    "source-routes load": ["routes.csv"],
    "source-routes remove": ["198.18.7.0/24"],
}
"""What commands need beside CONFIG."""


def leaves(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    context = typer.Context(command)
    for name in command.list_commands(context):
        yield from leaves(command.get_command(context, name), *path, name)


COMMANDS = dict(leaves(get_command(app)))
OF_A_DAEMON = [name for name, command in COMMANDS.items() if any(each.name == "socket" for each in command.params)]
WITH_CONFIG = [name for name, command in COMMANDS.items() if any(each.name == "config" for each in command.params)]


def test_all_commands_are_looked_at() -> None:
    assert {"stats", "top", "events", "offload", "flow list"} <= set(OF_A_DAEMON) < set(WITH_CONFIG)
    assert {"run", "check", "doctor", "plugins", "cleanup", "trace", "reload"} <= set(WITH_CONFIG)


@pytest.mark.parametrize("name", WITH_CONFIG)
@pytest.mark.parametrize("given", [["{}"], ["-c", "{}"], ["--config", "{}"], ["--config={}"]], ids=" ".join)
def test_each_way_leads_to_the_same_file(name: str, given: list[str], tmp_path: Path) -> None:
    """The file does not exist, so each command says so, and nothing else happens."""
    path = tmp_path / "lb.toml"
    words = [word.format(path) for word in given]
    done = CliRunner().invoke(app, [*name.split(), *REQUIRED.get(name, []), *words], input="")
    assert f"{path}: cannot be read: No such file" in f"{done.exception}", done.output


@pytest.mark.parametrize("name", OF_A_DAEMON)
def test_the_socket_can_be_named_instead(name: str, tmp_path: Path) -> None:
    command = [*name.split(), *REQUIRED.get(name, []), "--socket", str(tmp_path / "x.sock")]
    command += ["--once"] if name == "top" else []
    done = CliRunner().invoke(app, command, input="")
    assert f"no daemon answers at {tmp_path}/x.sock" in f"{done.exception}", done.output


def test_two_different_files_are_refused() -> None:
    done = CliRunner().invoke(app, ["check", "a.toml", "-c", "b.toml"])
    assert done.exit_code == 2
    assert "is a.toml, and --config is b.toml: name one" in done.output
    assert "cannot be read" in str(CliRunner().invoke(app, ["check", "a.toml", "-c", "a.toml"]).exception)


def test_an_option_of_the_command_itself_stays() -> None:
    own = typer.Typer(cls=CommandGroup)

    @own.command()
    def mine(config: str = typer.Argument(), count: int = typer.Option(1, "-c")) -> None:
        print(config, count)

    @own.command()
    def other() -> None: ...

    assert CliRunner().invoke(own, ["mine", "a", "-c", "3"]).output == "a 3\n"
