# SPDX-License-Identifier: Apache-2.0
"""The plugin host: finds plugins by entry point, loads those that are named, calls their hooks one by one.

A hook that raises is logged and counted with its plugin's name; the others go on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from .errors import NfcoreError
from .hookspecs import PROJECT, Hooks

ENTRY_POINT_GROUP = "nfcore.plugins"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PluginInfo:
    """What is known of an installed plugin without loading it."""

    name: str
    version: str
    distribution: str
    source: str
    """Module and attribute of the entry point."""


class PluginHost:
    """Plugins of one process."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self._callers: dict[tuple[str, str], pluggy.HookCaller] = {}
        self.errors: Counter[tuple[str, str]] = Counter()
        """(plugin, hook) → how often it raised."""

    @staticmethod
    def installed() -> dict[str, EntryPoint]:
        """All plugins that this Python could load, by name."""
        return {point.name: point for point in sorted(entry_points(group=ENTRY_POINT_GROUP))}

    @classmethod
    def describe(cls, name: str) -> PluginInfo:
        """Describe the installed plugin `name`."""
        point = cls.installed()[name]
        if point.dist is None:
            return PluginInfo(name, "?", "?", point.value)
        return PluginInfo(name, point.dist.version, point.dist.name, point.value)

    def load(self, name: str) -> None:
        """Import and register an installed plugin; whatever its import raises comes through."""
        if self._manager.has_plugin(name):
            return
        self.register(self.installed()[name].load()(), name)

    def register(self, plugin: object, name: str) -> None:
        """Register an object as plugin `name`. NfcoreError names a hook of another signature or none of ours."""
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            raise NfcoreError(f"plugin {name!r}: {error}") from None
        except ValueError:
            raise NfcoreError(f"plugin {name!r}: the name is taken, or the object is registered already") from None
        self._callers.clear()

    def loaded(self) -> list[str]:
        """Names of the loaded plugins, in loading order."""
        return [name for name, _ in self._manager.list_name_plugin()]

    def implementing(self, hook: str) -> list[str]:
        """Names of the loaded plugins that have `hook`, in loading order."""
        return [name for name in self.loaded() if self._implements(name, hook)]

    def hooks_of(self, name: str) -> list[str]:
        """Names of the hooks that a loaded plugin has."""
        callers = self._manager.get_hookcallers(self._manager.get_plugin(name)) or []
        return sorted(caller.name for caller in callers)

    def call(self, plugin: str, hook: str, **arguments: Any) -> Any:
        """Call `hook` of one plugin, errors coming through; None when it does not have it."""
        if not self._implements(plugin, hook):
            return None
        result = self._caller(plugin, hook)(**arguments)
        if isinstance(result, list) and not self._first_result(hook):
            return result[0] if result else None
        return result

    def each(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Call `hook` of every plugin that has it; those that raise are logged, counted and left out."""
        for plugin in self.implementing(hook):
            done, result = self.attempt(plugin, hook, **arguments)
            if done:
                yield plugin, result

    def attempt(self, plugin: str, hook: str, **arguments: Any) -> tuple[bool, Any]:
        """Call `hook` of one plugin; (False, None) when it raised, which is logged and counted."""
        try:
            return True, self.call(plugin, hook, **arguments)
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is its fault, named
            self.blame(plugin, hook, f"failed: {type(error).__name__}: {error}", error)
            return False, None

    def blame(self, plugin: str, hook: str, words: str, error: Exception | None = None) -> None:
        """Count a plugin's fault; log the first of its kind: a million flows must not make a million lines."""
        if not self.errors[plugin, hook]:
            log.error("plugin %s: %s %s", plugin, hook, words)
        self.errors[plugin, hook] += 1
        log.debug("plugin %s: %s %s", plugin, hook, words, exc_info=error)

    def first(self, hook: str, **arguments: Any) -> Any:
        """Give the first answer that is not None, in loading order."""
        for _, result in self.each(hook, **arguments):
            if result is not None:
                return result
        return None

    def _implements(self, plugin: str, hook: str) -> bool:
        return any(impl.plugin_name == plugin for impl in getattr(self._manager.hook, hook).get_hookimpls())

    def _first_result(self, hook: str) -> bool:
        spec = getattr(self._manager.hook, hook).spec
        return bool(spec and spec.opts["firstresult"])

    def _caller(self, plugin: str, hook: str) -> pluggy.HookCaller:
        caller = self._callers.get((plugin, hook))
        if caller is None:
            others = [other for name, other in self._manager.list_name_plugin() if name != plugin]
            caller = self._manager.subset_hook_caller(hook, others)
            self._callers[plugin, hook] = caller
        return caller
