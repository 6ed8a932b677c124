# SPDX-License-Identifier: Apache-2.0
"""The plugins of one process: loads those that are named, and calls their hooks one by one.

A hook that raises, gives a wrong result, or takes too long is logged and counted with its plugin's name; the others
go on. With ``NFCORE_TRACE_HOOKS=1`` in the environment every call is logged.
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

from ..api.hookspecs import PROJECT, ROLES, Asked, Hooks, Runs
from ..errors import NfcoreError, describe_error
from ..logs import HOOK_TRACE
from . import discovery
from .faults import Fault, HookTimeoutError, replacement
from .results import AnswerError, check_result, read_all
from .signatures import check

TRACE_VARIABLE = "NFCORE_TRACE_HOOKS"
SLOW = 0.5
"""Seconds on the event loop from which on a hook is at fault: nothing else goes on meanwhile."""
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
log = logging.getLogger(__name__)
trace_log = logging.getLogger(HOOK_TRACE)


@dataclass
class Call:
    """A hook that is being called."""

    plugin: str
    hook: str
    began: float
    """By ``time.monotonic``."""
    reported: bool = False
    """The time that it takes has been reported as a fault."""


@dataclass
class HookTime:
    """What a hook of a plugin has cost until now."""

    calls: int = 0
    seconds: float = 0.0
    slowest: float = 0.0


class PluginManager:
    """Plugins of one process."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self._implementations: dict[tuple[str, str], pluggy.HookImpl | None] = {}
        self._ours: set[str] = set()
        """Plugins of nfcore's own distribution."""
        self.faults: Counter[tuple[str, str, Fault]] = Counter()
        """(plugin, hook, fault) → how often."""
        self.times: dict[tuple[str, str], HookTime] = {}
        """(plugin, hook) → calls and seconds."""
        self.under_way: dict[int, Call] = {}
        """Thread → the innermost hook that it is in."""
        self.loop_thread: int | None = None
        """The event loop's, while it runs."""
        self.remarks: list[str] = []
        """What is no error in the loaded plugins, but hardly meant."""
        self._lock = threading.Lock()
        """Of `faults` and `times`: workers call hooks, too."""
        self._tracing = os.environ.get(TRACE_VARIABLE, "") not in ("", "0")

    def load(self, name: str) -> None:
        """Import and register an installed plugin; whatever its import raises comes through.

        NfcoreError when several distributions have it, and none of them is nfcore's own.
        """
        if self._manager.has_plugin(name):
            return
        point = discovery.installed()[name]
        ours = discovery.is_ours(point)
        if (rivals := discovery.rivals(name)) and not ours:
            raise NfcoreError(
                f"plugin {name!r}: is in several distributions, {', '.join(rivals)}: uninstall all but one"
            )
        try:
            plugin = point.load()()
        except BaseException as error:
            if (other := self._replacement(error)) is not None:
                raise other from error
            raise
        self.register(plugin, name)
        if ours:
            self._ours.add(name)

    def register(self, plugin: object, name: str) -> None:
        """Register an object as plugin `name`.

        NfcoreError names a hook of another signature with both signatures, or one that is none of ours.
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
        """Names of the loaded plugins that have `hook`, in loading order; nfcore's own first where its role says so."""
        names = [name for name in self.loaded() if self._implementation(name, hook) is not None]
        if ROLES[hook].asked is Asked.OURS_FIRST:
            names.sort(key=lambda name: name not in self._ours)
        return names

    def plugin(self, name: str) -> object:
        """Give the object that is registered as plugin `name`; None when there is none."""
        return self._manager.get_plugin(name)

    def hooks_of(self, name: str) -> list[str]:
        """Names of the hooks that a loaded plugin has."""
        callers = self._manager.get_hookcallers(self._manager.get_plugin(name)) or []
        return sorted(caller.name for caller in callers)

    def call(self, plugin: str, hook: str, **arguments: Any) -> Any:
        """Call `hook` of one plugin, errors coming through; None when it does not have it."""
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
            if (other := self._replacement(error)) is not None:
                raise other from error
            raise
        finally:
            self._leave(thread, outer)
            self._count(call)
            if self._tracing:
                gave = f"it raised {raised}" if raised else _given(result)
                took = (time.monotonic() - call.began) * 1e3
                trace_log.info("%s: %s(%s) → %s in %.3f ms", plugin, hook, _sizes(arguments), gave, took)

    def _replacement(self, error: BaseException) -> Exception | None:
        # Ctrl-C reaches the main thread alone; while the event loop runs, it takes that as a signal.
        in_main = threading.current_thread() is threading.main_thread()
        return replacement(error, keep_interrupt=in_main and self.loop_thread is None)

    def _leave(self, thread: int, outer: Call | None) -> None:
        if outer is None:
            self.under_way.pop(thread, None)
        else:
            self.under_way[thread] = outer

    def call_each(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Call `hook` of every plugin that has it; those that are at fault are logged, counted and left out."""
        for plugin in self.implementing(hook):
            done, result = self.try_call(plugin, hook, **arguments)
            if done:
                yield plugin, result

    def call_first(self, hook: str, **arguments: Any) -> tuple[str, Any]:
        """Call `hook` of one plugin after the other: the first that gives a result, and it; ("", None) if none does."""
        for plugin, result in self.call_each(hook, **arguments):
            if result is not None:
                return plugin, result
        return "", None

    def try_call(self, plugin: str, hook: str, **arguments: Any) -> tuple[bool, Any]:
        """Call `hook` of one plugin; (False, None) when it raised or gave a wrong result, which is logged and counted.

        What is given has been checked (`nfcore.hooks.results`).
        """
        thread = threading.get_ident()
        outer = self.under_way.get(thread)
        try:
            return True, check_result(hook, arguments, self.call(plugin, hook, **arguments))
        except AnswerError as error:
            self.report_fault(plugin, hook, Fault.WRONG_ANSWER, str(error))
        except HookTimeoutError as error:
            # It may have come between the hook's end and the end of its call.
            self._leave(thread, outer)
            self.report_fault(plugin, hook, Fault.BROKEN_OFF, str(error))
        except BaseException as raised:
            # Checking a result may run a plugin's code, too.
            wrong = self._replacement(raised) or raised
            if not isinstance(wrong, Exception):
                raise
            self.report_fault(plugin, hook, Fault.RAISED, f"failed: {describe_error(wrong)}", wrong)
        return False, None

    def report_fault(self, plugin: str, hook: str, fault: Fault, text: str, error: Exception | None = None) -> None:
        """Count and log a plugin's fault."""
        with self._lock:
            self.faults[plugin, hook, fault] += 1
        # Numbers and addresses of objects differ from one fault to the next of the same kind.
        repeat_key = (plugin, hook, _NUMBERS.sub(" ", text))
        log.error("plugin %s: %s %s", plugin, hook, text, extra={"repeat_key": repeat_key})
        log.debug("plugin %s: %s %s", plugin, hook, text, exc_info=error)

    def _count(self, call: Call) -> None:
        took = time.monotonic() - call.began
        with self._lock:
            spent = self.times.setdefault((call.plugin, call.hook), HookTime())
            spent.calls += 1
            spent.seconds += took
            spent.slowest = max(spent.slowest, took)
        if took >= SLOW and not call.reported and self.is_on_loop(call, threading.get_ident()):
            self.report_slow(call, took)

    def is_on_loop(self, call: Call, thread: int) -> bool:
        """Whether a call holds up the event loop, which it must not."""
        return thread == self.loop_thread and ROLES[call.hook].runs is Runs.LOOP

    def report_slow(self, call: Call, took: float) -> None:
        """Report that a hook has held up the event loop, `took` seconds until now."""
        call.reported = True
        text = f"has held up the event loop for {took:.1f} s; it may take {SLOW} s, and should take milliseconds"
        self.report_fault(call.plugin, call.hook, Fault.SLOW, text)

    def _implementation(self, plugin: str, hook: str) -> pluggy.HookImpl | None:
        key = (plugin, hook)
        if key not in self._implementations:
            found = [each for each in getattr(self._manager.hook, hook).get_hookimpls() if each.plugin_name == plugin]
            self._implementations[key] = found[-1] if found else None
        return self._implementations[key]


def _sizes(arguments: Mapping[str, Any]) -> str:
    """What a hook was given, as far as it can be named or counted."""
    sizes = [arguments["device"].name] if "device" in arguments else []
    sizes += [
        f"{len(value)} {'flows' if name == 'batch' else name}"
        for name, value in arguments.items()
        if hasattr(value, "__len__")
    ]
    return ", ".join(sizes)


def _given(result: Any) -> str:
    """What a hook gave, in few words."""
    answers = getattr(result, "status", result)
    if hasattr(answers, "__len__"):
        return f"{len(answers)} answers"
    return "None" if result is None else "an answer"
