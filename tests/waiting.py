# SPDX-License-Identifier: Apache-2.0
"""Waiting for states, not for times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def eventually(condition: Callable[[], Any], patience: float) -> Any:
    """Wait until `condition` holds; its last value. `patience`: seconds until that counts as not happening."""
    deadline = time.monotonic() + patience
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value
