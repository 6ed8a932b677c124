# SPDX-License-Identifier: Apache-2.0
"""The engine's dealings in marks: from whom they come, what they are made to mean, and how they go back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..api.context import Context
from ..api.flows import FlowBatch
from ..api.marks import MarkMeaning
from ..api.network_function import NetworkFunction
from ..api.reasons import Reason
from ..hooks.faults import Fault
from ..hooks.manager import PluginManager


class MarkLifecycle:
    """Asks strategies and network functions."""

    def __init__(self, context: Context, plugins: PluginManager) -> None:
        self._context = context
        self._plugins = plugins
        self._ending: dict[int, NDArray[np.uint32]] = {}
        """NF number → marks of targets that are gone, which rules may still set."""
        self._unretired: dict[int, NDArray[np.uint32]] = {}
        """NF number → marks of flows that are gone, which the NF failed to retire."""

    @property
    def of_targets(self) -> bool:
        """Whether a mark is shared by all flows of a target."""
        strategy = self._context.strategy
        return strategy is not None and strategy.meaning is MarkMeaning.TARGET

    @property
    def ending(self) -> bool:
        """Whether there are marks of targets that are gone."""
        return bool(self._ending)

    def allocate(self, batch: FlowBatch) -> NDArray[np.uint32]:
        """Marks of the strategy in charge, 0 where there is none; a mark that XDP took in vain goes back."""
        marks = np.zeros(len(batch), dtype=np.uint32)
        plugin, given = self._plugins.call_first("allocate_mark", batch=batch)
        if given is not None:
            marks = self._within(plugin, given)
        self.give_back(batch.rows["mark"][batch.rows["mark"] != marks])
        for ending in self._ending.values():
            marks[np.isin(marks, ending)] = 0
        return marks

    def _within(self, plugin: str, marks: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Leave out marks that are wider than all that is agreed on."""
        wide = marks >= self._context.marks.size
        if wide.any():
            words = f"answered {marks[wide][0]}; should be marks of [marking] width = {self._context.marks.width} bits"
            self._plugins.report_fault(plugin, "allocate_mark", Fault.WRONG_ANSWER, words)
        return np.where(wide, 0, marks).astype(np.uint32)

    def publish(
        self, nf: NetworkFunction, batch: FlowBatch, marks: NDArray[np.uint32]
    ) -> tuple[NDArray[np.bool_], Reason]:
        """Let the NF write what the marks mean. Which of them stand, and the reason of the others, which go back."""
        done, answer = self._plugins.try_call(nf.name, "publish_marks", batch=batch, marks=marks)
        published = answer if done else np.zeros(len(batch), dtype=bool)
        self.undo(nf.number, marks[~published])
        if self.of_targets and not published.all():
            # A report that was on its way when its target went must not leave a mark to nowhere.
            refused = np.unique(batch.rows["target"][~published])
            self.begin_end(nf, np.setdiff1d(refused, nf.targets().rows["target"]))
        return published, Reason.NOT_PUBLISHED if done else Reason.HOOK_FAILED

    def publish_targets(self, nf: NetworkFunction) -> None:
        """Give every known target its mark before the first flow needs it."""
        targets = nf.targets()
        marks = self.allocate(targets)
        given = marks != 0
        if given.any():
            self._plugins.try_call(nf.name, "publish_marks", batch=targets[given], marks=marks[given])

    def undo(self, nf_number: int, marks: NDArray[np.uint32]) -> None:
        """Retire and give back marks of single flows; a target's mark goes on for the other flows."""
        if not self.of_targets and len(marks) and not self._retire(nf_number, marks):
            before = self._unretired.get(nf_number, marks[:0])
            self._unretired[nf_number] = np.concatenate([before, marks])

    def retire_again(self) -> None:
        """Try again what the NF failed to do."""
        again, self._unretired = self._unretired, {}
        for nf_number, marks in again.items():
            self.undo(nf_number, marks)

    def give_back(self, taken: NDArray[np.uint32]) -> None:
        """Return marks that XDP took and no flow will use. What is not on lease is in use, or never was ours."""
        self._release(taken[self._context.marks.leased(taken)])

    def lease(self) -> None:
        """Fill the pools that XDP takes marks from."""
        for nf in self._context.nfs:
            if nf.pools is not None:
                nf.pools.lease(self._context.marks, self._context.config.marking.pool_chunk)

    def begin_end(self, nf: NetworkFunction, targets: NDArray[np.uint64]) -> None:
        """Give no flow the marks of targets that are gone, and retire them once nothing sets them."""
        if not self.of_targets or not len(targets):
            return
        batch = FlowBatch.empty(len(targets))
        batch.rows["nf"], batch.rows["target"] = nf.number, targets
        marks = self.allocate(batch)
        before = self._ending.get(nf.number, marks[:0])
        self._ending[nf.number] = np.union1d(before, marks[marks != 0]).astype(np.uint32)

    def unused(self, in_use: NDArray[np.uint32]) -> dict[int, NDArray[np.uint32]]:
        """Marks of gone targets that no flow in a NIC or on its way there has: for :meth:`end` after a grace."""
        return {number: free for number, marks in self._ending.items() if len(free := np.setdiff1d(marks, in_use))}

    def end(self, ended: dict[int, NDArray[np.uint32]]) -> None:
        """Retire and give back marks of targets that are gone."""
        for number, marks in ended.items():
            now = np.intersect1d(marks, self._ending.get(number, marks[:0]))
            if self._retire(number, now):
                left = np.setdiff1d(self._ending[number], now)
                self._ending[number] = left
                if not len(left):
                    del self._ending[number]

    def _retire(self, nf_number: int, marks: NDArray[np.uint32]) -> bool:
        nf = self._context.nfs[nf_number - 1]
        retired, _ = self._plugins.try_call(nf.name, "retire_marks", nf=nf_number, marks=marks)
        if retired:  # a mark that may still mean something must not be given to another flow
            self._release(marks)
        return retired

    def _release(self, marks: NDArray[np.uint32]) -> None:
        marks = marks[marks != 0]
        if len(marks):
            for _ in self._plugins.call_each("release_mark", marks=marks):
                pass
