# SPDX-License-Identifier: Apache-2.0
"""nfcore's suite for marking strategies, with owners of some VIPs, and without owners."""

from __future__ import annotations

from typing import Any

import pytest

from nfcore.testing import StrategyConformance, StrategyUnderTest
from nfcore_strategy_tenant import TenantMarksPlugin
from nfcore_strategy_tenant.config import NAME, STRATEGY

OWNED = {
    "bits": 2,
    "owners": [
        {"name": "blue", "block": 1, "vips": ["198.18.10.1", "198.18.10.2:80/tcp"]},
        {"name": "green", "block": 3, "vips": ["198.18.10.4/30"]},
    ],
}


class TestConformance(StrategyConformance):
    @pytest.fixture(params=[OWNED, {}], ids=["owners", "no owners"])
    def strategy(self, request: pytest.FixtureRequest) -> StrategyUnderTest:
        table: dict[str, Any] = request.param
        return StrategyUnderTest(TenantMarksPlugin, STRATEGY, NAME, table)
