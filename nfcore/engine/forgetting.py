# SPDX-License-Identifier: Apache-2.0
"""Forgets flows because their network function does, as an operator wants: their next packets are decided anew."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..api.context import Forgotten
from ..api.flows import FlowBatch
from ..api.reasons import Reason
from .flow_state import WITHOUT_RULE, FlowState, Order
from .removal import NO_RESTORE, Remover
from .state import ACTIVE, EngineState


class Forgetting:
    """Ends the rules of flows, and leaves nothing by which their targets could come back."""

    def __init__(self, state: EngineState, remover: Remover) -> None:
        self._state = state
        self._remover = remover

    def forget(self, nf: int, flows: FlowBatch | NDArray[np.uint64]) -> Forgotten:
        """Forget these flows of a network function on every device, or all of its flows to these targets.

        Flows without a rule are remembered no more: their old targets could be restored. Ordered flows stay, and so do
        those that are on their way out and will not be restored.
        """
        table = self._state.table
        slots = self._find(nf, flows) if isinstance(flows, FlowBatch) else self._to_targets(nf, flows)
        slots = slots[table.order[slots] == Order.NONE]
        table.remove(slots[np.isin(table.state[slots], WITHOUT_RULE)])
        slots = slots[np.isin(table.state[slots], ACTIVE) & ~np.isin(table.reason[slots], NO_RESTORE)]
        rules = int(np.count_nonzero(np.isin(table.state[slots], (FlowState.INSTALLED, FlowState.PENDING))))
        ended = table.batch(slots)
        self._remover.end_rules(slots, Reason.FORGOTTEN)
        return Forgotten(ended, rules, partial(self._remover.left_on_nic, Reason.FORGOTTEN))

    def _find(self, nf: int, batch: FlowBatch) -> NDArray[np.int64]:
        """Slots of flows, whatever device they arrive on."""
        found = []
        for ifindex in self._state.devices:
            here = FlowBatch(batch.rows.copy())
            here.rows["nf"], here.rows["ifindex"] = nf, ifindex
            slots = self._state.table.find(here)
            found.append(slots[slots >= 0])
        return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)

    def _to_targets(self, nf: int, targets: NDArray[np.uint64]) -> NDArray[np.int64]:
        table = self._state.table
        slots = table.slots_in(*ACTIVE, *WITHOUT_RULE)
        found: NDArray[np.int64] = slots[
            (table.flow["nf"][slots] == nf) & np.isin(table.flow["target"][slots], targets)
        ]
        return found
