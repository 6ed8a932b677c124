# SPDX-License-Identifier: Apache-2.0
"""The engine: from the report of a new flow to an installed rule, and back.

    read_events ─► on_new_flow ─► allocate_mark ─► publish_marks ─► waiting ─► worker: install_offload
       intake                                                      dispatch          │ idle, too cold, gone
    free ◄─ quarantine ◄─ retire_marks ◄─ grace ◄─ worker: remove_offload ◄─ restore_flows
       removal                                                                       reconcile

Everything here runs on one thread; only workers wait for a NIC.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from ..api.config import Config
from ..api.context import Context
from ..api.metrics import MetricFamily
from ..api.reasons import Reason
from ..api.rules import Capabilities, RuleBatch
from ..devices.backends import BackendChain
from ..devices.device_state import DeviceState
from ..devices.token_bucket import TokenBucket
from ..devices.worker import Worker
from ..errors import ConfigError, Problem
from ..hooks.manager import PluginManager
from ..logs import AUDIT
from .admission import NAME as ADMISSION
from .admission import Admission
from .counters import EngineCounters
from .dispatch import Dispatch
from .event_kind import EventKind
from .event_log import EventLog
from .flow_state import FlowState
from .flow_table import FlowTable
from .intake import Intake
from .mark_lifecycle import MarkLifecycle
from .metrics import engine_metrics
from .reconcile import Reconciler
from .removal import Ended, Remover
from .state import ACTIVE, EngineState
from .warm_restart import FINGERPRINT, Leftovers, note_meaning, renew_meaning, same_meaning, take_over

log = logging.getLogger(__name__)
audit = logging.getLogger(AUDIT)

READ_LIMIT = 16_384
"""Reports taken from an NF at a time: some milliseconds of work, so that nothing else waits for long."""
UPKEEP = 0.1
"""Seconds between two looks after the marks while no report comes."""
SWITCH = "offload_off"
"""Name of the note that outlives the daemon: somebody has switched offloading off."""
COUNTED = "counted"
"""Name of the note of what rules have counted: the run after one that was killed goes on from there."""
NOTE_INTERVAL = 0.2
"""Seconds between two such notes, at least, and two looks at what the log owes. A kill loses what rules that ended
since the last note had counted; with thousands of VIPs and reals to note beside it, one takes a millisecond."""


class Engine:
    """Moves flows through the hooks. `workers` has one worker per device, by ifindex."""

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
                polled=clock(),
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
        self._dispatch = Dispatch(self.state, self._remover)
        self._reconciler = Reconciler(self.state, self._remover)
        self._next_upkeep = self._next_note = clock()
        self._noted = ""
        if ADMISSION not in plugins.loaded():
            plugins.register(Admission(context, self._groups_held), ADMISSION)

    @property
    def table(self) -> FlowTable:
        """Every flow that is known."""
        return self.state.table

    @property
    def counters(self) -> EngineCounters:
        """What was done, counted."""
        return self.state.counters

    def _size_table(self) -> None:
        offload = self.context.config.offload
        self.state.table.capacity = offload.max_rules + offload.waiting + offload.remembered

    def _groups_held(self, nf_number: int) -> NDArray[np.uint32]:
        """Groups of the flows of a network function that have a rule or wait for one."""
        slots = self.table.slots_in(*ACTIVE)
        slots = slots[self.table.flow["nf"][slots] == nf_number]
        return self.context.nfs[nf_number - 1].groups(self.table.flow["target"][slots])

    # Start

    def start(self) -> None:
        """Give every known target its mark, take over or remove the rules of an earlier run, fill the pools.

        The one time that the caller waits for a NIC.
        """
        self.state.switched_on = self.context.state_file.recall(SWITCH) is None
        if not self.state.switched_on:
            log.warning("offloading is switched off, by an earlier run's order: nfcore offload on")
            self.state.events.note(EventKind.SWITCH, "offloading is switched off, by an earlier run's order")
        for device in self.state.devices.values():
            self._probe(device)
            device.begin_counting(self.state.clock())
        trusted = same_meaning(self.context) and self.context.strategy is not None and self.state.switched_on
        if trusted:
            self._publish_targets()
        else:
            # A run that is killed from here on leaves rules of which the next one must trust none.
            self.context.state_file.forget(FINGERPRINT)
        removed = [self._take_over(device, trusted=trusted) for device in self.state.devices.values()]
        self._resume_counts()
        if not trusted:
            if any(removed):
                # An earlier run's program may go on forwarding by its marks: what they meant stands until they are
                # no longer on their way.
                time.sleep(self.state.offload.grace)
            self._publish_targets()
        if None in removed:
            self.context.state_file.forget(FINGERPRINT)
        else:
            note_meaning(self.context)
        if self.context.strategy is not None:
            self.state.marks.lease()

    def _probe(self, device: DeviceState) -> None:
        """Say once what the NIC can do; go on without what cannot set marks. ConfigError: the marks are too wide."""
        able: dict[str, Capabilities] = device.worker.call(device.backends.probe)
        width = self.context.config.marking.width
        for backend, each in able.items():
            log.info("%s: %s: %s", device.name, backend, each.describe())
            if 0 < each.mark_width < width:
                message = f"is {width}; {backend} on {device.name} transports {each.mark_width} bits: "
                message += f"set it to {each.mark_width} or less"
                raise ConfigError(self.context.config.source, [Problem("marking.width", message)])
        useless = [backend for backend, each in able.items() if each.mark_width == 0]
        if useless:
            device.backends.leave_out(useless)
            log.warning("%s: %s cannot set marks here: going on without", device.name, ", ".join(useless))
            words = f"{', '.join(useless)} left out: cannot set marks here"
            self.state.events.note(EventKind.BACKEND, words, device.name)
        device.blind = [n for n, name in enumerate(device.backends.names) if name in able and not able[name].counters]
        device.table_sizes = {name: size for name, each in able.items() if (size := each.table_size) is not None}

    def _publish_targets(self) -> None:
        if self.state.marks.of_targets:
            for nf in self.context.nfs:
                self.state.marks.publish_targets(nf)

    def _take_over(self, device: DeviceState, *, trusted: bool) -> int | None:
        """Take over or remove the rules that a NIC holds; how many were removed, None when that failed."""
        try:
            left: Leftovers = device.worker.call(
                lambda: take_over(device.backends, self.context, self.table, trusted=trusted, now=self.state.clock())
            )
        except Exception as error:  # noqa: BLE001 - an NF's or a backend's fault: unaccelerated is better than not at all
            log.warning("%s: rules of an earlier run cannot be taken over: %s", device.name, error)
            return None
        device.rule_counters = left.rule_counters
        if len(left.adopted) or left.removed:
            self.counters.totals["adopted"] += len(left.adopted)
            self.counters.totals["stale_removed"] += left.removed
            words = (device.name, len(left.adopted), left.removed)
            log.info("%s: of an earlier run's rules %d were taken over, %d removed", *words)
            table, adopted = self.table, left.adopted
            self.state.events.record(
                EventKind.ADOPTED,
                self.state.opaque(adopted),
                mark=table.mark[adopted],
                backend=table.backend[adopted],
                packets=table.packets[adopted],
                bytes_=table.bytes[adopted],
            )
            if left.removed:
                told = f"{left.removed:,} rules of an earlier run, whose marks mean nothing any more, were removed"
                self.state.events.note(EventKind.NIC, told, device.name)
        return left.removed if left.cleared else None

    def _resume_counts(self) -> None:
        """Go on counting where a run was that was killed."""
        try:
            noted = json.loads(self.context.state_file.recall_text(COUNTED) or "{}")
        except (ValueError, RecursionError):
            noted = {}
        for device in self.state.devices.values():
            of_device = noted.get(device.name) if isinstance(noted, dict) else None
            if isinstance(of_device, dict):
                device.rule_counters.resume(device.backends.names, of_device)

    def _note_counts(self) -> None:
        """Leave word of what the rules have counted, for a run after this that takes them over."""
        notes = {
            device.name: device.rule_counters.note(device.backends.names) for device in self.state.devices.values()
        }
        words = json.dumps({name: note for name, note in notes.items() if note})
        if words != (self._noted or "{}"):
            self._noted = words
            self.context.state_file.remember(COUNTED, words)

    # The daemon's loop

    def poll(self) -> int:
        """Take reports from every network function, and send what waits for a rule; how many reports there were."""
        taken = 0
        for nf in self.context.nfs:
            batch = nf.read_events(READ_LIMIT)
            if len(batch):
                taken += len(batch)
                self.counters.totals["events"] += len(batch)
                self._intake.take(nf, batch)
        if taken:
            self.state.marks.lease()
        self._dispatch.run()
        self._intake.shed()
        return taken

    def tick(self, changed: Collection[int] = ()) -> None:
        """Do what time asks for. changed: ifindexes of devices that may have been reset, whose links have changed."""
        now = self.state.clock()
        for ifindex in changed:
            if (device := self.state.devices.get(ifindex)) is not None:
                device.look_soon(now)
                device.to_probe = device.accelerated
        for device in self.state.devices.values():
            if device.to_probe and not device.probing:
                self._probe_again(device)
        self._remover.run()
        self._reconciler.run()
        self._intake.expire()
        if self.context.strategy is not None and now >= self._next_upkeep:
            self._next_upkeep = now + UPKEEP
            self.state.marks.retire_again()
            self.state.marks.lease()
        if now >= self._next_note:
            self._next_note = now + NOTE_INTERVAL
            self._note_counts()

    def _probe_again(self, device: DeviceState) -> None:
        """Find out what a NIC whose link has changed can do now."""

        def done(able: dict[str, Capabilities] | Exception) -> None:
            device.probing = False
            device.renew()
            if isinstance(able, Exception):
                log.warning("%s: cannot be probed again: %s", device.name, able)
                self.state.events.note(EventKind.BACKEND, f"cannot be probed again: {able}", device.name)
                return
            for backend, each in able.items():
                log.info("%s: %s: %s", device.name, backend, each.describe())
                self.state.events.note(EventKind.BACKEND, f"{backend}: {each.describe()}", device.name)
                if 0 < each.mark_width < self.context.config.marking.width:
                    log.warning("%s: %s sets no marks of this width any more: restart nfcore", device.name, backend)

        # The answer may come before `submit` returns.
        device.probing = True
        if device.worker.submit(device.backends.probe, done):
            device.to_probe = False
        else:
            device.probing = False

    # What operators ask for

    def switch(self, *, on: bool) -> int:
        """Switch offloading on or off, also for runs to come; how many rules are being removed."""
        self.state.switched_on = on
        if on:
            self.context.state_file.forget(SWITCH)
            self.state.events.note(EventKind.SWITCH, "offloading is switched on")
            # As loud as the order before it: who reads warnings alone must not believe that it is still off.
            audit.warning("offloading is switched on: flows get rules as they are reported")
            refused = self.table.slots_in(FlowState.REFUSED)
            refused = refused[self.table.reason[refused] == Reason.SWITCHED_OFF]
            # So that they are reported anew: after a long time their next report would be far away.
            self._remover.restore(self.table.batch(refused))
            return 0
        rules = self.table.count(FlowState.PENDING, FlowState.INSTALLED)
        self.state.events.note(
            EventKind.SWITCH, f"offloading is switched off: {rules:,} flows go back to the slow path"
        )
        self._remover.end_rules(self.table.slots_in(*ACTIVE), Reason.SWITCHED_OFF)
        self.context.state_file.remember(SWITCH, 1)
        audit.warning("offloading is switched off: %d flows go back to the slow path", rules)
        return rules

    def apply(self, config: Config, gone: Mapping[str, NDArray[np.uint64]]) -> Ended:
        """Go on with another configuration, in which the targets `gone` (by NF) exist no more; flows that end."""
        self.context.config = config
        self._size_table()
        offload = config.offload
        for device in self.state.devices.values():
            device.budget.limit(offload.inserts_per_second, offload.insert_burst)
        ended = Ended(0, 0)
        for nf in self.context.nfs:
            targets = gone.get(nf.name)
            if targets is not None and len(targets):
                more = self._remover.end_targets(nf, targets)
                ended = Ended(ended.accelerated + more.accelerated, ended.waiting + more.waiting)
        self._publish_targets()
        renew_meaning(self.context)
        return ended

    def remove_all(self) -> None:
        """Queue the removal of every rule: the last thing that the workers do. The next run finds nothing of this."""
        self.context.state_file.forget(FINGERPRINT)
        self.context.state_file.forget(COUNTED)
        slots = self.table.slots_in(FlowState.INSTALLED, FlowState.PENDING)
        for device, mine in self.state.by_device(slots):
            rules = self.state.rules(mine)
            for number in range(len(device.backends.names)):
                where = np.full(len(mine), number, dtype=np.uint8)
                if not device.worker.submit(
                    lambda device=device, rules=rules, where=where: _remove_last(device, rules, where),  # type: ignore[misc]
                    lambda result: None,
                ):
                    log.error("%s is too far behind: rules are left, see nfcore cleanup", device.name)

    def collect(self) -> list[MetricFamily]:
        """Give the engine's own figures."""
        return list(engine_metrics(self.state))


def _remove_last(device: DeviceState, rules: RuleBatch, where: NDArray[np.uint8]) -> None:
    """Remove rules while nobody waits for the result any more, and say what is left."""
    left = int(np.count_nonzero(~device.backends.remove(rules, where).gone & (where < len(device.backends.names))))
    if left:
        log.error("%s: %d rules could not be removed: see nfcore cleanup", device.name, left)
