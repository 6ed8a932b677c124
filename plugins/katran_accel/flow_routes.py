# SPDX-License-Identifier: Apache-2.0
"""Where flows with rules go, for packets that come without their marks: bpf/balancer/flow_route.h from user space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import ANY_CPU, FLOW_KEY, FlowBatch
from nfcore.api.steps import Steps

from . import layouts as lay
from .connection_table import VipFinder, entry_keys, families_of_entries, flow_keys, targets_of
from .maps import BalancerMaps

_WHOLE_KEY = f"V{FLOW_KEY.itemsize}"


class FlowRoutes:
    """The map `hw_accel_routes`. In batches the rows' key, family and target count."""

    def __init__(self, maps: BalancerMaps) -> None:
        self._map = maps["hw_accel_routes"]

    @property
    def room(self) -> int:
        """How many flows fit."""
        return self._map.spec.max_entries

    def write(self, batch: FlowBatch) -> NDArray[np.bool_]:
        """Write the routes of flows, also in place of others. Says which are there: the map may be full."""
        keys = entry_keys(batch.rows["key"], batch.rows["family"])
        values = np.zeros(len(keys), dtype=lay.HW_ACCEL_ROUTE)
        values["vip_num"] = batch.rows["target"] >> np.uint64(32)
        values["real_key"] = batch.rows["target"] & np.uint64(0xFFFF_FFFF)
        return np.arange(len(keys)) < self._map.update_batch(keys, values).done

    def remove(self, batch: FlowBatch) -> None:
        """Remove the routes of flows."""
        self._map.delete_batch(entry_keys(batch.rows["key"], batch.rows["family"]))

    def stand(self, batch: FlowBatch) -> NDArray[np.bool_]:
        """Which flows have a route to their target: a SYN that takes a flow's addresses elsewhere ends its route."""
        found, values = self._map.lookup_batch_keys(entry_keys(batch.rows["key"], batch.rows["family"]))
        return np.asarray(found & (_targets(values) == batch.rows["target"]))

    def clear(self) -> None:
        """Remove all routes."""
        self._map.delete_batch(self._map.lookup_all()[0])

    def purge(self, targets: NDArray[np.uint64], finder: VipFinder) -> Steps[None]:
        """Remove routes to other targets than these, and of flows that belong to another VIP by now.

        All are read in a step; meanwhile routes are written, so those to remove are compared again.
        """

        def are_valid(keys: NDArray[np.void], values: NDArray[np.void]) -> NDArray[np.bool_]:
            owned = finder.owners_of_entries(keys) == values["vip_num"]
            return np.asarray(np.isin(_targets(values), targets) & owned)

        def find() -> NDArray[np.void]:
            keys, values = self._map.lookup_all()
            return np.asarray(keys[~are_valid(keys, values)])

        keys = yield find
        found, values = self._map.lookup_batch_keys(keys)
        valid = ~found | are_valid(keys, values)
        self._map.delete_batch(keys[~valid])

    def others(self, batch: FlowBatch) -> FlowBatch:
        """Give the flows that have routes, without those of a batch."""
        keys, values = self._map.lookup_all()
        known = np.ascontiguousarray(entry_keys(batch.rows["key"], batch.rows["family"]))
        other = ~np.isin(keys.view(_WHOLE_KEY), known.view(_WHOLE_KEY))
        flows = FlowBatch.empty(int(np.count_nonzero(other)))
        flows.rows["key"], flows.rows["family"] = flow_keys(keys[other]), families_of_entries(keys[other])
        flows.rows["target"], flows.rows["cpu"] = _targets(values[other]), ANY_CPU
        return flows


def _targets(values: NDArray[np.void]) -> NDArray[np.uint64]:
    return targets_of(values["vip_num"], values["real_key"])
