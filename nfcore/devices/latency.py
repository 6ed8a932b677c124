# SPDX-License-Identifier: Apache-2.0
"""Histograms of the time that a NIC takes for rules, by operation: per batch, and per rule."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from ..api.metrics import Histogram

BATCH_BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
RULE_BOUNDS = (0.000001, 0.000003, 0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.1)
"""Seconds: from a map in memory to slow firmware."""


class Operation(StrEnum):
    """What a device's worker does with rules."""

    INSTALL = "install"
    REMOVE = "remove"
    DUMP = "dump"


@dataclass
class TimedBatch:
    """A batch that is being timed."""

    rules: int = 0


class LatencyHistograms:
    """Histograms of one device. Its worker writes, the engine's thread reads."""

    def __init__(self) -> None:
        self.batches = {operation: Histogram(BATCH_BOUNDS) for operation in Operation}
        self.rules = {operation: Histogram(RULE_BOUNDS) for operation in Operation}

    @contextmanager
    def time(self, operation: Operation) -> Iterator[TimedBatch]:
        """Time one batch. The caller sets its number of rules. An operation that raises is timed as well."""
        batch, began = TimedBatch(), time.perf_counter()
        try:
            yield batch
        finally:
            seconds = time.perf_counter() - began
            self.batches[operation].observe(seconds)
            if batch.rules:
                self.rules[operation].observe(seconds / batch.rules, batch.rules)
