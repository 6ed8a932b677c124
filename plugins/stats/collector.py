# SPDX-License-Identifier: Apache-2.0
"""Collects the metrics of all plugins: one plugin per turn of the event loop, once for all who ask at the same time."""

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
"""Callback for the metrics, on the event loop's thread; None when they could not be collected."""


class Collector:
    """Gives each caller metrics that were collected after its call; calls during a collection share the next one."""

    def __init__(self, steps: Callable[[Registry], Iterator[None]], context: Context) -> None:
        """Prepare to fill registries by `steps`, one step per turn of the context's event loop."""
        self._steps, self._context = steps, context
        self._waiting: list[Done] = []
        self._busy = False

    def request(self, done: Done) -> None:
        """Call `done` with the metrics, soon. For any thread."""
        self._context.services.call_soon(lambda: self._join(done))

    async def collect(self, convert: Callable[[Registry], Any]) -> Any:
        """Return what `convert` makes of the metrics. HostError when they cannot be collected."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(registry: Registry | None) -> None:
            if answer.done():  # cancelled: nobody waits for it any more
                return
            try:
                if registry is None:
                    raise HostError("the metrics could not be collected: the log has the reason")
                answer.set_result(convert(registry))
            except Exception as error:  # noqa: BLE001 - raised again where the answer is awaited
                answer.set_exception(error)

        self.request(done)
        return await answer

    def _join(self, done: Done) -> None:
        self._waiting.append(done)
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        self._busy = bool(self._waiting)
        if not self._busy:
            return
        callers, self._waiting = self._waiting, []
        registry = Registry()
        steps = self._steps(registry)

        def step() -> None:
            """Take one step and schedule the next, so that the loop reads reports of flows in between."""
            try:
                next(steps)
            except StopIteration:
                self._hand_over(callers, registry)
            except Exception as error:
                log.error("stats: the metrics cannot be collected: %s", error)
                log.debug("traceback", exc_info=error)
                self._hand_over(callers, None)
            else:
                self._context.services.call_soon(step)

        self._context.services.call_soon(step)

    def _hand_over(self, callers: list[Done], registry: Registry | None) -> None:
        """Call one caller per turn: each converts all metrics, which takes time."""
        if not callers:
            self._begin()
            return
        callers.pop(0)(registry)
        self._context.services.call_soon(lambda: self._hand_over(callers, registry))
