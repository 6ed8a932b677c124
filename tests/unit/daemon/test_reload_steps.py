# SPDX-License-Identifier: Apache-2.0
"""Work in steps gets the same results at once and beside an event loop, which goes on meanwhile and may stop it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from nfcore.api.steps import Steps, pause, run_beside, run_steps

Run = Callable[[Steps[Any]], Any]


@pytest.fixture(params=["at once", "beside a loop"])
def run(request: pytest.FixtureRequest) -> Run:
    return run_steps if request.param == "at once" else lambda steps: asyncio.run(run_beside(steps))


def refuse() -> None:
    raise LookupError("not today")


def test_results_and_errors_come_back_to_the_generator(run: Run) -> None:
    def steps() -> Steps[list[object]]:
        seen: list[object] = [(yield lambda: 1)]
        yield pause
        try:
            yield refuse
        except LookupError as error:
            seen.append(str(error))
        return seen

    assert run(steps()) == [1, "not today"]


def test_an_error_that_it_does_not_catch_ends_it(run: Run) -> None:
    def steps() -> Steps[None]:
        yield refuse

    with pytest.raises(LookupError, match="not today"):
        run(steps())


def test_the_loop_goes_on_and_a_cancelled_step_is_waited_for() -> None:
    begun, may_end, log = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        assert may_end.wait(60)
        log.append("work")

    def steps() -> Steps[None]:
        try:
            yield work
        finally:
            log.append("closed")

    async def scenario() -> None:
        task = asyncio.create_task(run_beside(steps()))
        while not begun.is_set():
            await asyncio.sleep(0)  # the loop goes on
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert log == ["work", "closed"]
