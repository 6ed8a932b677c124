# SPDX-License-Identifier: Apache-2.0
"""Runs a published suite on the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .balancer import Balancer
from .counters import Counters, CounterValues
from .decap import Decap
from .features import Features
from .healthcheck import Healthcheck, without_outer_sport
from .packet import Verdict
from .source_match import match_source
from .suites import Case, Suite, mac, maps_of, published, real


class Result(NamedTuple):
    """What has to be equal."""

    verdict: Verdict
    frame: bytes
    counters: CounterValues


Program = Callable[[Case], tuple[Verdict, bytes, Counters]]


def replay(suite: Suite, features: Features) -> Iterator[tuple[Case, Result, Result]]:
    """Run the cases in order: each with what came out and what was published."""
    program = _PROGRAMS[suite.program](suite, features)
    for case in suite.cases:
        verdict, frame, counters = program(case)
        came, wanted = (
            Result(verdict, frame, counters.published()),
            Result(case.verdict, case.output, case.counters),
        )
        if suite.random_gue_port and case.verdict is Verdict.REDIRECT:
            came, wanted = (each._replace(frame=without_outer_sport(each.frame)) for each in (came, wanted))
        yield case, came, wanted


def _balancer(suite: Suite, features: Features) -> Program:
    settings, maps = published().settings, maps_of(suite.state, published().settings)
    balancer = Balancer(features, maps)
    if suite.after:
        before = published().suites[suite.after]
        balancer.maps = maps_of(before.state, settings)
        for case in before.cases:
            balancer.step(case.frame)
        balancer.maps = maps

    def run(case: Case) -> tuple[Verdict, bytes, Counters]:
        step = balancer.step(case.frame)
        return step.verdict, step.frame, step.counters

    return run


def _decap(suite: Suite, features: Features) -> Program:
    program = Decap(features, maps_of(suite.state, published().settings), suite.server_id)
    return lambda case: program.step(case.frame)


def _healthcheck(suite: Suite, features: Features) -> Program:
    settings = published().settings
    program = Healthcheck(
        features,
        {mark: real(address) for mark, address in suite.state.healthcheck_marks.items()},
        maps_of(suite.state, settings).sources,
        mac(settings.local_mac),
        mac(settings.gateway_mac),
    )
    return lambda case: program.step(case.frame, case.mark)


def _source_match(_suite: Suite, features: Features) -> Program:
    return lambda case: match_source(features, case.frame)


_PROGRAMS: dict[str, Callable[[Suite, Features], Program]] = {
    "balancer": _balancer,
    "decap": _decap,
    "healthcheck": _healthcheck,
    "srcmatch": _source_match,
}
