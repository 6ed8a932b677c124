# SPDX-License-Identifier: Apache-2.0
"""How long a NIC takes for rules, by what it is asked to do: per batch, and per rule of a batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from ..api.metrics import Histogram

BATCH_BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
RULE_BOUNDS = (0.000001, 0.000003, 0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.1)
"""Seconds: from a map in memory to firmware that takes its time."""


class Operation(StrEnum):
    """What a device's worker does with rules."""

    INSTALL = "install"
    REMOVE = "remove"
    DUMP = "dump"


@dataclass
class Took:
    """A batch under way."""

    rules: int = 0


class LatencyHistograms:
    """Histograms of one device. Its worker observes, the engine's thread reads."""

    def __init__(self) -> None:
        self.batches = {operation: Histogram(BATCH_BOUNDS) for operation in Operation}
        self.rules = {operation: Histogram(RULE_BOUNDS) for operation in Operation}

    @contextmanager
    def time(self, operation: Operation) -> Iterator[Took]:
        """Time one batch, whose number of rules the caller fills in; an operation that fails counts, too."""
        took, began = Took(), time.perf_counter()
        try:
            yield took
        finally:
            seconds = time.perf_counter() - began
            self.batches[operation].observe(seconds)
            if took.rules:
                self.rules[operation].observe(seconds / took.rules, took.rules)
