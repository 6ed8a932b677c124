# SPDX-License-Identifier: Apache-2.0
"""`nfcore plugins`: which plugins are installed, and in which order their hooks are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..api.config import NO_BACKEND, Config
from ..api.hookspecs import PROJECT, ROLES, CalledOn
from ..engine.admission import NAME as ADMISSION
from ..errors import describe_error
from ..hooks import discovery
from ..hooks.manager import PluginManager


@dataclass(frozen=True)
class PluginRow:
    """An installed plugin."""

    name: str
    version: str
    distribution: str
    source: str
    """Module and attribute of its entry point."""
    hooks: list[str]
    api: int | None
    """Version of the hooks that the plugin states it was written for; None: it states none."""
    error: str | None
    """Why it cannot be loaded."""
    remarks: list[str]
    """No errors, but probably mistakes."""


@dataclass(frozen=True)
class HookRow:
    """A hook, and the plugins that implement it."""

    hook: str
    asked: str
    runs: str
    order: list[str]
    """Plugins in the order in which they are called; for backends and network functions ``interface: name, name``."""


def installed() -> Iterator[PluginRow]:
    """Load every installed plugin by itself and describe it, or why it cannot be loaded."""
    for name in discovery.installed():
        info = discovery.describe(name)
        hooks, api, error = [], None, None
        competing_distributions = discovery.competing_distributions(name)
        plugins = PluginManager()
        try:
            plugins.load(name)
            hooks, api = plugins.hooks_of(name), getattr(plugins.plugin(name), f"{PROJECT}_api", None)
        except Exception as fault:  # noqa: BLE001 - a broken plugin is listed as such
            error = describe_error(fault)
        remarks = list(plugins.remarks)
        if competing_distributions:
            remarks.append(f"plugin {name} is in several distributions: {', '.join(competing_distributions)}")
        yield PluginRow(name, info.version, info.distribution, info.source, hooks, api, error, remarks)


def calling_order(plugins: PluginManager, config: Config | None) -> Iterator[HookRow]:
    """Yield for each hook the loaded plugins that it is called on, in order."""
    for hook, role in ROLES.items():
        order = plugins.implementing(hook)
        if role.asked is CalledOn.REVERSED:
            order.reverse()
        if role.asked in (CalledOn.BACKEND, CalledOn.FUNCTION) and config is not None:
            order = list(_by_interface(config, role.asked, order))
        if hook == "on_new_flow":
            order.append(f"{ADMISSION} (the core's [offload])")
        yield HookRow(hook, str(role.asked), str(role.runs), order)


def _by_interface(config: Config, asked: CalledOn, implementing: list[str]) -> Iterator[str]:
    for interface in config.interfaces:
        named = interface.offload if asked is CalledOn.BACKEND else interface.chain
        order = [name for name in named if name in implementing or name == NO_BACKEND]
        yield f"{interface.name}: {', '.join(order)}"
