# SPDX-License-Identifier: Apache-2.0
"""flow-id and dest-id keep all promises of a marking strategy, and a wrong one is told which it broke."""

from __future__ import annotations

import pytest

from nfcore.plugins.marking import MarkingPlugin
from nfcore.testing import StrategyConformance, StrategyUnderTest
from nfcore.testing.promises import promises_of

from .suite_runs import assert_told
from .wrong_strategies import WRONG

pytest_plugins = ["pytester"]
FILE = """
import pytest
from nfcore.testing import StrategyConformance, StrategyUnderTest
from tests.unit.testing.wrong_strategies import WRONG

class TestStrategy(StrategyConformance):
    @pytest.fixture
    def strategy(self):
        return StrategyUnderTest(WRONG[{name!r}][0], {strategy!r}, "wrong")
"""


class TestFlowId(StrategyConformance):
    @pytest.fixture
    def strategy(self) -> StrategyUnderTest:
        return StrategyUnderTest(MarkingPlugin, "flow-id", "marking")


class TestDestId(StrategyConformance):
    @pytest.fixture
    def strategy(self) -> StrategyUnderTest:
        return StrategyUnderTest(MarkingPlugin, "dest-id", "marking")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_strategy_is_told_what_it_broke(pytester: pytest.Pytester, name: str) -> None:
    _, info, promise, also = WRONG[name]
    text = FILE.format(name=name, strategy=info.name)
    assert_told(pytester, text, StrategyConformance, "wrong", promise, also)


def test_every_promise_has_somebody_who_breaks_it() -> None:
    assert {promise for _, _, promise, _ in WRONG.values()} == set(promises_of(StrategyConformance))
