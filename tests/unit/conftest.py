# SPDX-License-Identifier: Apache-2.0
"""Engines of the unit tests: ready ones, and one to be made as a test needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from nfcore.api.config import Config
from tests.unit.engine.world import World


@pytest.fixture
def make(config: Config) -> Callable[..., World]:
    def world(
        strategy: str = "flow-id", max_rules: int = 1000, offload: Mapping[str, Any] | None = None, **sizes: int
    ) -> World:
        return World(config, strategy, sizes or {"nic": 1000}, max_rules, **offload or {})

    return world


@pytest.fixture
def flow_id(make: Callable[..., World]) -> World:
    world = make("flow-id")
    world.start()
    return world


@pytest.fixture
def dest_id(make: Callable[..., World]) -> World:
    world = make("dest-id")
    world.start()
    return world
