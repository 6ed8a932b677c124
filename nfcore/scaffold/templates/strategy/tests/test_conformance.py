# SPDX-License-Identifier: Apache-2.0
"""The conformance suite for every marking strategy: each test is a promise, which its docstring states."""

from __future__ import annotations

import pytest
from nfcore.testing import StrategyConformance, StrategyUnderTest

from nfcore_my_name import MyNamePlugin
from nfcore_my_name.plugin import NAME, STRATEGY


class TestConformance(StrategyConformance):
    """Set `StrategyUnderTest.table` to the plugin's table, as the tests need it."""

    @pytest.fixture
    def strategy(self) -> StrategyUnderTest:
        return StrategyUnderTest(MyNamePlugin, STRATEGY.name, NAME, {"first": 5})
