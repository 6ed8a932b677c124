# SPDX-License-Identifier: Apache-2.0
"""Commands of plugins: when they are added, and when they are left out."""

from __future__ import annotations

import logging

import pytest
import typer
from typer.testing import CliRunner

from nfcore.api.hookspecs import hookimpl
from nfcore.cli.plugin_commands import CommandGroup
from nfcore.hooks.manager import PluginManager

core = typer.Typer(cls=CommandGroup, rich_markup_mode=None)


@core.command()
def check() -> None:
    print("of the core")


@core.command()
def run() -> None: ...


class Adds:
    """A plugin with one command, and a group of them."""

    def __init__(self, *names: str) -> None:
        self._names = names

    @hookimpl
    def register_commands(self, app: typer.Typer) -> None:
        for name in self._names:
            app.command(name)(lambda: print("of a plugin"))
        group = typer.Typer()
        group.command("create")(lambda: print("of a group"))
        app.add_typer(group, name=f"{self._names[0]}s")


class Breaks:
    @hookimpl
    def register_commands(self, app: typer.Typer) -> None:
        raise RuntimeError("no commands today")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[PluginManager]:
    """Installs three plugins; holds what has been loaded."""
    loaded: list[PluginManager] = []

    def load_installed() -> PluginManager:
        plugins = PluginManager()
        plugins.register(Adds("feed"), "good")
        plugins.register(Adds("paper", "check"), "twice")
        plugins.register(Breaks(), "broken")
        loaded.append(plugins)
        return plugins

    monkeypatch.setattr("nfcore.hooks.manager.load_installed", load_installed)
    return loaded


def called(*arguments: str) -> str:
    return CliRunner().invoke(core, arguments).output


def test_a_command_of_the_core_loads_no_plugin(loads: list[PluginManager]) -> None:
    assert (called("check"), loads) == ("of the core\n", [])


def test_commands_and_groups_of_plugins(loads: list[PluginManager]) -> None:
    assert called("feed") == "of a plugin\n"
    assert called("feeds", "create") == "of a group\n"
    assert "No such command 'fed'. Did you mean 'feed'" in called("fed")
    assert len(loads) == 3


def test_help_has_those_of_the_core_first(loads: list[PluginManager]) -> None:
    listed = called("--help").partition("Commands:")[2].split()
    assert [word for word in listed if word in {"check", "run", "feed", "feeds"}] == ["check", "run", "feed", "feeds"]


def test_a_plugin_whose_command_exists_already_is_left_out(
    loads: list[PluginManager], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert "No such command" in called("paper")
    assert "plugin twice: its commands are left out: check exists already" in caplog.messages
    assert len(loads[0].faults) == 1
