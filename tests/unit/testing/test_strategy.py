# SPDX-License-Identifier: Apache-2.0
"""The suite for strategies: flow-id and dest-id pass; for a wrong one the broken promise is reported."""

from __future__ import annotations

import pytest

from nfcore.plugins.marking import MarkingPlugin
from nfcore.testing import StrategyConformance, StrategyUnderTest
from nfcore.testing.promises import promises_of

from .suite_runs import assert_reports_broken
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
def test_the_promise_that_a_wrong_strategy_breaks_is_reported(pytester: pytest.Pytester, name: str) -> None:
    _, info, promise, also = WRONG[name]
    text = FILE.format(name=name, strategy=info.name)
    assert_reports_broken(pytester, text, StrategyConformance, "wrong", promise, also)


def test_each_promise_is_broken_by_a_wrong_strategy() -> None:
    assert {promise for _, _, promise, _ in WRONG.values()} == set(promises_of(StrategyConformance))
