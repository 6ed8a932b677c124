# SPDX-License-Identifier: Apache-2.0
"""What a plugin promises: a test of the suite each, whose name is the promise's id and whose docstring its words.

test_removal_is_idempotent  ─►  removal-is-idempotent
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from ..errors import NfcoreError
from ..hooks.manager import PluginManager
from ..hooks.results import AnswerError, check_result
from .results import BROKEN, THROUGHPUT, SuiteResult

_TEST = "test_"
if TYPE_CHECKING:
    _Skipped = BaseException
else:
    _Skipped = pytest.skip.Exception  # of which the type checker knows no class


@dataclass(frozen=True)
class Promise:
    """One sentence of the hook contract."""

    id: str
    statement: str


class BrokenPromise(AssertionError):  # noqa: N818 - the name that an author reads
    """A plugin does not keep a promise; says which, who broke it, what was seen and what would be right."""

    def __init__(self, promise: Promise, who: str, wrong: str) -> None:
        self.promise = promise
        super().__init__(f"{promise.id} is broken by {who}: {wrong}\n    promised: {promise.statement}")


class NotApplicable(_Skipped):
    """A test that this plugin or NIC cannot be asked, for a reason that was told: no gap in what was tested."""

    # pytest writes an exception's module in front of its words, unless it is this one.
    __module__ = "builtins"


def promises_of(suite: type) -> dict[str, Promise]:
    """Give the promises of a suite by id, in the order in which its tests stand."""
    tests = [(name, test) for cls in reversed(suite.__mro__) for name, test in vars(cls).items()]
    found = [_promise(test) for name, test in tests if name.startswith(_TEST) and callable(test)]
    return {promise.id: promise for promise in found}


def _promise(test: Callable[..., object]) -> Promise:
    statement = inspect.cleandoc(test.__doc__ or "").split("\n\n", maxsplit=1)[0]
    return Promise(test.__name__.removeprefix(_TEST).replace("_", "-"), " ".join(statement.split()))


@dataclass
class Examination:
    """One plugin before one test: calls its hooks, and says what is wrong in the words of a promise."""

    node: pytest.Item
    name: str
    """Of the plugin, as messages and the summary show it."""
    suite: type
    plugins: PluginManager = field(default_factory=PluginManager)

    def __post_init__(self) -> None:
        self._promises = promises_of(self.suite)
        own = getattr(self.node, "function", None)
        self.promise = _promise(own) if callable(own) else Promise(self.node.name, "")
        """That of the test; one that an author added is its own promise."""
        self.result = SuiteResult(self.name, self.promise.id)
        self.result.note(self.node)

    def register(self, plugin: object) -> None:
        """Register the plugin under a host of its own, which checks its hooks' signatures."""
        __tracebackhide__ = True
        self.plugins = PluginManager()
        try:
            self.plugins.register(plugin, self.name)
        except NfcoreError as error:
            self.broken(str(error), promise="hooks-have-our-signatures")

    def call(self, hook: str, form: str = "", **arguments: Any) -> Any:
        """Call a hook of the plugin; whatever it raises breaks the promise that none does.

        An answer that the core would not take (`nfcore.hooks.results`) breaks the promise `form`.
        """
        __tracebackhide__ = True
        try:
            return check_result(hook, arguments, self.plugins.call(self.name, hook, **arguments))
        except AnswerError as error:
            self.broken(str(error), promise=form, hook=hook)
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is its fault, named
            self.broken(f"raised {type(error).__name__}: {error}", promise="hooks-do-not-raise", hook=hook, why=error)

    def expect(self, holds: object, wrong: str, *, promise: str = "", hook: str = "") -> None:
        """BrokenPromise unless it holds; of the test's own promise unless another is named."""
        __tracebackhide__ = True
        if not holds:
            self.broken(wrong, promise=promise, hook=hook)

    def broken(self, wrong: str, *, promise: str = "", hook: str = "", why: Exception | None = None) -> NoReturn:
        """Say what is wrong, and with which hook."""
        __tracebackhide__ = True
        told = self._promises[promise] if promise else self.promise
        self.node.user_properties.append((BROKEN, told.id))
        raise BrokenPromise(told, f"{self.name}, {hook}" if hook else self.name, wrong) from why

    def not_applicable(self, reason: str) -> NoReturn:
        """End the test: the plugin cannot be asked, and says so."""
        __tracebackhide__ = True
        self.result.excuse(self.node, reason)
        raise NotApplicable(f"not applicable to {self.name}: {reason}")

    def report_throughput(self, **per_second: float) -> None:
        """Have the summary show rates by what was done."""
        self.node.user_properties.append((THROUGHPUT, {what: round(rate) for what, rate in per_second.items()}))


def names(outcomes: Iterable[object]) -> str:
    """Give outcomes for people: each once, with its count where there are several."""
    counted: dict[str, int] = {}
    for outcome in outcomes:
        word = getattr(outcome, "name", str(outcome))
        counted[word] = counted.get(word, 0) + 1
    return ", ".join(word if count == 1 else f"{count} × {word}" for word, count in counted.items()) or "nothing"
