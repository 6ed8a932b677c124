# SPDX-License-Identifier: Apache-2.0
"""Commands that plugins add. The plugins are loaded only when a command of the core is not what was called."""

from __future__ import annotations

import logging
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from .config_option import take_option

log = logging.getLogger(__name__)


class CommandGroup(TyperGroup):
    """The commands of the core, and those of the installed plugins."""

    _complete = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Give the names of all commands."""
        self._add_plugin_commands()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Give the command of this name, or None."""
        if cmd_name not in self.commands:
            self._add_plugin_commands()
        command = super().get_command(ctx, cmd_name)
        return None if command is None else take_option(command)

    def _add_plugin_commands(self) -> None:
        """Call `register_commands` of the installed plugins; leave out those whose commands exist already."""
        if self._complete:
            return
        self._complete = True
        from ..hooks.manager import load_installed

        plugins = load_installed()
        for plugin in plugins.implementing("register_commands"):
            app = typer.Typer(rich_markup_mode=None)
            plugins.try_call(plugin, "register_commands", app=app)
            added = get_group(app).commands
            if twice := sorted(added.keys() & self.commands.keys()):
                log.warning("plugin %s: its commands are left out: %s exists already", plugin, ", ".join(twice))
            else:
                self.commands.update(added)
