# SPDX-License-Identifier: Apache-2.0
"""Removes connections for good: entries of all tables, routes and rules, and what would bring them back.

routes, rules end ─► running programs end ─► entries are deleted ─► running programs end ─► reports are read ─┐
    ▲                                                                                                        │
    └────────────────────────────── what these brought, until they bring nothing ◄──────────────────────────┘
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nfcore.api.context import Services
from nfcore.api.flows import FlowBatch, FlowMatch, take_rows
from nfcore.api.steps import Steps, pause

from ..balancer import Balancer
from ..connection_table import VipFinder, entry_keys
from ..map_entries import delete_entries
from ..maps import wait_for_programs
from .entries import Table, connection_tables
from .selection import Selection

PASSES = 3
"""Times that late reports are followed up: with more, those of new flows to the same real would end as well."""
TURNS = 64
"""Turns in which waiting reports are read, at most: the ring buffer holds fewer."""
PATIENCE = 5.0
"""Seconds to wait for a NIC to remove rules."""
STEP = 0.01


@dataclass
class Removed:
    """What was removed."""

    deleted: int = 0
    """Entries of connection tables."""
    rules_ended: int = 0
    rules_left: int = 0
    """Of rules that were ended this way, those that a NIC still has: their packets go to the old real until then."""


def remove_selected(
    balancer: Balancer, services: Services, selection: Selection, patience: float = PATIENCE
) -> Steps[Removed]:
    """Remove the connections of a selection by VIP and real."""
    tables, finder = connection_tables(balancer.connections), balancer.finder
    targets = selection.targets(balancer.inventory)
    return _remove(balancer, services, targets, partial(_delete_selected, tables, selection, finder), patience)


def remove_flow(balancer: Balancer, services: Services, flow: FlowMatch, patience: float = PATIENCE) -> Steps[Removed]:
    """Remove one connection."""
    batch = FlowBatch.empty(1)
    batch.rows["key"], batch.rows["family"] = flow.to_key(), flow.family
    tables = connection_tables(balancer.connections)
    return _remove(balancer, services, batch, partial(_delete_flows, tables, batch), patience)


def _remove(
    balancer: Balancer,
    services: Services,
    which: FlowBatch | NDArray[np.uint64],
    delete: Callable[[], int],
    patience: float,
) -> Steps[Removed]:
    removed, marks = Removed(), balancer.routes is not None
    forgotten = services.forget_flows(balancer.number, which)
    removed.rules_ended = forgotten.rules
    removed.deleted = yield partial(_between_runs, delete, marks=marks)
    for _ in range(PASSES if marks else 0):
        for _ in range(TURNS):
            if services.take_reports():
                break
            yield pause
        late = services.forget_flows(balancer.number, which)
        if not len(late.flows):
            break
        removed.rules_ended += late.rules
        again = partial(_delete_flows, connection_tables(balancer.connections), late.flows)
        removed.deleted += yield partial(_between_runs, again, marks=marks)
    end = time.monotonic() + patience
    while (left := forgotten.left()) and time.monotonic() < end:
        yield partial(time.sleep, STEP)
    removed.rules_left = left
    return removed


def _between_runs(delete: Callable[[], int], *, marks: bool) -> int:
    """Delete entries when no program run knows a route any more, and wait until none knows a deleted entry."""
    if not marks:
        return delete()
    wait_for_programs()
    deleted = delete()
    wait_for_programs()
    return deleted


def _delete_selected(tables: list[Table], selection: Selection, finder: VipFinder) -> int:
    deleted = 0
    for table in tables:
        for entries in table.read():
            deleted += delete_entries(table.map, take_rows(entries.keys, selection.find(entries, finder)))
    return deleted


def _delete_flows(tables: list[Table], batch: FlowBatch) -> int:
    keys = entry_keys(batch.rows["key"], batch.rows["family"])
    return sum(delete_entries(table.map, keys) for table in tables)
