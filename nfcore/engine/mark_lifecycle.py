# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of a mark: allocated by the strategy, published and retired by the network function, released."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..api.context import Context
from ..api.flows import FlowBatch
from ..api.marks import MarkMeaning
from ..api.network_function import NetworkFunction
from ..api.reasons import Reason
from ..api.steps import Steps, pause
from ..hooks.faults import Fault
from ..hooks.manager import PluginManager

_AT_ONCE = 2_048
"""Targets that get their marks in one turn of the event loop."""


class MarkLifecycle:
    """Calls the hooks of marking strategies and network functions that deal with marks."""

    def __init__(self, context: Context, plugins: PluginManager) -> None:
        self._context = context
        self._plugins = plugins
        self._ending: dict[int, NDArray[np.uint32]] = {}
        """NF number → marks of targets that are gone. Rules may still set them."""
        self._unretired: dict[int, NDArray[np.uint32]] = {}
        """NF number → marks of flows that are gone, and that the NF failed to retire."""

    @property
    def of_targets(self) -> bool:
        """Whether all flows of a target share one mark."""
        strategy = self._context.strategy
        return strategy is not None and strategy.meaning is MarkMeaning.TARGET

    @property
    def ending(self) -> bool:
        """Whether marks of gone targets are still to be retired."""
        return bool(self._ending)

    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        """Give each flow the strategy's mark, 0 if there is none. Marks that XDP took and that are not used go back."""
        marks = np.zeros(len(batch), dtype=np.uint32)
        plugin, given = self._plugins.call_first("allocate_mark", batch=batch)
        if given is not None:
            marks = self._without_too_wide(plugin, given)
        self.release_unused(batch.rows["mark"][batch.rows["mark"] != marks])
        for ending in self._ending.values():
            marks[np.isin(marks, ending)] = 0
        return marks

    def _without_too_wide(self, plugin: str, marks: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Replace marks of more bits than `[marking] width` by 0, and report the plugin's fault."""
        wide = marks >= self._context.marks.size
        if wide.any():
            text = f"returned {marks[wide][0]}; should be marks of [marking] width = {self._context.marks.width} bits"
            self._plugins.report_fault(plugin, "allocate_mark", Fault.WRONG_RESULT, text)
        return np.where(wide, 0, marks).astype(np.uint32)

    def publish(
        self, nf: NetworkFunction, batch: FlowBatch, marks: NDArray[np.uint32]
    ) -> tuple[NDArray[np.bool_], Reason]:
        """Let the NF write what the marks mean. Returns which it has written, and the reason why the others go back."""
        done, result = self._plugins.try_call(nf.name, "publish_marks", batch=batch, marks=marks)
        published = result if done else np.zeros(len(batch), dtype=bool)
        self._context.mark_owners.give(nf.number, marks[published])
        self.retire(nf.number, marks[~published])
        if self.of_targets and not published.all():
            # The report of a flow may come after its target was removed: the mark of that target must be retired.
            refused = np.unique(batch.rows["target"][~published])
            self.begin_retire(nf, np.setdiff1d(refused, nf.targets().rows["target"]))
        return published, Reason.NOT_PUBLISHED if done else Reason.HOOK_FAILED

    def publish_targets(self, nf: NetworkFunction) -> Steps[None]:
        """Give every known target its mark before the first flow needs it."""
        targets = nf.targets()
        for first in range(0, len(targets), _AT_ONCE):
            some = targets[np.arange(first, min(first + _AT_ONCE, len(targets)))]
            marks = self.allocate(some)
            given = marks != 0
            if given.any():
                self.publish(nf, some[given], marks[given])
            yield pause

    def retire(self, nf_number: int, marks: NDArray[np.uint32]) -> None:
        """Retire and release the marks of flows; marks of targets stay, for the other flows."""
        if not self.of_targets and len(marks) and not self._retire(nf_number, marks):
            before = self._unretired.get(nf_number, marks[:0])
            self._unretired[nf_number] = np.concatenate([before, marks])

    def retire_again(self) -> None:
        """Retry to retire marks where the NF has failed."""
        again, self._unretired = self._unretired, {}
        for nf_number, marks in again.items():
            self.retire(nf_number, marks)

    def release_unused(self, taken: NDArray[np.uint32]) -> None:
        """Release marks that XDP took and no flow uses. Those not on lease stay: they are in use, or unknown."""
        self._release(taken[self._context.marks.leased(taken)])

    def lease(self) -> None:
        """Fill the pools from which XDP takes marks."""
        for nf in self._context.nfs:
            if nf.pools is not None:
                nf.pools.lease(self._context.marks, self._context.config.marking.pool_chunk)

    def begin_retire(self, nf: NetworkFunction, targets: NDArray[np.uint64]) -> None:
        """From now on allocate no marks of these targets, which are gone; retire them once no rule sets them."""
        if not self.of_targets or not len(targets):
            return
        batch = FlowBatch.empty(len(targets))
        batch.rows["nf"], batch.rows["target"] = nf.number, targets
        marks = self.allocate(batch)
        before = self._ending.get(nf.number, marks[:0])
        self._ending[nf.number] = np.union1d(before, marks[marks != 0]).astype(np.uint32)

    def unused(self, in_use: NDArray[np.uint32]) -> dict[int, NDArray[np.uint32]]:
        """Give the marks of gone targets that no flow has `in_use`: for :meth:`retire_targets` after a grace period."""
        return {number: free for number, marks in self._ending.items() if len(free := np.setdiff1d(marks, in_use))}

    def retire_targets(self, ended: dict[int, NDArray[np.uint32]]) -> None:
        """Retire and release marks of targets that are gone."""
        for number, marks in ended.items():
            still_ending = np.intersect1d(marks, self._ending.get(number, marks[:0]))
            if self._retire(number, still_ending):
                left = np.setdiff1d(self._ending[number], still_ending)
                if len(left):
                    self._ending[number] = left
                else:
                    del self._ending[number]

    def _retire(self, nf_number: int, marks: NDArray[np.uint32]) -> bool:
        nf = self._context.nfs[nf_number - 1]
        retired, _ = self._plugins.try_call(nf.name, "retire_marks", nf=nf_number, marks=marks)
        if retired:  # otherwise the mark may still have an entry, and must not be given to another flow
            self._context.mark_owners.clear(marks)
            self._release(marks)
        return retired

    def _release(self, marks: NDArray[np.uint32]) -> None:
        marks = marks[marks != 0]
        if len(marks):
            for _ in self._plugins.call_each("release_mark", marks=marks):
                pass
