# SPDX-License-Identifier: Apache-2.0
"""The engine's own figures as metric families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from .floor import Floor
from .flowtable import FlowState
from .marks import MarkState
from .metrics import MetricFamily, MetricKind
from .reasons import reason_word

_COUNTS = {
    "events": "Reports of flows taken from the datapath.",
    "events_known": "Reports of flows that had a rule, waited for one, or came twice at once.",
    "installed": "Rules installed.",
    "adopted": "Rules of an earlier run that were taken over.",
    "stale_removed": "Rules of an earlier run that were removed.",
    "vanished": "Rules that somebody else had removed, or a NIC had lost.",
    "orphans_removed": "Rules of ours on a NIC that belonged to no flow.",
    "remove_failed": "Rules that a backend could not remove.",
}
_STATES = (FlowState.WAITING, FlowState.PENDING, FlowState.INSTALLED, FlowState.DRAINING, FlowState.REFUSED)


def families(floor: Floor) -> Iterator[MetricFamily]:
    """Give all of them."""
    flows = MetricFamily("nfcore_flows", MetricKind.GAUGE, "Tracked flows by state of their rule.", "flows")
    for state in _STATES:
        flows.add(floor.table.count(state), state=state.name.lower())
    yield flows
    table = MetricFamily("nfcore_flow_table_bytes", MetricKind.GAUGE, "Memory of the flow table.", "bytes")
    table.add(floor.table.nbytes)
    yield table
    yield from _marks(floor)
    for key, text in _COUNTS.items():
        family = MetricFamily(f"nfcore_{key}_total", MetricKind.COUNTER, text, "flows")
        family.add(floor.ledger.counts[key])
        yield family
    ledger = floor.ledger
    yield _by_reason("nfcore_not_offloaded_total", "Reports that led to no rule, by reason.", ledger.not_offloaded)
    yield _by_reason("nfcore_deferred_total", "Flows that had to wait, by what they waited for.", ledger.deferred)
    yield _by_reason("nfcore_ended_total", "Rules that were removed, by reason.", ledger.ended)
    yield from _per_port(floor)
    yield from _hooks(floor)


def _marks(floor: Floor) -> Iterator[MetricFamily]:
    marks = MetricFamily("nfcore_marks", MetricKind.GAUGE, "Marks by state.", "marks")
    for state in MarkState:
        marks.add(floor.context.marks.count(state), state=state.name.lower())
    yield marks
    in_use = MetricFamily("nfcore_marks_in_use", MetricKind.GAUGE, "Marks that mean something now.", "marks")
    strategy = floor.context.strategy
    in_use.add(floor.context.marks.count(MarkState.LIVE), strategy=strategy.name if strategy else "none")
    yield in_use


def _hooks(floor: Floor) -> Iterator[MetricFamily]:
    errors = MetricFamily("nfcore_hook_errors_total", MetricKind.COUNTER, "Faults of plugins in hooks.", "calls")
    for (plugin, hook, fault), number in sorted(floor.host.faults.items()):
        errors.add(number, plugin=plugin, hook=hook, kind=str(fault))
    yield errors
    calls = MetricFamily("nfcore_hook_calls_total", MetricKind.COUNTER, "Calls of plugins' hooks.", "calls")
    seconds = MetricFamily("nfcore_hook_seconds_total", MetricKind.COUNTER, "Time spent in plugins' hooks.", "seconds")
    for (plugin, hook), spent in sorted(floor.host.times.items()):
        calls.add(spent.calls, plugin=plugin, hook=hook)
        seconds.add(spent.seconds, plugin=plugin, hook=hook)
    yield calls
    yield seconds


def _per_port(floor: Floor) -> Iterator[MetricFamily]:
    rules = MetricFamily("nfcore_rules", MetricKind.GAUGE, "Installed rules.", "rules")
    full = MetricFamily("nfcore_nic_full", MetricKind.GAUGE, "1 while the NIC has no room for another rule.", "")
    refill = MetricFamily(
        "nfcore_refill_seconds", MetricKind.GAUGE, "How long it took to put back what had vanished last.", "seconds"
    )
    installed = floor.table.slots_in(FlowState.INSTALLED)
    of, backend = floor.table.flow["ifindex"][installed], floor.table.backend[installed]
    for ifindex, port in floor.ports.items():
        for number, name in enumerate(port.backends.device.backends):
            held = int(np.count_nonzero((of == ifindex) & (backend == number)))
            rules.add(held, interface=port.name, backend=name)
        full.add(int(port.full), interface=port.name)
        refill.add(port.refill_seconds, interface=port.name)
    yield rules
    yield full
    yield refill


def _by_reason(name: str, text: str, counter: Counter[int]) -> MetricFamily:
    family = MetricFamily(name, MetricKind.COUNTER, text, "flows")
    for reason, number in sorted(counter.items()):
        family.add(number, reason=reason_word(reason))
    return family
