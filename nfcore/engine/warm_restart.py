# SPDX-License-Identifier: Apache-2.0
"""The rules that an earlier run left on the NIC: taken over when their marks still mean the same, removed otherwise.

Told apart by cookie: rules of others are not touched. Whether marks mean the same is told by a fingerprint of
strategy, its table, width and the network functions' numbering, which each run leaves for the next.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..api.context import Context
from ..api.flows import ANY_CPU, FlowBatch
from ..api.marks import MarkMeaning, first_of_each
from ..api.network_function import NetworkFunction
from ..api.rules import Action, RuleBatch, split_cookies
from ..devices.backends import BackendChain, Dump
from ..devices.rule_counters import RuleCounters, counts_of
from .flow_state import FlowState
from .flow_table import FlowTable

FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class Leftovers:
    """What became of the rules that a device held."""

    adopted: NDArray[np.int64]
    """Slots of the flows that are tracked from now on."""
    removed: int
    cleared: bool
    """Whether no rule of ours is left that was not adopted."""
    rule_counters: RuleCounters
    """What all of them have counted."""


def same_meaning(context: Context) -> bool:
    """Whether marks mean what they meant in the run before."""
    return context.state_file.recall(FINGERPRINT) == _fingerprint(context)


def note_meaning(context: Context) -> None:
    """Leave this run's fingerprint for the next. Only rules whose marks mean this may be left on any NIC by then."""
    context.state_file.remember(FINGERPRINT, _fingerprint(context))


def renew_meaning(context: Context) -> None:
    """Leave another fingerprint after a change of the targets, which the next run will have from its start."""
    now = _fingerprint(context)
    shared = context.strategy is not None and context.strategy.meaning is MarkMeaning.TARGET
    if shared and context.state_file.recall(FINGERPRINT) != now:
        # The next run would give the targets other marks than they have now.
        context.state_file.forget(FINGERPRINT)
    else:
        context.state_file.remember(FINGERPRINT, now)


def _fingerprint(context: Context) -> int:
    digest = hashlib.blake2b(digest_size=7)
    strategy = context.strategy
    digest.update(f"{strategy and strategy.name} {context.marks.width}".encode())
    # What a strategy is told to do may decide which target gets which mark.
    table = context.config.sections.get(context.strategist or "")
    if table is not None:
        digest.update(table.model_dump_json().encode())
    for nf in context.nfs:
        digest.update(nf.name.encode() + b"\0" + nf.fingerprint())
    return int.from_bytes(digest.digest(), "big")


def take_over(backends: BackendChain, context: Context, table: FlowTable, *, trusted: bool, now: float) -> Leftovers:
    """Adopt the device's rules whose marks still mean the same (`trusted`), and remove the rest of ours.

    `now` is the engine's time. Runs on the device's worker while the engine waits for it.
    """
    dump = backends.dump()
    ours, slots, generations = split_cookies(dump.rows["rule"]["cookie"])
    good = np.zeros(len(dump.rows), dtype=bool)
    if trusted and ours.any() and len(set(dump.backend[ours].tolist())) == 1:
        good = ours & _adoptable(backends, context, table, dump, slots)
    batch, kept = _as_flows(backends, context, dump, good)
    good[np.flatnonzero(good)[~kept]] = False
    batch = batch[kept]
    rules = dump.rows["rule"][good]
    adopted = slots[good]
    table.adopt(batch, adopted, generations[good], FlowState.INSTALLED, now)
    table.mark[adopted], table.backend[adopted] = rules["mark"], dump.backend[good]
    table.packets[adopted], table.bytes[adopted] = dump.rows["packets"][good], dump.rows["bytes"][good]
    stale = ours & ~good
    removal = backends.remove(RuleBatch(np.ascontiguousarray(dump.rows["rule"][stale])), dump.backend[stale])
    rule_counters, shown = RuleCounters(len(backends.names)), counts_of(dump.rows)
    shown[stale] = np.maximum(shown[stale], removal.counted)
    gone = stale.copy()
    # Those that could not be removed are counted when they are.
    gone[stale] = removal.gone
    for which in (good, gone):
        rule_counters.count(dump.backend[which], np.zeros_like(shown[which]), shown[which])
    rule_counters.end(dump.backend[gone], shown[gone])
    return Leftovers(adopted, int(np.count_nonzero(gone)), bool(removal.gone.all()), rule_counters)


def _adoptable(
    backends: BackendChain, context: Context, table: FlowTable, dump: Dump, slots: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Rows that could be tracked at all: they set a mark, and their slot is one that nobody else has."""
    good = first_of_each(slots)
    good &= (slots < table.capacity) & (dump.rows["rule"]["action"] == Action.SET_MARK)
    inside = good & (slots < len(table.state))
    good[inside] &= table.state[slots[inside]] == FlowState.FREE
    return good


def _as_flows(
    backends: BackendChain, context: Context, dump: Dump, good: NDArray[np.bool_]
) -> tuple[FlowBatch, NDArray[np.bool_]]:
    """The good rows as flows of the device's network function, and which of them it recognises."""
    rules = dump.rows["rule"][good]
    batch = FlowBatch.empty(len(rules))
    batch.rows["key"], batch.rows["family"], batch.rows["mark"] = rules["key"], rules["family"], rules["mark"]
    batch.rows["ifindex"], batch.rows["cpu"] = backends.device.ifindex, ANY_CPU
    nf = _function_of(backends, context)
    if nf is None or not len(batch):
        return batch, np.zeros(len(batch), dtype=bool)
    batch.rows["nf"] = nf.number
    kept = nf.recognise(batch, rules["mark"])
    if context.strategy is not None and context.strategy.meaning is MarkMeaning.FLOW:
        kept[kept] = context.marks.claim(rules["mark"][kept])
    return batch, kept


def _function_of(backends: BackendChain, context: Context) -> NetworkFunction | None:
    for nf in context.nfs:
        if any(device.ifindex == backends.device.ifindex for device in context.devices_of(nf.name)):
            return nf
    return None
