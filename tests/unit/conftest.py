# SPDX-License-Identifier: Apache-2.0
"""Engines of the unit tests: ready ones, and one to be made as a test needs it."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from nfcore.api.config import Config
from nfcore.logs import LogHandler
from tests.unit.engine.world import World


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Undo what a command that ran within the test's process has set up for its log."""
    root = logging.getLogger()
    level, stderr = root.level, sys.stderr
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    if any(isinstance(handler, LogHandler) for handler in root.handlers):
        root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler, LogHandler)]
        root.setLevel(level)
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        sys.stderr = stderr
        logging.captureWarnings(capture=False)


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
