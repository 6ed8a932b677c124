# SPDX-License-Identifier: Apache-2.0
"""The engine's own figures as metric families."""

from __future__ import annotations

import platform
import resource
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..api.health import Health
from ..api.marks import MarkState
from ..api.metrics import MetricFamily, counter, gauge, histogram
from ..api.reasons import reason_word
from ..devices.latency import Operation
from ..hooks.manager import PluginHost
from ..version import __version__
from .flow_table import FlowState
from .state import Floor

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
    yield from _flows(floor)
    yield from _marks(floor)
    for key, text in _COUNTS.items():
        family = counter(f"nfcore_{key}_total", text, "flows")
        family.add(floor.ledger.counts[key])
        yield family
    ledger = floor.ledger
    yield _by_reason("nfcore_not_offloaded_total", "Reports that led to no rule, by reason.", ledger.not_offloaded)
    yield _by_reason("nfcore_deferred_total", "Flows that had to wait, by what they waited for.", ledger.deferred)
    yield _by_reason("nfcore_ended_total", "Rules that were removed, by reason.", ledger.ended)
    yield from _rules(floor)
    yield from _per_port(floor)
    yield from _per_worker(floor)


def _flows(floor: Floor) -> Iterator[MetricFamily]:
    flows = gauge("nfcore_flows", "Tracked flows by state of their rule.", "flows", "state")
    for state in _STATES:
        flows.add(floor.table.count(state), state=state.name.lower())
    yield flows
    table = gauge("nfcore_flow_table_bytes", "Memory of the flow table.", "bytes")
    table.add(floor.table.nbytes)
    yield table
    switch = gauge("nfcore_offload_enabled", "1 while flows get rules, 0 after `nfcore offload off`.", "")
    switch.add(int(floor.switched_on))
    yield switch


def _marks(floor: Floor) -> Iterator[MetricFamily]:
    marks = gauge("nfcore_marks", "Marks by state.", "marks", "state")
    for state in MarkState:
        marks.add(floor.context.marks.count(state), state=state.name.lower())
    yield marks
    in_use = gauge("nfcore_marks_in_use", "Marks that mean something now.", "marks", "strategy")
    strategy = floor.context.strategy
    in_use.add(floor.context.marks.count(MarkState.LIVE), strategy=strategy.name if strategy else "none")
    yield in_use
    pools = gauge("nfcore_mark_pool_marks", "Marks in a CPU's pool, for XDP to take (flow-id).", "marks", "nf", "cpu")
    for nf in floor.context.nfs:
        if nf.pools is not None:
            for cpu in nf.pools.cpus:
                pools.add(nf.pools.stock(cpu), nf=nf.name, cpu=str(cpu))
    yield pools


def _rules(floor: Floor) -> Iterator[MetricFamily]:
    """What the backends hold and have counted."""
    of = ("interface", "backend")
    rules = gauge("nfcore_rules", "Rules that a backend holds, by state.", "rules", *of, "state")
    packets = counter(
        "nfcore_rule_packets_total", "Packets that rules have counted, also those that are gone.", "packets", *of
    )
    volume = counter("nfcore_rule_bytes_total", "Bytes that rules have counted, as the NIC counts them.", "bytes", *of)
    sizes = gauge("nfcore_rules_capacity", "Rules that fit into a backend's table, where it says so.", "rules", *of)
    held = {state: floor.table.slots_in(state) for state in (FlowState.INSTALLED, FlowState.DRAINING)}
    for ifindex, port in floor.ports.items():
        for number, name in enumerate(port.backends.device.backends):
            about = {"interface": port.name, "backend": name}
            for state, slots in held.items():
                mine = (floor.table.flow["ifindex"][slots] == ifindex) & (floor.table.backend[slots] == number)
                rules.add(int(np.count_nonzero(mine)), state=state.name.lower(), **about)
            packets.add(int(port.meter.total[number, 0]), **about)
            volume.add(int(port.meter.total[number, 1]), **about)
            if name in port.table_sizes:
                sizes.add(port.table_sizes[name], **about)
    limit = gauge("nfcore_rules_limit", "`[offload] max_rules`.", "rules")
    limit.add(floor.offload.max_rules)
    yield from (rules, packets, volume, sizes, limit)


def _per_port(floor: Floor) -> Iterator[MetricFamily]:
    full = gauge("nfcore_nic_full", "1 while the NIC has no room for another rule.", "", "interface")
    refill = gauge("nfcore_refill_seconds", "How long it took to put back what vanished last.", "seconds", "interface")
    age = gauge("nfcore_counters_age_seconds", "Age of the NIC's counters, of the oldest.", "seconds", "interface")
    for port in floor.ports.values():
        full.add(int(port.full), interface=port.name)
        refill.add(port.refill_seconds, interface=port.name)
        if port.accelerated:
            age.add(port.counters_age(floor.clock()), interface=port.name)
    yield from (full, refill, age)


def _per_worker(floor: Floor) -> Iterator[MetricFamily]:
    queued = gauge("nfcore_worker_queue_jobs", "Jobs that wait for a device's worker.", "jobs", "interface")
    turned_away = counter(
        "nfcore_worker_queue_full_total",
        "Jobs for which the queue had no room.",
        "jobs",
        "interface",
    )
    of = ("interface", "operation")
    batches = histogram("nfcore_offload_batch_seconds", "How long a NIC took for a batch of rules.", "seconds", *of)
    rules = histogram(
        "nfcore_offload_rule_seconds", "How long a NIC took for a rule, on average of its batch.", "seconds", *of
    )
    for port in floor.ports.values():
        queued.add(port.worker.queued, interface=port.name)
        turned_away.add(port.worker.turned_away, interface=port.name)
        for operation in Operation:
            batches.add(port.backends.timings.batches[operation].read(), interface=port.name, operation=operation)
            rules.add(port.backends.timings.rules[operation].read(), interface=port.name, operation=operation)
    yield from (queued, turned_away, batches, rules)


def _by_reason(name: str, text: str, counts: Counter[int]) -> MetricFamily:
    family = counter(name, text, "flows", "reason")
    for reason, number in sorted(counts.items()):
        family.add(number, reason=reason_word(reason))
    return family


def of_process(health: Health) -> Iterator[MetricFamily]:
    """Give the process's own figures."""
    start = gauge("nfcore_start_time_seconds", "When the daemon started, since 1970.", "seconds")
    start.add(health.started)
    build = gauge("nfcore_build_info", "1; its labels tell the version.", "", "version", "python")
    build.add(1, version=__version__, python=platform.python_version())
    spent = counter("nfcore_process_cpu_seconds_total", "CPU time of the daemon, all threads.", "seconds")
    spent.add(time.process_time())
    memory = gauge("nfcore_process_resident_memory_bytes", "Memory of the daemon.", "bytes")
    memory.add(_resident_bytes())
    longest = gauge("nfcore_loop_longest_turn_seconds", "Longest turn of the event loop lately.", "seconds")
    longest.add(health.longest_turn)
    attached = gauge("nfcore_program_attached", "1 while nfcore's program is on the interface.", "", "interface")
    for interface, there in health.programs().items():
        attached.add(int(there), interface=interface)
    yield from (start, build, spent, memory, longest, attached)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def of_hooks(host: PluginHost) -> Iterator[MetricFamily]:
    """Give what plugins did wrong, and what their hooks cost."""
    of = ("plugin", "hook")
    errors = counter("nfcore_hook_errors_total", "Faults of plugins in hooks.", "calls", *of, "kind")
    for (plugin, hook, fault), number in sorted(host.faults.items()):
        errors.add(number, plugin=plugin, hook=hook, kind=str(fault))
    calls = counter("nfcore_hook_calls_total", "Calls of plugins' hooks.", "calls", *of)
    seconds = counter("nfcore_hook_seconds_total", "Time spent in plugins' hooks.", "seconds", *of)
    for (plugin, hook), spent in sorted(host.times.items()):
        calls.add(spent.calls, plugin=plugin, hook=hook)
        seconds.add(spent.seconds, plugin=plugin, hook=hook)
    yield from (errors, calls, seconds)
