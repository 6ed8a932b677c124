# SPDX-License-Identifier: Apache-2.0
"""Everybody's figures, a plugin a turn of the event loop, once for all who ask at the same time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

from nfcore.api.context import Context
from nfcore.errors import HostError

from .registry import Registry

log = logging.getLogger(__name__)
Done = Callable[[Registry | None], None]
"""Takes the figures, on the event loop's thread; None when they could not be collected."""


class Collector:
    """Whoever asks gets figures that were collected afterwards: who comes while they are collected shares the next."""

    def __init__(self, steps: Callable[[Registry], Iterator[None]], context: Context) -> None:
        """Fill registries by `steps`, each in one of the next turns of the context's event loop."""
        self._steps, self._context = steps, context
        self._waiting: list[Done] = []
        self._busy = False

    def ask(self, done: Done) -> None:
        """Let `done` have the figures, soon. For any thread."""
        self._context.services.call_soon(lambda: self._join(done))

    async def give(self, use: Callable[[Registry], Any]) -> Any:
        """Give what `use` makes of the figures. HostError when they cannot be collected."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(registry: Registry | None) -> None:
            if answer.done():  # nobody waits for it any more
                return
            try:
                if registry is None:
                    raise HostError("figures could not be collected: the log says why")
                answer.set_result(use(registry))
            except Exception as error:  # noqa: BLE001 - it is raised again where somebody waits for it
                answer.set_exception(error)

        self.ask(done)
        return await answer

    def _join(self, done: Done) -> None:
        self._waiting.append(done)
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        self._busy = bool(self._waiting)
        if not self._busy:
            return
        asked, self._waiting = self._waiting, []
        registry = Registry()
        steps = self._steps(registry)

        def step() -> None:
            """Take a step, and the next one when reports have been read in between."""
            try:
                next(steps)
            except StopIteration:
                self._hand_over(asked, registry)
            except Exception as error:
                log.error("stats: figures cannot be collected: %s", error)
                log.debug("traceback", exc_info=error)
                self._hand_over(asked, None)
            else:
                self._context.services.call_soon(step)

        self._context.services.call_soon(step)

    def _hand_over(self, asked: list[Done], registry: Registry | None) -> None:
        """Give them to one in a turn: each makes something of them."""
        if not asked:
            self._begin()
            return
        asked.pop(0)(registry)
        self._context.services.call_soon(lambda: self._hand_over(asked, registry))
