# SPDX-License-Identifier: Apache-2.0
"""Work in steps: what takes longer than the event loop may stand still.

A generator does it. It yields a function without arguments, which runs in a thread while the event loop goes on, and
gets back what the function returns or raises. What the generator itself does, it does on the event loop's thread:
between two steps everything else may happen there. It must cope with being closed at a step: the daemon stops.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar, cast

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


async def run_beside(steps: Steps[T]) -> T:
    """Do the steps, with their work in a thread. When it is cancelled, it waits until the thread works no more."""
    loop, resume, value = asyncio.get_running_loop(), steps.send, cast("Any", None)
    with contextlib.closing(steps), ThreadPoolExecutor(1, "steps") as threads:
        while True:
            try:
                work = resume(value)
            except StopIteration as end:
                return cast("T", end.value)
            running = loop.run_in_executor(threads, work)
            try:
                resume, value = steps.send, await asyncio.shield(running)
            except asyncio.CancelledError:
                # What it works on is about to be closed.
                await asyncio.wait([running])
                raise
            except Exception as error:  # noqa: BLE001 - the generator decides what to do about it
                resume, value = steps.throw, error
