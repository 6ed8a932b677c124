# SPDX-License-Identifier: Apache-2.0
"""Takes rules from flows that an earlier function of the chain must see: a marked packet would pass it by."""

from __future__ import annotations

import numpy as np

from ..api.network_function import NetworkFunction
from ..api.reasons import Reason
from .removal import Remover
from .state import ACTIVE, EngineState

SHARE = 10
"""The next look at a function's claims waits for this many times as long as the last one took."""


class Claims:
    """Looks at the flows of later functions again whenever the claims of an earlier function have changed."""

    def __init__(self, state: EngineState, remover: Remover) -> None:
        self._state = state
        self._remover = remover
        self._seen: dict[int, int] = {}
        """NF number → its `claim_changes` at the last look."""
        self._next_look = 0.0

    def run(self) -> None:
        """Look at the claims of functions that have changed."""
        for nf in self._state.context.nfs:
            if nf.claim_changes != self._seen.get(nf.number, 0) and self._state.clock() >= self._next_look:
                began, changes = self._state.clock(), nf.claim_changes
                self._look(nf, self._seen.get(nf.number, 0))
                self._seen[nf.number] = changes
                self._next_look = began + SHARE * (self._state.clock() - began)

    def settled(self, nf: NetworkFunction) -> bool:
        """Whether no NIC does what changes of `nf` have ended: marks for a later function, withdrawn orders."""
        looked = nf.claim_changes == self._seen.get(nf.number, 0)
        return looked and not any(map(self._remover.left_on_nic, (Reason.EARLIER, Reason.WITHDRAWN)))

    def _look(self, nf: NetworkFunction, since: int) -> None:
        state, table = self._state, self._state.table
        for device in state.context.devices_of(nf.name):
            later = [
                each.number for each in state.context.nfs if nf in state.context.earlier_functions(each, device.ifindex)
            ]
            if not later:
                continue
            slots = table.slots_in(*ACTIVE)
            slots = slots[(table.flow["ifindex"][slots] == device.ifindex) & np.isin(table.flow["nf"][slots], later)]
            slots = slots[table.reason[slots] != Reason.EARLIER]
            if len(slots):
                self._remover.end_rules(slots[nf.claims(table.batch(slots), since)], Reason.EARLIER)
