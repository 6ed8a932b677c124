# SPDX-License-Identifier: Apache-2.0
"""What nfcore asks of every marking strategy. Each test is a promise, in its docstring's words."""

from __future__ import annotations

import pytest
from nfcore.testing import StrategyConformance, StrategyUnderTest

from nfcore_my_name import MyNamePlugin
from nfcore_my_name.plugin import NAME, STRATEGY


class TestConformance(StrategyConformance):
    """With the plugin's own table as `StrategyUnderTest.table`, where its keys matter."""

    @pytest.fixture
    def strategy(self) -> StrategyUnderTest:
        return StrategyUnderTest(MyNamePlugin, STRATEGY.name, NAME, {"first": 5})
