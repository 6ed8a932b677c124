# SPDX-License-Identifier: Apache-2.0
"""The engine: takes flows from the report to the installed rule, and back to the slow path.

    read_events ─► on_new_flow ─► allocate_mark ─► publish_marks ─► waiting ─► worker: install_offload
       intake                                                      dispatch          │ idle, replaced, ended
    free ◄─ quarantine ◄─ retire_marks ◄─ grace ◄─ worker: remove_offload ◄─ restore_flows
       removal                                                                       reconcile

Everything here runs on one thread. Only the workers wait for a NIC.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..api.config import Config
from ..api.context import Context, FlowFacts
from ..api.flows import FlowBatch, ReportKind
from ..api.metrics import MetricFamily
from ..api.network_function import NetworkFunction
from ..api.reasons import Reason
from ..api.rules import Capabilities, RuleBatch
from ..api.steps import Steps, run_steps
from ..devices.backends import BackendChain, Removal
from ..devices.device_state import DeviceState
from ..devices.token_bucket import TokenBucket
from ..devices.worker import Worker
from ..errors import ConfigError, Problem
from ..hooks.manager import PluginManager
from ..logs import AUDIT
from .admission import NAME as ADMISSION
from .admission import Admission
from .claims import Claims
from .counters import EngineCounters
from .dispatch import Dispatch
from .event_kind import EventKind
from .event_log import EventLog
from .flow_state import FlowState, Order
from .flow_table import FlowTable
from .forgetting import Forgetting
from .intake import Intake
from .mark_lifecycle import MarkLifecycle
from .metrics import engine_metrics
from .orders import Orders
from .reconcile import Reconciler
from .removal import Ended, Remover
from .state import ACTIVE, EngineState
from .warm_restart import FINGERPRINT, Leftovers, note_meaning, renew_meaning, same_meaning, take_over

log = logging.getLogger(__name__)
audit = logging.getLogger(AUDIT)

READ_LIMIT = 16_384
"""Reports taken from an NF in one call: some milliseconds of work, so that nothing else waits for long."""
UPKEEP = 0.1
"""Seconds between two rounds of upkeep of the marks while no report comes."""
SWITCH = "offload_off"
"""Key of the state file: offloading was switched off, and stays off in later runs."""
COUNTED = "counted"
"""Key of the state file: what rules have counted. The run after one that was killed continues from there."""
SAVE_INTERVAL = 0.2
"""Seconds between two writes of `COUNTED`, at least. A kill loses what rules had counted that ended after the last
write. With thousands of VIPs and reals in the same file, a write takes a millisecond."""


class Engine:
    """Moves flows through the hooks. workers: one per device, by ifindex."""

    def __init__(
        self,
        context: Context,
        plugins: PluginManager,
        workers: Mapping[int, Worker],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.context = context
        self.plugins = plugins
        offload = context.config.offload
        devices = {
            device.ifindex: DeviceState(
                BackendChain(device, plugins),
                workers[device.ifindex],
                TokenBucket(offload.inserts_per_second, offload.insert_burst, clock),
                next_poll=clock(),
                polled_at=clock(),
            )
            for device in context.devices
        }
        events = EventLog(context.config.nf.events_kept)
        self.state = EngineState(
            context, plugins, clock, FlowTable(0), EngineCounters(), MarkLifecycle(context, plugins), events, devices
        )
        self._size_table()
        self._remover = Remover(self.state)
        self._intake = Intake(self.state, self._remover)
        self._orders = Orders(self.state, self._remover, self._intake)
        self._claims = Claims(self.state, self._remover)
        self._dispatch = Dispatch(self.state, self._remover)
        self._reconciler = Reconciler(self.state, self._remover)
        self._next_upkeep = self._next_save = clock()
        self._saved_counts = "{}"
        self._fingerprints: dict[int, bytes] = {}
        """Of the functions that take orders: the last one of each."""
        self._last_removals: list[tuple[DeviceState, NDArray[np.int64], dict[int, Removal]]] = []
        """Rules that the end of the run removes, by slot, and what became of them, by backend."""
        if ADMISSION not in plugins.loaded():
            plugins.register(Admission(context, self._groups_held), ADMISSION)
        services = context.services
        services.flow_facts, services.read_counters = self._facts, self._read_counters
        services.claims_settled = self._claims.settled
        services.take_reports, services.forget_flows = self._take_reports, Forgetting(self.state, self._remover).forget

    @property
    def table(self) -> FlowTable:
        """All known flows."""
        return self.state.table

    @property
    def counters(self) -> EngineCounters:
        """Counts of what the engine has done."""
        return self.state.counters

    @property
    def hindered(self) -> bool:
        """Whether a NIC takes no rules for a reason that may pass."""
        return any(device.hindered for device in self.state.devices.values())

    def _size_table(self) -> None:
        offload = self.context.config.offload
        orders = sum(nf.orders for nf in self.context.nfs)
        self.state.table.capacity = offload.max_rules + offload.waiting + offload.remembered + orders

    def _groups_held(self, nf_number: int) -> NDArray[np.uint32]:
        """Group of each flow of a network function that has a rule or waits for one."""
        slots = self.table.slots_in(*ACTIVE)
        slots = slots[self.table.flow["nf"][slots] == nf_number]
        return self.context.nfs[nf_number - 1].groups(self.table.flow["target"][slots])

    # Start

    def start(self) -> None:
        """Give every known target its mark, take over or remove the rules of an earlier run, fill the pools.

        Waits for the NICs: for the time before the event loop runs.
        """
        self._recall_switch()
        for device in self.state.devices.values():
            self._probe(device)
            device.begin_counting(self.state.clock())
        trusted = same_meaning(self.context) and self.context.strategy is not None and self.state.switched_on
        if trusted:
            run_steps(self._publish_targets())
        else:
            # If this run is killed from here on, the next one must not trust any of the rules that are left.
            self.context.state_file.remove(FINGERPRINT)
        removed = [self._take_over(device, trusted=trusted) for device in self.state.devices.values()]
        self._resume_counts()
        if not trusted:
            if any(removed):
                # An earlier run's program may still forward by its marks. Their meaning must not change before the
                # last packets with these marks have arrived.
                time.sleep(self.state.offload.grace)
            run_steps(self._publish_targets())
        if None in removed:
            self.context.state_file.remove(FINGERPRINT)
        else:
            note_meaning(self.context)
        self._keep_only_active()
        if self.context.strategy is not None:
            self.state.marks.lease()
        self._fingerprints = {nf.number: nf.fingerprint() for nf in self.context.nfs if nf.orders}

    def _recall_switch(self) -> None:
        """Keep offloading off when it was switched off in an earlier run."""
        self.state.switched_on = self.context.state_file.get_number(SWITCH) is None
        if not self.state.switched_on:
            message = "offloading is switched off since an earlier run"
            log.warning("%s; to switch it on: nfcore offload on", message)
            self.state.events.note(EventKind.SWITCH, message)

    def _probe(self, device: DeviceState) -> None:
        """Log what the NIC can do; leave out backends that are of no use. ConfigError: the marks are too wide."""
        found: dict[str, Capabilities] = device.worker.call(partial(device.backends.probe, self._width))
        device.probed(found, self.state.clock())
        for backend, capabilities in found.items():
            if capabilities.mark_width:
                log.info("%s: %s: %s", device.name, backend, capabilities.describe())
            if too_narrow := device.backends.too_narrow.get(backend):
                message = f"is {self._width}; {backend} on {device.name} transports {too_narrow} bits: "
                message += f"set it to {too_narrow} or less"
                raise ConfigError(self.context.config.source, [Problem("marking.width", message)])
        self._leave_out_useless(device, found)

    @property
    def _width(self) -> int:
        return self.context.config.marking.width

    def _leave_out_useless(self, device: DeviceState, found: Mapping[str, Capabilities]) -> None:
        """Leave out backends that cannot set marks. One that can drop is of use where flows are ordered."""
        unmarking = [backend for backend, capabilities in found.items() if not capabilities.mark_width]
        ordering = any(nf.orders for nf in self.context.nfs)
        waiting = [backend for backend in unmarking if found[backend].temporary]
        useless = [each for each in unmarking if each not in waiting and not (ordering and found[each].drop)]
        for backend in unmarking:
            capabilities = found[backend]
            why = f" ({'; '.join(capabilities.notes)})" if capabilities.notes else ""
            if backend in waiting:
                message = f"cannot set marks here for now: it is asked again{why}"
            elif backend in useless:
                # That it cannot do the rest, either, is no news.
                message = f"cannot set marks here: going on without{why}; restart nfcore once it can"
            else:
                message = f"cannot set marks here: it gets only rules that drop ({capabilities.describe()})"
            log.warning("%s: %s %s", device.name, backend, message)
            self.state.events.note(EventKind.BACKEND, f"{backend} {message}", device.name)
        if useless:
            device.backends.leave_out(useless)

    def _publish_targets(self) -> Steps[None]:
        for nf in self.context.nfs if self.state.marks.of_targets else ():
            yield from self.state.marks.publish_targets(nf)

    def _take_over(self, device: DeviceState, *, trusted: bool) -> int | None:
        """Take over or remove the rules that a NIC holds. Returns how many were removed, None when some are left."""
        try:
            leftovers: Leftovers = device.worker.call(
                lambda: take_over(device.backends, self.context, self.table, trusted=trusted, now=self.state.clock())
            )
        except Exception as error:  # noqa: BLE001 - an NF's or a backend's fault must not keep the daemon from starting
            log.warning("%s: rules of an earlier run cannot be taken over: %s", device.name, error)
            return None
        device.rule_counters = leftovers.rule_counters
        self._record_leftovers(device, leftovers)
        return leftovers.removed if leftovers.cleared else None

    def _keep_only_active(self) -> None:
        """Let the network functions forget what they keep for flows that have no rule and wait for none."""
        flows = self.table.batch(self.table.slots_in(*ACTIVE))
        for nf in self.context.nfs:
            nf.keep_only(flows[flows.rows["nf"] == nf.number])

    def _record_leftovers(self, device: DeviceState, leftovers: Leftovers) -> None:
        """Count, log and record as events what became of an earlier run's rules."""
        table, adopted, removed = self.table, leftovers.adopted, leftovers.removed
        if not len(adopted) and not removed:
            return
        self.counters.totals["adopted"] += len(adopted)
        self.counters.totals["stale_removed"] += removed
        log.info("%s: rules of an earlier run: %d taken over, %d removed", device.name, len(adopted), removed)
        self.state.events.record(
            EventKind.ADOPTED,
            self.state.flow_bytes(adopted),
            mark=table.mark[adopted],
            backend=table.backend[adopted],
            packets=table.packets[adopted],
            bytes_=table.bytes[adopted],
        )
        if removed:
            message = f"{removed:,} rules of an earlier run, whose marks mean nothing any more, were removed"
            self.state.events.note(EventKind.NIC, message, device.name)

    def _resume_counts(self) -> None:
        """Continue the counts of a run that was killed."""
        try:
            saved = json.loads(self.context.state_file.get_text(COUNTED) or "{}")
        except (ValueError, RecursionError):
            saved = {}
        for device in self.state.devices.values():
            counts = saved.get(device.name) if isinstance(saved, dict) else None
            if isinstance(counts, dict):
                device.rule_counters.resume(device.backends.names, counts)

    def _save_counts(self) -> None:
        """Write what the rules have counted to the state file, for a later run that takes them over."""
        notes = {
            device.name: device.rule_counters.note(device.backends.names) for device in self.state.devices.values()
        }
        counts = json.dumps({name: note for name, note in notes.items() if note})
        if counts != self._saved_counts:
            self._saved_counts = counts
            self.context.state_file.set(COUNTED, counts)

    # The daemon's loop

    def poll(self) -> int:
        """Take reports from every network function and dispatch waiting flows. Returns how many reports there were."""
        taken = 0
        for nf in self.context.nfs:
            batch = nf.read_events(READ_LIMIT)
            if len(batch):
                self.state.name_devices(batch)
                taken += len(batch)
                self.counters.totals["events"] += len(batch)
                self._take(nf, batch)
        self._claims.run()
        if taken:
            self.state.marks.lease()
        self._dispatch.run()
        self._intake.shed()
        return taken

    def _take(self, nf: NetworkFunction, batch: FlowBatch) -> None:
        """Take reports of flows and orders, which only some functions give."""
        if nf.orders:
            ordered = batch.rows["kind"] > ReportKind.MOVED
            self._orders.take(nf, batch[ordered])
            batch = batch[~ordered]
            self._renew_meaning(nf)
        if len(batch):
            self._intake.take(nf, batch)

    def _renew_meaning(self, nf: NetworkFunction) -> None:
        """Tell the next run when an order has brought or ended targets: its marks may mean something else."""
        fingerprint = nf.fingerprint()
        if self._fingerprints.setdefault(nf.number, fingerprint) != fingerprint:
            self._fingerprints[nf.number] = fingerprint
            renew_meaning(self.context)

    def tick(self, changed: Collection[int] = ()) -> None:
        """Do what is due by the clock. changed: ifindexes of devices that may have been reset: their links changed."""
        now = self.state.clock()
        self._examine(changed, now)
        self._remover.run()
        self._reconciler.run()
        self._intake.expire()
        self._orders.run()
        if self.context.strategy is not None and now >= self._next_upkeep:
            self._next_upkeep = now + UPKEEP
            self.state.marks.retire_again()
            self.state.marks.lease()
        if now >= self._next_save:
            self._next_save = now + SAVE_INTERVAL
            self._save_counts()

    def _examine(self, changed: Collection[int], now: float) -> None:
        """Read the counters of devices whose links have changed, and probe those that are still to be probed."""
        for ifindex in changed:
            if (device := self.state.devices.get(ifindex)) is not None:
                device.poll_soon(now)
                device.to_probe = device.accelerated
        for device in self.state.devices.values():
            if (device.to_probe or now >= device.probe_at) and not device.probing:
                self._probe_again(device)
            if now >= device.failed_retry:
                device.failed_retry = math.inf
                self._have_reported_again(Reason.FAILED, device=device)

    def _probe_again(self, device: DeviceState) -> None:
        """Probe the backends of a NIC that has changed, or whose refusal may have passed; never waits."""

        def done(found: dict[str, Capabilities] | Exception) -> None:
            device.probing = False
            device.renew()
            self._orders.retry_soon()
            if isinstance(found, Exception):
                device.unsupported_again(self.state.clock())
                log.warning("%s: cannot be probed again: %s", device.name, found)
                self.state.events.note(EventKind.BACKEND, f"cannot be probed again: {found}", device.name)
                return
            if not device.probed(found, self.state.clock()):
                return
            self._have_reported_again(Reason.UNSUPPORTED, Reason.FAILED, device=device)
            for backend, capabilities in found.items():
                log.info("%s: %s: %s", device.name, backend, capabilities.describe())
                self.state.events.note(EventKind.BACKEND, f"{backend}: {capabilities.describe()}", device.name)
                if too_narrow := device.backends.too_narrow.get(backend):
                    message = f"{backend} gets no rules that mark: it transports {too_narrow} bits, and marking.width "
                    message += f"is {self._width}: set it to {too_narrow} or less and restart nfcore"
                    log.warning("%s: %s", device.name, message)
                    self.state.events.note(EventKind.BACKEND, message, device.name)

        # Set first: `done` may be called before `submit` returns.
        device.probing, device.probe_at = True, math.inf
        if device.worker.submit(partial(device.backends.probe, self._width), done):
            device.to_probe = False
        else:
            device.probing, device.to_probe = False, True

    # Questions of network functions

    def _facts(self, batch: FlowBatch) -> FlowFacts:
        """Give what is known of the rules of tracked flows."""
        table = self.table
        if not len(self.table.state):
            return FlowFacts.none(len(batch))
        slots = self.table.find(batch)
        known = slots >= 0
        at = np.where(known, slots, 0)
        held = known & (table.state[at] == FlowState.INSTALLED)
        counts = table.counts(at)
        counts[~known] = 0
        counted = held & (table.packets[at] > 0)
        idle = np.where(counted, self.state.clock() - table.seen[at], np.inf)
        return FlowFacts(known, held, np.where(known, table.reason[at], 0).astype(np.uint8), counts, idle)

    def _read_counters(self) -> Callable[[], bool]:
        """Have the counters of all devices read now. The result tells whether that has happened."""
        now = self.state.clock()
        devices = [device for device in self.state.devices.values() if device.accelerated]
        for device in devices:
            device.next_poll = now
        return lambda: all(device.polled_at >= now for device in devices)

    def _take_reports(self) -> bool:
        """Take the reports that are there, as many as in a turn of the loop. Returns whether those were all."""
        return self.poll() < READ_LIMIT

    # Commands of operators

    def switch(self, *, on: bool) -> int:
        """Switch offloading on or off, also for later runs. Returns how many rules are being removed."""
        self.state.switched_on = on
        if on:
            self._switch_on()
            return 0
        rules = self.table.count(FlowState.PENDING, FlowState.INSTALLED)
        message = f"offloading is switched off: {rules:,} flows go back to the slow path"
        self.state.events.note(EventKind.SWITCH, message)
        self._remover.end_rules(self.table.slots_in(*ACTIVE), Reason.SWITCHED_OFF)
        self.context.state_file.set(SWITCH, 1)
        audit.warning("%s", message)
        return rules

    def _switch_on(self) -> None:
        self.context.state_file.remove(SWITCH)
        self.state.events.note(EventKind.SWITCH, "offloading is switched on")
        # A warning, as when it is switched off: who reads only warnings must not believe that it is still off.
        audit.warning("offloading is switched on: flows get rules as they are reported")
        self._orders.retry_soon()
        self._have_reported_again(Reason.SWITCHED_OFF)

    def _have_reported_again(self, *reasons: Reason, device: DeviceState | None = None) -> None:
        """Let XDP report refused flows again soon, whose reasons may have passed. device: those of one only.

        The intervals between the reports of a flow become long.
        """
        refused = self.table.slots_in(FlowState.REFUSED)
        refused = refused[np.isin(self.table.reason[refused], reasons) & (self.table.order[refused] == Order.NONE)]
        if device is not None:
            refused = refused[self.table.flow["ifindex"][refused] == device.ifindex]
        self._remover.restore(self.table.batch(refused))

    def apply(self, config: Config, gone: Mapping[str, NDArray[np.uint64]]) -> Ended:
        """Continue with another configuration. gone: by NF, targets that it no longer has. Returns the ended flows."""
        return run_steps(self.apply_in_steps(config, gone))

    def apply_in_steps(self, config: Config, gone: Mapping[str, NDArray[np.uint64]]) -> Steps[Ended]:
        """Do :meth:`apply` in steps: a reload may have given many targets."""
        self.context.config = config
        self._size_table()
        offload = config.offload
        for device in self.state.devices.values():
            device.budget.limit(offload.inserts_per_second, offload.insert_burst)
        accelerated = waiting = 0
        for nf in self.context.nfs:
            targets = gone.get(nf.name)
            if targets is not None and len(targets):
                ended = self._remover.end_targets(nf, targets)
                accelerated += ended.accelerated
                waiting += ended.waiting
        yield from self._publish_targets()
        renew_meaning(self.context)
        self._keep_only_active()
        return Ended(accelerated, waiting)

    def remove_all(self) -> None:
        """Queue the removal of every rule, the last job of the workers, and let the next run know of none."""
        self.context.state_file.remove(FINGERPRINT)
        self.context.state_file.remove(COUNTED)
        slots = self.table.slots_in(FlowState.INSTALLED, FlowState.PENDING)
        for device, slots_here in self.state.by_device(slots):
            rules = self.state.rules(slots_here)
            removals: dict[int, Removal] = {}
            self._last_removals.append((device, slots_here, removals))
            # From every backend: which one takes the rule of a PENDING flow is not known.
            for number in range(len(device.backends.names)):
                job = partial(_remove_last, device, rules, number, removals)
                if not device.worker.submit(job, lambda result: None):
                    log.error("%s is too far behind: rules are left, see nfcore cleanup", device.name)

    def keep_last_counts(self) -> None:
        """Keep what the rules have counted that :meth:`remove_all` has removed; to be called after the workers' end."""
        for device, slots, removals in self._last_removals:
            pending = self.table.state[slots] == FlowState.PENDING
            counted, gone = self.table.counts(slots), np.zeros(len(slots), dtype=bool)
            for number, removal in removals.items():
                gone |= removal.gone & (pending | (self.table.backend[slots] == number))
                counted = np.maximum(counted, removal.counted)
            self.state.count(device, slots[gone], counted[gone])
            self.state.end_counters(device, slots[gone])
        self._last_removals.clear()

    def collect(self) -> list[MetricFamily]:
        """Give the engine's own metrics."""
        return list(engine_metrics(self.state))


def _remove_last(device: DeviceState, rules: RuleBatch, number: int, removals: dict[int, Removal]) -> None:
    """Remove rules from a backend when nothing else is done any more, note the result, and log how many are left."""
    removals[number] = removal = device.backends.remove(rules, np.full(len(rules), number, dtype=np.uint8))
    left = int(np.count_nonzero(~removal.gone)) if number < len(device.backends.names) else 0
    if left:
        log.error("%s: %d rules could not be removed: see nfcore cleanup", device.name, left)
