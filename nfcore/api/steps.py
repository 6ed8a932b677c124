# SPDX-License-Identifier: Apache-2.0
"""Work in steps: what takes longer than the event loop may stand still.

A generator does it. It yields a function without arguments, which runs in a thread while the event loop goes on, and
gets back what the function returns or raises. What the generator itself does, it does on the event loop's thread:
between two steps everything else may happen there. It must cope with being closed at a step: the daemon stops.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[Callable[[], Any], Any, T]


def pause() -> None:
    """Be a step without work: lets the event loop go on."""


def run_steps(steps: Steps[T]) -> T:
    """Do all of it at once, here."""
    resume: Callable[[Any], Callable[[], Any]] = steps.send
    value: Any = None
    while True:
        try:
            work = resume(value)
        except StopIteration as end:
            result: T = end.value
            return result
        try:
            resume, value = steps.send, work()
        except Exception as error:  # noqa: BLE001 - the generator decides what to do about it
            resume, value = steps.throw, error
