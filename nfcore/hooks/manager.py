# SPDX-License-Identifier: Apache-2.0
"""The plugin host: finds plugins by entry point, loads those that are named, calls their hooks one by one.

A hook that raises, answers what it must not, or takes too long is logged and counted with its plugin's name; the
others go on. With ``NFCORE_TRACE_HOOKS=1`` in the environment every call is logged.
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
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from ..api.hookspecs import PROJECT, ROLES, Asked, Hooks, Runs
from ..errors import NfcoreError, words_of
from ..logs import HOOK_TRACE, INTERVAL, Repeats, with_count
from .results import AnswerError, accept, settle
from .signatures import check

ENTRY_POINT_GROUP = "nfcore.plugins"
TRACE_VARIABLE = "NFCORE_TRACE_HOOKS"
SLOW = 0.5
"""Seconds on the event loop from which on a hook is at fault: nothing else goes on meanwhile."""
_FIGURES = re.compile(r"0x[0-9a-f]+|\d+")
log = logging.getLogger(__name__)
trace_log = logging.getLogger(HOOK_TRACE)


class Fault(StrEnum):
    """What a plugin can do wrong in a hook."""

    RAISED = "raised"
    WRONG_ANSWER = "wrong_answer"
    SLOW = "slow"
    """It held up the event loop."""
    BROKEN_OFF = "broken_off"
    """It held up the event loop for so long that it was interrupted."""
    STUCK = "stuck"
    """It has kept a device's worker waiting for very long."""


class HookTimeoutError(BaseException):
    """Raised into a hook that is broken off. No Exception: a plugin that catches those must not live on."""


class ExitError(RuntimeError):
    """A plugin wanted the process to end, or raised what only the interpreter should; which is not for it to say."""


class MuteError(RuntimeError):
    """A plugin raised an exception that cannot be turned into text."""


@dataclass
class Call:
    """A hook that is being called."""

    plugin: str
    hook: str
    began: float
    """By ``time.monotonic``."""
    said: bool = False
    """It has been blamed for the time that it takes."""


@dataclass
class HookTime:
    """What a hook of a plugin has cost until now."""

    calls: int = 0
    seconds: float = 0.0
    slowest: float = 0.0


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
        self._said = Repeats(INTERVAL)
        self._books = threading.Lock()
        """Of `faults` and `times`: workers call hooks, too."""
        self._tracing = os.environ.get(TRACE_VARIABLE, "") not in ("", "0")

    @property
    def errors(self) -> Counter[tuple[str, str]]:
        """(plugin, hook) → how often it was at fault."""
        errors: Counter[tuple[str, str]] = Counter()
        for (plugin, hook, _), number in list(self.faults.items()):
            errors[plugin, hook] += number
        return errors

    @staticmethod
    def installed() -> dict[str, EntryPoint]:
        """All plugins that this Python could load, by name. A name that is ours is never another distribution's."""
        points = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (_is_ours(point), point.name))
        return dict(sorted({point.name: point for point in points}.items()))

    @staticmethod
    def rivals(name: str) -> list[str]:
        """Distributions that have a plugin of this name, where there are several."""
        of = [_distribution(point) for point in entry_points(group=ENTRY_POINT_GROUP, name=name)]
        return sorted(of) if len(of) > 1 else []

    @classmethod
    def describe(cls, name: str) -> PluginInfo:
        """Describe the installed plugin `name`."""
        point = cls.installed()[name]
        if point.dist is None:
            return PluginInfo(name, "?", "?", point.value)
        return PluginInfo(name, point.dist.version, point.dist.name, point.value)

    def load(self, name: str) -> None:
        """Import and register an installed plugin; whatever its import raises comes through.

        NfcoreError when several distributions have it, and none of them is nfcore's own.
        """
        if self._manager.has_plugin(name):
            return
        point = self.installed()[name]
        if (rivals := self.rivals(name)) and not _is_ours(point):
            raise NfcoreError(
                f"plugin {name!r}: is in several distributions, {', '.join(rivals)}: uninstall all but one"
            )
        try:
            plugin = point.load()()
        except BaseException as error:
            if (other := self._instead_of(error)) is not None:
                raise other from error
            raise
        self.register(plugin, name)
        if _is_ours(point):
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
        self._callers.clear()

    def loaded(self) -> list[str]:
        """Names of the loaded plugins, in loading order."""
        return [name for name, _ in self._manager.list_name_plugin()]

    def implementing(self, hook: str) -> list[str]:
        """Names of the loaded plugins that have `hook`, in loading order; nfcore's own first where its role says so."""
        names = [name for name in self.loaded() if self._implements(name, hook)]
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
        if not self._implements(plugin, hook):
            return None
        caller, thread = self._caller(plugin, hook), threading.get_ident()
        outer, call = self.under_way.get(thread), Call(plugin, hook, time.monotonic())
        self.under_way[thread] = call
        result, raised = None, ""
        try:
            result = caller(**arguments)
            if isinstance(result, list) and not self._first_result(hook):
                result = result[0] if result else None
            result = settle(hook, result)
            return result
        except BaseException as error:
            raised = type(error).__name__
            if (other := self._instead_of(error)) is not None:
                raise other from error
            raise
        finally:
            self._leave(thread, outer)
            self._note(call)
            if self._tracing:
                gave = f"it raised {raised}" if raised else _given(result)
                took = (time.monotonic() - call.began) * 1e3
                trace_log.info("%s: %s(%s) → %s in %.3f ms", plugin, hook, _sizes(arguments), gave, took)

    def _instead_of(self, error: BaseException) -> Exception | None:
        """What to raise instead of an exception that ends more than the hook, or that nobody could put into words."""
        if isinstance(error, SystemExit):
            return ExitError(f"it called sys.exit({error.code!r})")
        if isinstance(error, Exception):
            return None if _can_speak(error) else MuteError(words_of(error))
        # Ctrl-C reaches the main thread alone, and the event loop takes it as a signal.
        from_outside = isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()
        if isinstance(error, HookTimeoutError) or (from_outside and self.loop_thread is None):
            return None
        return ExitError(f"it raised {type(error).__name__}")

    def _leave(self, thread: int, outer: Call | None) -> None:
        if outer is None:
            self.under_way.pop(thread, None)
        else:
            self.under_way[thread] = outer

    def each(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Call `hook` of every plugin that has it; those that are at fault are logged, counted and left out."""
        for plugin in self.implementing(hook):
            done, result = self.attempt(plugin, hook, **arguments)
            if done:
                yield plugin, result

    def attempt(self, plugin: str, hook: str, **arguments: Any) -> tuple[bool, Any]:
        """Call `hook` of one plugin; (False, None) when it raised or gave a wrong answer, which is logged and counted.

        What is given fits `nfcore.hooks.results`.
        """
        thread = threading.get_ident()
        outer = self.under_way.get(thread)
        try:
            return True, accept(hook, arguments, self.call(plugin, hook, **arguments))
        except AnswerError as error:
            self.blame(plugin, hook, Fault.WRONG_ANSWER, str(error))
        except HookTimeoutError as error:
            # It may have come between the hook's end and the end of its call.
            self._leave(thread, outer)
            self.blame(plugin, hook, Fault.BROKEN_OFF, str(error))
        except BaseException as raised:
            # An answer may do something when it is looked at, too.
            fault = self._instead_of(raised) or raised
            if not isinstance(fault, Exception):
                raise
            self.blame(plugin, hook, Fault.RAISED, f"failed: {words_of(fault)}", fault)
        return False, None

    def blame(self, plugin: str, hook: str, fault: Fault, words: str, error: Exception | None = None) -> None:
        """Count a plugin's fault; log each kind once in a while: a million flows must not make a million lines."""
        with self._books:
            self.faults[plugin, hook, fault] += 1
            # Figures, and where an object is, differ from one fault of a kind to the next.
            kind = _FIGURES.sub(" ", words)
            times = self._said.admit((plugin, hook, kind), f"plugin {plugin}: {hook} {words}")
        if times is not None:
            log.error("plugin %s: %s %s", plugin, hook, with_count(words, times))
        log.debug("plugin %s: %s %s", plugin, hook, words, exc_info=error)

    def say_repeats(self, *, all_of_them: bool = False) -> None:
        """Log how often faults were not said that came again in an interval which is over; all: in any."""
        with self._books:
            due = self._said.overdue(all_of_them=all_of_them)
        for words, times in due:
            log.error("%s", with_count(str(words), times))

    def _note(self, call: Call) -> None:
        took = time.monotonic() - call.began
        with self._books:
            spent = self.times.setdefault((call.plugin, call.hook), HookTime())
            spent.calls += 1
            spent.seconds += took
            spent.slowest = max(spent.slowest, took)
        if took >= SLOW and not call.said and self.is_on_loop(call, threading.get_ident()):
            self.blame_slow(call, took)

    def is_on_loop(self, call: Call, thread: int) -> bool:
        """Whether a call holds up the event loop, which it must not."""
        return thread == self.loop_thread and ROLES[call.hook].runs is Runs.LOOP

    def blame_slow(self, call: Call, took: float) -> None:
        """Blame a plugin for holding up the event loop, `took` seconds until now."""
        call.said = True
        words = f"has held up the event loop for {took:.1f} s; it may take {SLOW} s, and should take milliseconds"
        self.blame(call.plugin, call.hook, Fault.SLOW, words)

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


def _can_speak(error: Exception) -> bool:
    try:
        str(error)
    except Exception:  # noqa: BLE001 - that is what is asked
        return False
    return True


def _sizes(arguments: Mapping[str, Any]) -> str:
    """What a hook was given, as far as it can be named or counted."""
    sizes = [arguments["device"].name] if "device" in arguments else []
    sizes += [
        f"{len(value)} {'flows' if name == 'batch' else name}"
        for name, value in arguments.items()
        if hasattr(value, "__len__")
    ]
    return ", ".join(sizes)


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"


def _is_ours(point: EntryPoint) -> bool:
    return _distribution(point) == PROJECT


def _given(result: Any) -> str:
    """What a hook gave, in few words."""
    answers = getattr(result, "status", result)
    if hasattr(answers, "__len__"):
        return f"{len(answers)} answers"
    return "None" if result is None else "an answer"
