# SPDX-License-Identifier: Apache-2.0
"""Takes over the rules that an earlier run left on the NIC if their marks still mean the same, removes them otherwise.

nfcore's rules are known by their cookies; other rules are not touched. Each run leaves a fingerprint for the next:
a hash of the strategy, its table, the marks' width and the network functions' numbering. The same fingerprint means
that the marks mean the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..api.context import Context
from ..api.flows import ANY_CPU, WHOLE_FLOW, FlowBatch, ReportKind
from ..api.marks import MarkMeaning, first_of_each
from ..api.network_function import NetworkFunction
from ..api.rules import Action, RuleBatch, are_ordered, split_cookies
from ..devices.backends import BackendChain, Dump
from ..devices.rule_counters import RuleCounters, counts_of
from .flow_state import FlowState, Order
from .flow_table import FlowTable

FINGERPRINT = "fingerprint"
"""Key of the state file."""


@dataclass(frozen=True)
class Leftovers:
    """What became of the rules of an earlier run on a device."""

    adopted: NDArray[np.int64]
    """Slots of the flows whose rules were taken over: they are tracked from now on."""
    removed: int
    cleared: bool
    """Whether all rules that were not adopted have been removed."""
    rule_counters: RuleCounters
    """What all of these rules have counted."""


def same_meaning(context: Context) -> bool:
    """Whether marks mean the same as in the run before this one."""
    return context.state_file.get_number(FINGERPRINT) == _fingerprint(context)


def note_meaning(context: Context) -> None:
    """Leave this run's fingerprint for the next. By then no NIC may hold rules whose marks mean anything else."""
    context.state_file.set(FINGERPRINT, _fingerprint(context))


def renew_meaning(context: Context) -> None:
    """Renew the fingerprint after the targets have changed: the next run starts with the new ones."""
    now = _fingerprint(context)
    if context.state_file.get_number(FINGERPRINT) == now:
        return
    shared = context.strategy is not None and context.strategy.meaning is MarkMeaning.TARGET
    if shared:
        # The next run numbers the marks of its targets from the start: they would differ from those of now.
        context.state_file.remove(FINGERPRINT)
    else:
        context.state_file.set(FINGERPRINT, now)


def _fingerprint(context: Context) -> int:
    digest = hashlib.blake2b(digest_size=7)
    strategy = context.strategy
    digest.update(f"{strategy and strategy.name} {context.marks.width}".encode())
    # The configuration of a strategy may decide which target gets which mark.
    table = context.config.sections.get(context.strategy_plugin or "")
    if table is not None:
        digest.update(table.model_dump_json().encode())
    for nf in context.nfs:
        digest.update(nf.name.encode() + b"\0" + nf.fingerprint())
    return int.from_bytes(digest.digest(), "big")


def take_over(backends: BackendChain, context: Context, table: FlowTable, *, trusted: bool, now: float) -> Leftovers:
    """Adopt the device's rules whose marks still mean the same (`trusted`), and remove the rest of nfcore's rules.

    `now` is the engine's time. Runs on the device's worker while the engine waits for it.
    """
    dump = backends.dump()
    own, slots, _ = split_cookies(dump.rows["rule"]["cookie"])
    good = np.zeros(len(dump.rows), dtype=bool)
    if trusted and own.any() and len(set(dump.backend[own].tolist())) == 1:
        good = own & _trackable(table, dump, slots)
    batch, recognised = _as_flows(backends, context, dump, good)
    good[np.flatnonzero(good)[~recognised]] = False
    adopted = _adopt(table, context, batch[recognised], dump, good, now)
    stale = own & ~good
    removal = backends.remove(RuleBatch(np.ascontiguousarray(dump.rows["rule"][stale])), dump.backend[stale])
    rule_counters, counts = RuleCounters(len(backends.names)), counts_of(dump.rows)
    counts[stale] = np.maximum(counts[stale], removal.counted)
    # Stale rules that could not be removed now are counted when they are removed.
    gone = stale.copy()
    gone[stale] = removal.gone
    for which in (good, gone):
        rule_counters.count(dump.backend[which], np.zeros_like(counts[which]), counts[which])
    rule_counters.end(dump.backend[gone], counts[gone])
    ordered = gone & are_ordered(dump.rows["rule"]["cookie"])
    for nf in _functions_of(backends, context):
        if nf.orders:
            unknown = np.full(int(np.count_nonzero(ordered)), np.inf)
            nf.rules_ended(_flows_of(backends, nf, dump.rows["rule"][ordered]), counts[ordered], unknown)
    return Leftovers(adopted, int(np.count_nonzero(gone)), bool(removal.gone.all()), rule_counters)


def _trackable(table: FlowTable, dump: Dump, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows can be tracked: no other row or flow has their slot."""
    good = first_of_each(slots)
    good &= slots < table.capacity
    inside = good & (slots < len(table.state))
    good[inside] &= table.state[slots[inside]] == FlowState.FREE
    return good


def _as_flows(
    backends: BackendChain, context: Context, dump: Dump, good: NDArray[np.bool_]
) -> tuple[FlowBatch, NDArray[np.bool_]]:
    """Give the good rows as flows of the device's network functions, and which of them a function recognises."""
    rules = dump.rows["rule"][good]
    batch = _flows_of(backends, None, rules)
    drops = rules["action"] == Action.DROP
    reported = batch.rows["kind"] == ReportKind.SHOWN
    recognised = np.zeros(len(batch), dtype=bool)
    for nf in _functions_of(backends, context):
        rows = np.flatnonzero(~recognised & (reported | bool(nf.orders)))
        if not len(rows):
            continue
        mine = batch[rows]
        mine.rows["nf"] = nf.number
        known = nf.recognise(mine, rules["mark"][rows])
        if context.strategy is not None and context.strategy.meaning is MarkMeaning.FLOW:
            marked = known & ~drops[rows]
            known[marked] = context.marks.claim(rules["mark"][rows[marked]])
        batch.rows.view(WHOLE_FLOW)[rows[known]] = mine.rows.view(WHOLE_FLOW)[known]
        recognised[rows[known]] = True
        context.mark_owners.give(nf.number, rules["mark"][rows[known & ~drops[rows]]])
    return batch, recognised


def _flows_of(backends: BackendChain, nf: NetworkFunction | None, rules: NDArray[np.void]) -> FlowBatch:
    """Give the flows of rules of an earlier run; `kind` says which were ordered."""
    batch = FlowBatch.empty(len(rules))
    for name in ("key", "family", "vlans", "mark"):
        batch.rows[name] = rules[name]
    batch.rows["ifindex"], batch.rows["cpu"] = backends.device.ifindex, ANY_CPU
    batch.rows["nf"] = nf.number if nf is not None else 0
    kinds = np.where(rules["action"] == Action.DROP, ReportKind.ORDERED_DROP, ReportKind.ORDERED)
    batch.rows["kind"] = np.where(are_ordered(rules["cookie"]), kinds, ReportKind.SHOWN)
    return batch


def _functions_of(backends: BackendChain, context: Context) -> list[NetworkFunction]:
    ifindex = backends.device.ifindex
    return [nf for nf in context.nfs if ifindex in {device.ifindex for device in context.devices_of(nf.name)}]


def _adopt(
    table: FlowTable, context: Context, batch: FlowBatch, dump: Dump, good: NDArray[np.bool_], now: float
) -> NDArray[np.int64]:
    """Track the flows of the good rows, with their rules installed. Returns their slots."""
    rows = dump.rows[good]
    _, slots, generations = split_cookies(rows["rule"]["cookie"])
    table.adopt(batch, slots, generations, FlowState.INSTALLED, now)
    table.mark[slots], table.backend[slots] = rows["rule"]["mark"], dump.backend[good]
    table.packets[slots], table.bytes[slots] = rows["packets"], rows["bytes"]
    table.drops[slots] = rows["rule"]["action"] == Action.DROP
    table.order[slots[are_ordered(rows["rule"]["cookie"])]] = Order.STANDS
    return slots
