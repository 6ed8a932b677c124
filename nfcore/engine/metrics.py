# SPDX-License-Identifier: Apache-2.0
"""The engine's own metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from ..api.marks import MarkState
from ..api.metrics import MetricFamily, counter, gauge, histogram
from ..api.reasons import reason_word
from ..devices.latency import Operation
from .flow_state import LISTED_STATES, FlowState
from .state import EngineState

_COUNTS = {
    "events": "Reports of flows taken from the datapath.",
    "events_known": "Reports of flows that had a rule, waited for one, or came twice at once.",
    "installed": "Rules installed.",
    "adopted": "Rules of an earlier run that were taken over.",
    "stale_removed": "Rules of an earlier run that were removed.",
    "vanished": "Rules that another program had removed, or a NIC had lost.",
    "orphans_removed": "nfcore's rules on a NIC that belonged to no flow.",
    "remove_failed": "Rules that a backend could not remove.",
}


def engine_metrics(state: EngineState) -> Iterator[MetricFamily]:
    """Give the metrics of flows, marks, counts by reason, rules, devices and workers."""
    yield from _flows(state)
    yield from _marks(state)
    for key, meaning in _COUNTS.items():
        family = counter(f"nfcore_{key}_total", meaning, "flows")
        family.add(state.counters.totals[key])
        yield family
    counters = state.counters
    yield _by_reason("nfcore_not_offloaded_total", "Reports that led to no rule, by reason.", counters.not_offloaded)
    yield _by_reason("nfcore_deferred_total", "Flows that had to wait, by what they waited for.", counters.deferred)
    yield _by_reason("nfcore_ended_total", "Rules that were removed, by reason.", counters.ended)
    yield from _rules(state)
    yield from _per_device(state)
    yield from _per_worker(state)


def _flows(state: EngineState) -> Iterator[MetricFamily]:
    flows = gauge("nfcore_flows", "Tracked flows by state of their rule.", "flows", "state")
    for flow_state in LISTED_STATES:
        flows.add(state.table.count(flow_state), state=flow_state.word)
    yield flows
    table = gauge("nfcore_flow_table_bytes", "Memory of the flow table.", "bytes")
    table.add(state.table.nbytes)
    yield table
    switch = gauge("nfcore_offload_enabled", "1 while flows get rules, 0 after `nfcore offload off`.", "")
    switch.add(int(state.switched_on))
    yield switch


def _marks(state: EngineState) -> Iterator[MetricFamily]:
    marks = gauge("nfcore_marks", "Marks by state.", "marks", "state")
    for mark_state in MarkState:
        marks.add(state.context.marks.count(mark_state), state=mark_state.name.lower())
    yield marks
    in_use = gauge("nfcore_marks_in_use", "Marks that mean something now.", "marks", "strategy")
    strategy = state.context.strategy
    in_use.add(state.context.marks.count(MarkState.LIVE), strategy=strategy.name if strategy else "none")
    yield in_use
    pools = gauge("nfcore_mark_pool_marks", "Marks in a CPU's pool, for XDP to take (flow-id).", "marks", "nf", "cpu")
    for nf in state.context.nfs:
        if nf.pools is not None:
            for cpu in nf.pools.cpus:
                pools.add(nf.pools.stock(cpu), nf=nf.name, cpu=str(cpu))
    yield pools


def _rules(state: EngineState) -> Iterator[MetricFamily]:
    """Give how many rules the backends hold, and what these have counted."""
    labels = ("interface", "backend")
    rules = gauge("nfcore_rules", "Rules that a backend holds, by state.", "rules", *labels, "state")
    packets = counter(
        "nfcore_rule_packets_total", "Packets that rules have counted, also those that are gone.", "packets", *labels
    )
    size = counter(
        "nfcore_rule_bytes_total", "Bytes that rules have counted, as the NIC counts them.", "bytes", *labels
    )
    capacity = gauge(
        "nfcore_rules_capacity", "Rules that fit into a backend's table, where it says so.", "rules", *labels
    )
    held = {flow_state: state.table.slots_in(flow_state) for flow_state in (FlowState.INSTALLED, FlowState.DRAINING)}
    for ifindex, device in state.devices.items():
        for number, name in enumerate(device.backends.names):
            about = {"interface": device.name, "backend": name}
            for flow_state, slots in held.items():
                mine = (state.table.flow["ifindex"][slots] == ifindex) & (state.table.backend[slots] == number)
                rules.add(int(np.count_nonzero(mine)), state=flow_state.word, **about)
            packets.add(int(device.rule_counters.total[number, 0]), **about)
            size.add(int(device.rule_counters.total[number, 1]), **about)
            if name in device.table_sizes:
                capacity.add(device.table_sizes[name], **about)
    limit = gauge("nfcore_rules_limit", "`[offload] max_rules`.", "rules")
    limit.add(state.offload.max_rules)
    yield from (rules, packets, size, capacity, limit)


def _per_device(state: EngineState) -> Iterator[MetricFamily]:
    full = gauge("nfcore_nic_full", "1 while the NIC has no room for another rule.", "", "interface")
    refill = gauge("nfcore_refill_seconds", "How long it took to put back what vanished last.", "seconds", "interface")
    age = gauge("nfcore_counters_age_seconds", "Age of the NIC's counters, of the oldest.", "seconds", "interface")
    for device in state.devices.values():
        full.add(int(device.full), interface=device.name)
        refill.add(device.refill_seconds, interface=device.name)
        if device.accelerated:
            age.add(device.counters_age(state.clock()), interface=device.name)
    yield from (full, refill, age)


def _per_worker(state: EngineState) -> Iterator[MetricFamily]:
    queued = gauge("nfcore_worker_queue_jobs", "Jobs that wait for a device's worker.", "jobs", "interface")
    turned_away = counter(
        "nfcore_worker_queue_full_total", "Jobs for which the queue had no room.", "jobs", "interface"
    )
    labels = ("interface", "operation")
    batches = histogram("nfcore_offload_batch_seconds", "How long a NIC took for a batch of rules.", "seconds", *labels)
    rules = histogram(
        "nfcore_offload_rule_seconds", "How long a NIC took for a rule, on average of its batch.", "seconds", *labels
    )
    for device in state.devices.values():
        queued.add(device.worker.queued, interface=device.name)
        turned_away.add(device.worker.turned_away, interface=device.name)
        latency = device.backends.latency
        for operation in Operation:
            batches.add(latency.batches[operation].read(), interface=device.name, operation=operation)
            rules.add(latency.rules[operation].read(), interface=device.name, operation=operation)
    yield from (queued, turned_away, batches, rules)


def _by_reason(name: str, meaning: str, counts: Counter[int]) -> MetricFamily:
    family = counter(name, meaning, "flows", "reason")
    for reason, count in sorted(counts.items()):
        family.add(count, reason=reason_word(reason))
    return family
