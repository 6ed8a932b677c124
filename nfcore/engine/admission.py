# SPDX-License-Identifier: Apache-2.0
"""The policies of `[offload]` that decide whether a flow may get a rule, as a plugin with the hook `on_new_flow`.

Limits of room and time (`max_rules`, the NIC's table, the budget of insertions) are not applied here: admitted flows
wait until there is room, the hottest first (`dispatch.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..api.config import Network, OffloadTable
from ..api.context import Context
from ..api.flows import FlowBatch, ReportKind, pack_address
from ..api.hookspecs import hookimpl
from ..api.marks import ranks_within
from ..api.reasons import Reason

NAME = "admission"
Held = Callable[[int], NDArray[np.uint32]]
"""NF number → the group of each of its flows that has a rule or waits for one."""


class Admission:
    """nfcore's own policies. held: gives the flows that count towards the share of a group."""

    def __init__(self, context: Context, held: Held) -> None:
        self._context = context
        self._held = held

    @property
    def _table(self) -> OffloadTable:
        return self._context.config.offload

    @hookimpl
    def on_new_flow(self, batch: FlowBatch) -> NDArray[np.uint8] | None:
        """Refuse flows that are excluded or too slow, or whose group has its share of the rules already.

        Not flows that an application has ordered.
        """
        reasons = np.zeros(len(batch), dtype=np.uint8)
        if self._table.min_rate:
            reasons[batch.rows["rate"] < self._table.min_rate] = Reason.TOO_SLOW
        for network in self._table.exclude:
            reasons[_touches(batch, network)] = Reason.EXCLUDED
        if self._table.max_share < 1:
            self._share(batch, reasons)
        reasons[batch.rows["kind"] != ReportKind.SHOWN] = Reason.ADMIT
        return reasons if reasons.any() else None

    def _share(self, batch: FlowBatch, reasons: NDArray[np.uint8]) -> None:
        """Refuse flows that would bring their group over its share; flows with more packets come first."""
        limit = max(1, int(self._table.max_rules * self._table.max_share))
        open_rows = np.flatnonzero(reasons == 0)
        for number in np.unique(batch.rows["nf"][open_rows]).tolist():
            rows = open_rows[batch.rows["nf"][open_rows] == number]
            groups = self._context.nfs[number - 1].groups(batch.rows["target"][rows])
            held = np.bincount(self._held(number), minlength=int(groups.max(initial=0)) + 1)
            order = np.argsort(-batch.rows["packets"][rows].astype(np.float64), kind="stable")
            rank = np.empty(len(rows), dtype=np.int64)
            rank[order] = ranks_within(groups[order])
            reasons[rows[held[groups] + rank >= limit]] = Reason.SHARE


def _touches(batch: FlowBatch, network: Network) -> NDArray[np.bool_]:
    """Which rows have their source or destination address in the prefix."""
    mask, wanted = pack_address(network.netmask), pack_address(network.network_address)
    keys = batch.rows["key"]
    inside: NDArray[np.bool_] = ((keys["src"] & mask) == wanted).all(axis=1)
    inside |= ((keys["dst"] & mask) == wanted).all(axis=1)
    inside &= batch.rows["family"] == network.version
    return inside
