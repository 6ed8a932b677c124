# SPDX-License-Identifier: Apache-2.0
"""Promises of plugins. Each test of a suite is a promise: its name is the id, its docstring the statement.

test_removal_is_idempotent  ─►  removal-is-idempotent
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from ..errors import NfcoreError
from ..hooks.manager import PluginManager
from ..hooks.results import ResultError, check_result
from .results import BROKEN, THROUGHPUT, SuiteResult

_TEST = "test_"
if TYPE_CHECKING:
    _Skipped = BaseException
else:
    _Skipped = pytest.skip.Exception  # which is no class to the type checker


@dataclass(frozen=True)
class Promise:
    """One sentence of the hook contract."""

    id: str
    statement: str


class BrokenPromise(AssertionError):  # noqa: N818 - the name that an author reads
    """A plugin breaks a promise. The message has the promise, the plugin and hook, and what is wrong."""

    def __init__(self, promise: Promise, who: str, wrong: str) -> None:
        self.promise = promise
        super().__init__(f"{promise.id} is broken by {who}: {wrong}\n    promised: {promise.statement}")


class NotApplicable(_Skipped):
    """This test does not apply to the plugin or NIC, for a known reason. It is a skip that counts as covered."""

    # pytest writes an exception's module in front of its message, except for builtins.
    __module__ = "builtins"


def promises_of(suite: type) -> dict[str, Promise]:
    """The promises of a suite by id, in the order of its tests."""
    tests = [(name, test) for cls in reversed(suite.__mro__) for name, test in vars(cls).items()]
    found = [_promise(test) for name, test in tests if name.startswith(_TEST) and callable(test)]
    return {promise.id: promise for promise in found}


def _promise(test: Callable[..., object]) -> Promise:
    statement = inspect.cleandoc(test.__doc__ or "").split("\n\n", maxsplit=1)[0]
    return Promise(test.__name__.removeprefix(_TEST).replace("_", "-"), " ".join(statement.split()))


@dataclass
class PluginDriver:
    """Calls the hooks of one plugin in one test, and reports which promise a fault breaks."""

    node: pytest.Item
    name: str
    """The plugin's name in messages and in the summary."""
    suite: type
    plugins: PluginManager = field(default_factory=PluginManager)

    def __post_init__(self) -> None:
        self._promises = promises_of(self.suite)
        own = getattr(self.node, "function", None)
        self.promise = _promise(own) if callable(own) else Promise(self.node.name, "")
        """The promise that the test checks. A test that an author has added is a promise, too."""
        self.result = SuiteResult(self.name, self.promise.id)
        self.result.note(self.node)

    def register(self, plugin: object) -> None:
        """Register the plugin with a plugin manager of its own, which checks the hooks' signatures."""
        __tracebackhide__ = True
        self.plugins = PluginManager()
        try:
            self.plugins.register(plugin, self.name)
        except NfcoreError as error:
            self.broken(str(error), promise="hooks-have-our-signatures")

    def call(self, hook: str, form: str = "", **arguments: Any) -> Any:
        """Call a hook of the plugin and return its result; an exception breaks the promise that no hook raises.

        A result that the core would refuse (`nfcore.hooks.results`) breaks the promise `form`.
        """
        __tracebackhide__ = True
        try:
            return check_result(hook, arguments, self.plugins.call(self.name, hook, **arguments))
        except ResultError as error:
            self.broken(str(error), promise=form, hook=hook)
        except Exception as error:  # noqa: BLE001 - reported as a fault of the plugin
            self.broken(f"raised {type(error).__name__}: {error}", promise="hooks-do-not-raise", hook=hook, why=error)

    def expect(self, holds: object, wrong: str, *, promise: str = "", hook: str = "") -> None:
        """Raise BrokenPromise unless `holds`: the test's own promise, or the one that is named."""
        __tracebackhide__ = True
        if not holds:
            self.broken(wrong, promise=promise, hook=hook)

    def broken(self, wrong: str, *, promise: str = "", hook: str = "", why: Exception | None = None) -> NoReturn:
        """Raise BrokenPromise: what is wrong, and in which hook."""
        __tracebackhide__ = True
        broken = self._promises[promise] if promise else self.promise
        self.node.user_properties.append((BROKEN, broken.id))
        raise BrokenPromise(broken, f"{self.name}, {hook}" if hook else self.name, wrong) from why

    def not_applicable(self, reason: str) -> NoReturn:
        """End the test: it does not apply to this plugin."""
        __tracebackhide__ = True
        self.result.excuse(self.node, reason)
        raise NotApplicable(f"not applicable to {self.name}: {reason}")

    def report_throughput(self, **per_second: float) -> None:
        """Add rates to the summary: what was done → times per second."""
        self.node.user_properties.append((THROUGHPUT, {what: round(rate) for what, rate in per_second.items()}))


def names(outcomes: Iterable[object]) -> str:
    """Outcomes as text: each once, with its count if it occurs several times."""
    counts = Counter(getattr(outcome, "name", str(outcome)) for outcome in outcomes)
    return ", ".join(name if count == 1 else f"{count} × {name}" for name, count in counts.items()) or "nothing"
