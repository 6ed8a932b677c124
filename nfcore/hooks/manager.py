# SPDX-License-Identifier: Apache-2.0
"""Loads the plugins of a process and calls their hooks, one plugin at a time.

A hook that raises, gives a wrong result or takes too long is a fault: it is logged and counted with the plugin's name,
and the other plugins go on. With ``NFCORE_TRACE_HOOKS=1`` in the environment each call is logged.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pluggy

from ..api.hookspecs import PROJECT, ROLES, CalledOn, Hooks, Runs
from ..errors import NfcoreError, describe_error
from ..logs import HOOK_TRACE
from . import discovery
from .faults import Fault, HookTimeoutError, replacement
from .results import ResultError, check_result, read_all
from .signatures import check

TRACE_VARIABLE = "NFCORE_TRACE_HOOKS"
SLOW = 0.5
"""Seconds that a hook may take on the event loop, where nothing else runs meanwhile; more is a fault."""
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
log = logging.getLogger(__name__)
trace_log = logging.getLogger(HOOK_TRACE)


@dataclass
class Call:
    """A call of a hook that has not returned."""

    plugin: str
    hook: str
    began: float
    """Time by ``time.monotonic``."""
    reported: bool = False
    """Whether the time that it takes has been reported as a fault."""


@dataclass
class HookTime:
    """Calls of one hook of one plugin, and the seconds that they have taken."""

    calls: int = 0
    seconds: float = 0.0
    slowest: float = 0.0


class PluginManager:
    """The loaded plugins of one process."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self._implementations: dict[tuple[str, str], pluggy.HookImpl | None] = {}
        self._builtin: set[str] = set()
        """Names of the loaded plugins that are in nfcore's own distribution."""
        self.faults: Counter[tuple[str, str, Fault]] = Counter()
        """(plugin, hook, fault) → how often."""
        self.times: dict[tuple[str, str], HookTime] = {}
        """(plugin, hook) → calls and seconds."""
        self.under_way: dict[int, Call] = {}
        """Thread → the innermost hook that runs there."""
        self.loop_thread: int | None = None
        """The thread of the event loop, while it runs."""
        self.remarks: list[str] = []
        """Probable mistakes in the loaded plugins that are no errors."""
        self._lock = threading.Lock()
        """Protects `faults` and `times`: the threads of workers call hooks, too."""
        self._tracing = os.environ.get(TRACE_VARIABLE, "") not in ("", "0")

    def load(self, name: str) -> None:
        """Import and register an installed plugin. Exceptions of its import are passed on.

        NfcoreError when several distributions have a plugin of this name, and nfcore's own has none.
        """
        if self._manager.has_plugin(name):
            return
        point = discovery.installed()[name]
        builtin = discovery.is_builtin(point)
        if (rivals := discovery.competing_distributions(name)) and not builtin:
            raise NfcoreError(
                f"plugin {name!r}: is in several distributions, {', '.join(rivals)}: uninstall all but one"
            )
        try:
            plugin = point.load()()
        except BaseException as error:
            if (substitute := self._replacement(error)) is not None:
                raise substitute from error
            raise
        self.register(plugin, name)
        if builtin:
            self._builtin.add(name)

    def register(self, plugin: object, name: str) -> None:
        """Register an object as plugin `name`.

        NfcoreError when one of its hooks does not exist or does not fit its specification; the message has the
        signatures.
        """
        self.remarks += check(plugin, name)
        try:
            self._manager.register(plugin, name)
        except ValueError:
            raise NfcoreError(f"plugin {name!r}: the name is taken, or the object is registered already") from None
        self._implementations.clear()

    def loaded(self) -> list[str]:
        """Names of the loaded plugins, in loading order."""
        return [name for name, _ in self._manager.list_name_plugin()]

    def implementing(self, hook: str) -> list[str]:
        """Names of the loaded plugins that have `hook`, in loading order; nfcore's own first if its role says so."""
        names = [name for name in self.loaded() if self._implementation(name, hook) is not None]
        if ROLES[hook].asked is CalledOn.BUILTIN_FIRST:
            names.sort(key=lambda name: name not in self._builtin)
        return names

    def plugin(self, name: str) -> object:
        """Give the object that is registered as plugin `name`, or None."""
        return self._manager.get_plugin(name)

    def hooks_of(self, name: str) -> list[str]:
        """Names of the hooks of a loaded plugin."""
        callers = self._manager.get_hookcallers(self._manager.get_plugin(name)) or []
        return sorted(caller.name for caller in callers)

    def call(self, plugin: str, hook: str, **arguments: Any) -> Any:
        """Call `hook` of one plugin and pass its exceptions on; None if the plugin does not have the hook."""
        implementation = self._implementation(plugin, hook)
        if implementation is None:
            return None
        thread = threading.get_ident()
        outer, call = self.under_way.get(thread), Call(plugin, hook, time.monotonic())
        self.under_way[thread] = call
        result, raised = None, ""
        try:
            result = implementation.function(*(arguments[name] for name in implementation.argnames))
            result = read_all(hook, result)
            return result
        except BaseException as error:
            raised = type(error).__name__
            if (substitute := self._replacement(error)) is not None:
                raise substitute from error
            raise
        finally:
            self._leave(thread, outer)
            self._count(call)
            if self._tracing:
                outcome = f"it raised {raised}" if raised else _size(result)
                milliseconds = (time.monotonic() - call.began) * 1e3
                trace_log.info("%s: %s(%s) → %s in %.3f ms", plugin, hook, _sizes(arguments), outcome, milliseconds)

    def _replacement(self, error: BaseException) -> Exception | None:
        # Python raises Ctrl-C in the main thread only. While the event loop runs, it handles the signal itself.
        in_main = threading.current_thread() is threading.main_thread()
        return replacement(error, keep_interrupt=in_main and self.loop_thread is None)

    def _leave(self, thread: int, outer: Call | None) -> None:
        if outer is None:
            self.under_way.pop(thread, None)
        else:
            self.under_way[thread] = outer

    def call_each(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Call `hook` of every plugin that has it. A faulty call is logged, counted and left out."""
        for plugin in self.implementing(hook):
            done, result = self.try_call(plugin, hook, **arguments)
            if done:
                yield plugin, result

    def call_first(self, hook: str, **arguments: Any) -> tuple[str, Any]:
        """Call `hook` of one plugin after the other: the first that gives a result, and the result; else ("", None)."""
        for plugin, result in self.call_each(hook, **arguments):
            if result is not None:
                return plugin, result
        return "", None

    def try_call(self, plugin: str, hook: str, **arguments: Any) -> tuple[bool, Any]:
        """Call `hook` of one plugin: (True, its checked result), or (False, None) after a fault.

        A fault is that it raises or gives a wrong result (`nfcore.hooks.results`); it is logged and counted.
        """
        thread = threading.get_ident()
        outer = self.under_way.get(thread)
        try:
            return True, check_result(hook, arguments, self.call(plugin, hook, **arguments))
        except ResultError as error:
            self.report_fault(plugin, hook, Fault.WRONG_RESULT, str(error))
        except HookTimeoutError as error:
            # The signal may have come when the hook had returned, but call() had not.
            self._leave(thread, outer)
            self.report_fault(plugin, hook, Fault.INTERRUPTED, str(error))
        except BaseException as raised:
            # Replaced here, too: to check a result may run code of the plugin.
            substitute = self._replacement(raised) or raised
            if not isinstance(substitute, Exception):
                raise
            self.report_fault(plugin, hook, Fault.RAISED, f"failed: {describe_error(substitute)}", substitute)
        return False, None

    def report_fault(self, plugin: str, hook: str, fault: Fault, text: str, error: Exception | None = None) -> None:
        """Count and log a plugin's fault."""
        with self._lock:
            self.faults[plugin, hook, fault] += 1
        # Faults of the same kind may differ in numbers and in addresses of objects.
        repeat_key = (plugin, hook, _NUMBERS.sub(" ", text))
        log.error("plugin %s: %s %s", plugin, hook, text, extra={"repeat_key": repeat_key})
        log.debug("plugin %s: %s %s", plugin, hook, text, exc_info=error)

    def _count(self, call: Call) -> None:
        seconds = time.monotonic() - call.began
        with self._lock:
            total = self.times.setdefault((call.plugin, call.hook), HookTime())
            total.calls += 1
            total.seconds += seconds
            total.slowest = max(total.slowest, seconds)
        if seconds >= SLOW and not call.reported and self.is_on_loop(call, threading.get_ident()):
            self.report_slow(call, seconds)

    def is_on_loop(self, call: Call, thread: int) -> bool:
        """Whether a call blocks the event loop and its hook must not do so."""
        return thread == self.loop_thread and ROLES[call.hook].runs is Runs.LOOP

    def report_slow(self, call: Call, seconds: float) -> None:
        """Report that a hook has blocked the event loop for so long."""
        call.reported = True
        text = f"has blocked the event loop for {seconds:.1f} s; it may take {SLOW} s, and should take milliseconds"
        self.report_fault(call.plugin, call.hook, Fault.SLOW, text)

    def _implementation(self, plugin: str, hook: str) -> pluggy.HookImpl | None:
        key = (plugin, hook)
        if key not in self._implementations:
            found = [impl for impl in getattr(self._manager.hook, hook).get_hookimpls() if impl.plugin_name == plugin]
            self._implementations[key] = found[-1] if found else None
        return self._implementations[key]


def _sizes(arguments: Mapping[str, Any]) -> str:
    """Describe the arguments of a call: the device's name, and how many flows, rules or marks."""
    sizes = [arguments["device"].name] if "device" in arguments else []
    sizes += [
        f"{len(value)} {'flows' if name == 'batch' else name}"
        for name, value in arguments.items()
        if hasattr(value, "__len__")
    ]
    return ", ".join(sizes)


def _size(result: Any) -> str:
    """Describe a result by its length, if it has one."""
    items = getattr(result, "status", result)
    if hasattr(items, "__len__"):
        return f"{len(items)} results"
    return "None" if result is None else "a result"


def load_installed() -> PluginManager:
    """Load every installed plugin. One that cannot be loaded is left out; `nfcore plugins` reports it."""
    plugins = PluginManager()
    for name in discovery.installed():
        try:
            plugins.load(name)
        except Exception as error:  # noqa: BLE001
            log.debug("plugin %s cannot be loaded: %s", name, error)
    return plugins
