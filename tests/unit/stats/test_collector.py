# SPDX-License-Identifier: Apache-2.0
"""Metrics are collected a plugin a turn, once for all who ask, and never before somebody has asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from nfcore.api.config import Config
from nfcore.api.metrics import gauge
from nfcore.daemon.bootstrap import make_context
from nfcore.errors import HostError
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.stats.collector import Collector
from nfcore.plugins.stats.registry import Registry


class Loop:
    """Turns when it is told to, and collects the number of the turn."""

    def __init__(self, config: Config) -> None:
        self.turns = self.collected = 0
        self.fails = False
        self.jobs: list[Callable[[], None]] = []
        context = make_context(config, PluginManager(), [])
        context.services.call_soon = self.jobs.append
        self.collector = Collector(self.steps, context)

    def steps(self, registry: Registry) -> Iterator[None]:
        self.collected += 1
        for plugin in range(3):
            if self.fails:
                raise LookupError("no figures")
            family = gauge(f"nfcore_{'abc'[plugin]}", "The turn.", "")
            family.add(self.turns)
            registry.add([family])
            yield

    def turn(self) -> None:
        """Run what was asked for before this turn."""
        self.turns += 1
        jobs = self.jobs[:]
        self.jobs.clear()
        for job in jobs:
            job()


def values(registry: Registry | None) -> list[object]:
    assert registry is not None
    return [sample.value for family in registry for sample in family.samples]


def test_who_asks_meanwhile_shares_the_next(config: Config) -> None:
    loop = Loop(config)
    told: dict[str, tuple[int, list[object]]] = {}

    def ask(name: str) -> None:
        loop.collector.request(lambda registry: told.update({name: (loop.turns, values(registry))}))

    ask("first")
    while "first" not in told:
        ask(f"at {loop.turns}")
        loop.turn()
    # A plugin a turn, all of them after the question.
    assert told["first"][1] == [2, 3, 4]
    assert loop.collected == 1
    later = [f"at {number}" for number in range(1, loop.turns)]
    while not all(name in told for name in later):
        loop.turn()
    assert loop.collected == 2
    assert len({tuple(told[name][1]) for name in later}) == 1
    assert min(told["at 1"][1]) > told["first"][0]  # type: ignore[type-var]
    # Each makes something of them in a turn of its own.
    assert len({told[name][0] for name in later}) == len(later)


def test_what_fails_is_told_to_who_asked_and_to_nobody_later(config: Config) -> None:
    loop = Loop(config)
    loop.collector._context.services.call_soon = lambda job: asyncio.get_running_loop().call_soon(job) and None
    loop.fails = True
    with pytest.raises(HostError, match="the metrics could not be collected: the log has the reason"):
        asyncio.run(loop.collector.collect(values))
    loop.fails = False
    with pytest.raises(ZeroDivisionError):
        asyncio.run(loop.collector.collect(lambda registry: 1 // 0))
    assert asyncio.run(loop.collector.collect(values)) == [0, 0, 0]
