# SPDX-License-Identifier: Apache-2.0
"""A million flows in one process."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nfcore.api.flows import FlowBatch
from nfcore.engine.flow_state import FlowState

from .world import IFINDEX, World

FLOWS, BATCH = 1_000_000, 16_384


def test_a_million_flows_are_tracked_and_cost_little_memory(make: Callable[..., World]) -> None:
    world = make("dest-id", max_rules=FLOWS, offload={"inserts_per_second": 0.0}, null=1)
    world.start()
    for first in range(0, FLOWS, BATCH):
        numbers = np.arange(first, min(first + BATCH, FLOWS), dtype=">u4")
        batch = FlowBatch.empty(len(numbers))
        batch.rows["key"]["src"][:, :4] = numbers.view(np.uint8).reshape(-1, 4)
        batch.rows["key"]["proto"], batch.rows["family"], batch.rows["nf"] = 6, 4, 1
        batch.rows["ifindex"], batch.rows["target"], batch.rows["packets"] = IFINDEX, numbers % 50, 8
        world.nf.reports.append(batch)
        world.engine.poll()
    table = world.engine.table
    assert table.count(FlowState.INSTALLED) == FLOWS
    assert world.adds_up()
    assert table.nbytes / len(table) < 200
