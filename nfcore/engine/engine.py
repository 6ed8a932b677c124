# SPDX-License-Identifier: Apache-2.0
"""The engine: from the report of a new flow to an installed rule, and back.

    read_events ─► on_new_flow ─► allocate_mark ─► publish_marks ─► waiting ─► worker: install_offload
       intake                                                      dispatch          │ idle, too cold, gone
    free ◄─ quarantine ◄─ retire_marks ◄─ grace ◄─ worker: remove_offload ◄─ restore_flows
                                                                             retirement

Everything here runs on one thread; only workers wait for a NIC.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..api.config import Config
from ..api.context import Context
from ..api.metrics import MetricFamily
from ..api.reasons import Reason
from ..api.rules import Capabilities, RuleBatch
from ..daemon.program_monitor import ProgramWatch
from ..devices.device_state import Port
from ..devices.token_bucket import TokenBucket
from ..devices.worker import Backends, Worker
from ..errors import ConfigError, Problem
from ..hooks.manager import PluginHost
from ..kernel.link_monitor import LinkChange
from ..logs import AUDIT
from .admission import NAME as ADMISSION
from .admission import Admission
from .counters import Ledger
from .dispatch import Dispatch
from .event_log import EventKind, EventLog
from .flow_table import FlowState, FlowTable
from .intake import Intake
from .mark_lifecycle import MarkDesk
from .metrics import families
from .reconcile import Ended, Retirement
from .state import ACTIVE, Floor
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


class Links(Protocol):
    """Tells of links that have changed."""

    def poll(self) -> Mapping[int, LinkChange]:
        """What changed since the last call, by ifindex."""


class Engine:
    """Moves flows through the hooks. `workers` has one worker per device, by ifindex."""

    def __init__(
        self,
        context: Context,
        host: PluginHost,
        workers: Mapping[int, Worker],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.context = context
        self.host = host
        self.links: Links | None = None
        self.programs: ProgramWatch | None = None
        offload = context.config.offload
        ports = {
            device.ifindex: Port(
                Backends(device, host),
                workers[device.ifindex],
                TokenBucket(offload.inserts_per_second, offload.insert_burst, clock),
                next_poll=clock(),
                polled=clock(),
            )
            for device in context.devices
        }
        events = EventLog(context.config.nf.events_kept)
        self.floor = Floor(context, host, clock, FlowTable(0), Ledger(), MarkDesk(context, host), events, ports)
        self._size_table()
        self._retirement = Retirement(self.floor)
        self._intake = Intake(self.floor, self._retirement.end)
        self._dispatch = Dispatch(self.floor, self._retirement.end)
        self._next_upkeep = self._next_note = clock()
        self._noted = ""
        if ADMISSION not in host.loaded():
            host.register(Admission(context, self._groups_held), ADMISSION)

    @property
    def table(self) -> FlowTable:
        """Every flow that is known."""
        return self.floor.table

    @property
    def ledger(self) -> Ledger:
        """What was done, counted."""
        return self.floor.ledger

    def _size_table(self) -> None:
        offload = self.context.config.offload
        self.floor.table.capacity = offload.max_rules + offload.waiting + offload.remembered

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
        self.floor.switched_on = self.context.state.recall(SWITCH) is None
        if not self.floor.switched_on:
            log.warning("offloading is switched off, by an earlier run's order: nfcore offload on")
            self.floor.events.note(EventKind.SWITCH, "offloading is switched off, by an earlier run's order")
        for port in self.floor.ports.values():
            self._probe(port)
            port.begin_counting(self.floor.clock())
        trusted = same_meaning(self.context) and self.context.strategy is not None and self.floor.switched_on
        if trusted:
            self._publish_targets()
        else:
            # A run that is killed from here on leaves rules of which the next one must trust none.
            self.context.state.forget(FINGERPRINT)
        removed = [self._take_over(port, trusted=trusted) for port in self.floor.ports.values()]
        self._resume_counts()
        if not trusted:
            if any(removed):
                # An earlier run's program may go on forwarding by its marks: what they meant stands until they are
                # no longer on their way.
                time.sleep(self.floor.offload.grace)
            self._publish_targets()
        if None in removed:
            self.context.state.forget(FINGERPRINT)
        else:
            note_meaning(self.context)
        if self.context.strategy is not None:
            self.floor.marks.lease()

    def _probe(self, port: Port) -> None:
        """Say once what the NIC can do; go on without what cannot set marks. ConfigError: the marks are too wide."""
        able: dict[str, Capabilities] = port.worker.call(port.backends.probe)
        width = self.context.config.marking.width
        for backend, each in able.items():
            log.info("%s: %s: %s", port.name, backend, each.describe())
            if 0 < each.mark_width < width:
                message = f"is {width}; {backend} on {port.name} transports {each.mark_width} bits: "
                message += f"set it to {each.mark_width} or less"
                raise ConfigError(self.context.config.source, [Problem("marking.width", message)])
        useless = [backend for backend, each in able.items() if each.mark_width == 0]
        if useless:
            port.backends.leave_out(useless)
            log.warning("%s: %s cannot set marks here: going on without", port.name, ", ".join(useless))
            words = f"{', '.join(useless)} left out: cannot set marks here"
            self.floor.events.note(EventKind.BACKEND, words, port.name)
        port.blind = [
            n for n, name in enumerate(port.backends.device.backends) if name in able and not able[name].counters
        ]
        port.table_sizes = {name: size for name, each in able.items() if (size := each.table_size) is not None}

    def _publish_targets(self) -> None:
        if self.floor.marks.of_targets:
            for nf in self.context.nfs:
                self.floor.marks.publish_targets(nf)

    def _take_over(self, port: Port, *, trusted: bool) -> int | None:
        """Take over or remove the rules that a NIC holds; how many were removed, None when that failed."""
        try:
            left: Leftovers = port.worker.call(
                lambda: take_over(port.backends, self.context, self.table, trusted=trusted, now=self.floor.clock())
            )
        except Exception as error:  # noqa: BLE001 - an NF's or a backend's fault: unaccelerated is better than not at all
            self.ledger.say_once(f"{port.name}: rules of an earlier run cannot be taken over: {error}")
            return None
        port.meter = left.meter
        if len(left.adopted) or left.removed:
            self.ledger.counts["adopted"] += len(left.adopted)
            self.ledger.counts["stale_removed"] += left.removed
            words = (port.name, len(left.adopted), left.removed)
            log.info("%s: of an earlier run's rules %d were taken over, %d removed", *words)
            table, adopted = self.table, left.adopted
            self.floor.events.record(
                EventKind.ADOPTED,
                self.floor.opaque(adopted),
                mark=table.mark[adopted],
                backend=table.backend[adopted],
                packets=table.packets[adopted],
                bytes_=table.bytes[adopted],
            )
            if left.removed:
                told = f"{left.removed:,} rules of an earlier run, whose marks mean nothing any more, were removed"
                self.floor.events.note(EventKind.NIC, told, port.name)
        return left.removed if left.cleared else None

    def _resume_counts(self) -> None:
        """Go on counting where a run was that was killed."""
        try:
            noted = json.loads(self.context.state.recall_text(COUNTED) or "{}")
        except (ValueError, RecursionError):
            noted = {}
        for port in self.floor.ports.values():
            of_port = noted.get(port.name) if isinstance(noted, dict) else None
            if isinstance(of_port, dict):
                port.meter.resume(port.backends.device.backends, of_port)

    def _note_counts(self) -> None:
        """Leave word of what the rules have counted, for a run after this that takes them over."""
        notes = {port.name: port.meter.note(port.backends.device.backends) for port in self.floor.ports.values()}
        words = json.dumps({name: note for name, note in notes.items() if note})
        if words != (self._noted or "{}"):
            self._noted = words
            self.context.state.remember(COUNTED, words)

    # The daemon's loop

    def poll(self) -> int:
        """Take reports from every network function, and send what waits for a rule; how many reports there were."""
        taken = 0
        for nf in self.context.nfs:
            batch = nf.read_events(READ_LIMIT)
            if len(batch):
                taken += len(batch)
                self.ledger.counts["events"] += len(batch)
                self._intake.take(nf, batch)
        if taken:
            self.floor.marks.lease()
        self._dispatch.run()
        self._intake.shed()
        return taken

    def tick(self) -> None:
        """Do what time asks for, and look whether a link has changed."""
        changed = self.links.poll() if self.links is not None else {}
        for ifindex, change in changed.items():
            port = self.floor.ports.get(ifindex)
            if port is not None:
                state = "gone, and with it the program" if change.gone else "up" if change.up else "down"
                self.floor.events.note(EventKind.LINK, f"changed: it is {state}", port.name)
            if port is not None and change.gone:
                log.error(
                    "%s: the interface is gone, and with it the program: restart nfcore once it is back", port.name
                )
            elif port is not None:
                port.look_soon(self.floor.clock())
                port.to_probe = port.accelerated
        if self.programs is not None:
            self.programs.run(changed)
        for port in self.floor.ports.values():
            if port.to_probe and not port.probing:
                self._probe_again(port)
        self._retirement.run()
        self._intake.expire()
        if self.context.strategy is not None and self.floor.clock() >= self._next_upkeep:
            self._next_upkeep = self.floor.clock() + UPKEEP
            self.floor.marks.retire_again()
            self.floor.marks.lease()
        if self.floor.clock() >= self._next_note:
            self._next_note = self.floor.clock() + NOTE_INTERVAL
            self._note_counts()
            self._say_repeats()

    def _say_repeats(self, *, all_of_them: bool = False) -> None:
        """Log how often what was said lately was true once more, also when it is not any more."""
        self.ledger.say_repeats(all_of_them=all_of_them)
        self.host.say_repeats(all_of_them=all_of_them)

    def _probe_again(self, port: Port) -> None:
        """Find out what a NIC whose link has changed can do now."""

        def done(able: dict[str, Capabilities] | Exception) -> None:
            port.probing = False
            port.renew()
            if isinstance(able, Exception):
                self.ledger.say_once(f"{port.name}: cannot be probed again: {able}")
                self.floor.events.note(EventKind.BACKEND, f"cannot be probed again: {able}", port.name)
                return
            for backend, each in able.items():
                log.info("%s: %s: %s", port.name, backend, each.describe())
                self.floor.events.note(EventKind.BACKEND, f"{backend}: {each.describe()}", port.name)
                if 0 < each.mark_width < self.context.config.marking.width:
                    self.ledger.say_once(f"{port.name}: {backend} sets no marks of this width any more: restart nfcore")

        # The answer may come before `submit` returns.
        port.probing = True
        if port.worker.submit(port.backends.probe, done):
            port.to_probe = False
        else:
            port.probing = False

    # Orders

    def switch(self, *, on: bool) -> int:
        """Switch offloading on or off, also for runs to come; how many rules are being removed."""
        self.floor.switched_on = on
        if on:
            self.context.state.forget(SWITCH)
            self.floor.events.note(EventKind.SWITCH, "offloading is switched on")
            # As loud as the order before it: who reads warnings alone must not believe that it is still off.
            audit.warning("offloading is switched on: flows get rules as they are reported")
            refused = self.table.slots_in(FlowState.REFUSED)
            refused = refused[self.table.reason[refused] == Reason.SWITCHED_OFF]
            # So that they are reported anew: after a long time their next report would be far away.
            self.floor.restore(self.table.batch(refused))
            return 0
        rules = self.table.count(FlowState.PENDING, FlowState.INSTALLED)
        self.floor.events.note(
            EventKind.SWITCH, f"offloading is switched off: {rules:,} flows go back to the slow path"
        )
        self._retirement.end(self.table.slots_in(*ACTIVE), Reason.SWITCHED_OFF)
        self.context.state.remember(SWITCH, 1)
        audit.warning("offloading is switched off: %d flows go back to the slow path", rules)
        return rules

    def apply(self, config: Config, gone: Mapping[str, NDArray[np.uint64]]) -> Ended:
        """Go on with another configuration, in which the targets `gone` (by NF) exist no more; flows that end."""
        self.context.config = config
        self._size_table()
        offload = config.offload
        for port in self.floor.ports.values():
            port.budget.limit(offload.inserts_per_second, offload.insert_burst)
        ended = Ended(0, 0)
        for nf in self.context.nfs:
            targets = gone.get(nf.name)
            if targets is not None and len(targets):
                more = self._retirement.end_targets(nf, targets)
                ended = Ended(ended.accelerated + more.accelerated, ended.waiting + more.waiting)
        self._publish_targets()
        renew_meaning(self.context)
        return ended

    def remove_all(self) -> None:
        """Queue the removal of every rule: the last thing that the workers do. The next run finds nothing of this."""
        self._say_repeats(all_of_them=True)
        self.context.state.forget(FINGERPRINT)
        self.context.state.forget(COUNTED)
        slots = self.table.slots_in(FlowState.INSTALLED, FlowState.PENDING)
        for port, mine in self.floor.by_port(slots):
            rules = self.floor.rules(mine)
            for number in range(len(port.backends.device.backends)):
                where = np.full(len(mine), number, dtype=np.uint8)
                if not port.worker.submit(
                    lambda port=port, rules=rules, where=where: _remove_last(port, rules, where),  # type: ignore[misc]
                    lambda result: None,
                ):
                    log.error("%s is too far behind: rules are left, see nfcore cleanup", port.name)

    def collect(self) -> list[MetricFamily]:
        """Give the engine's own figures."""
        return list(families(self.floor))


def _remove_last(port: Port, rules: RuleBatch, where: NDArray[np.uint8]) -> None:
    """Remove rules while nobody waits for the result any more, and say what is left."""
    left = int(
        np.count_nonzero(~port.backends.remove(rules, where).gone & (where < len(port.backends.device.backends)))
    )
    if left:
        log.error("%s: %d rules could not be removed: see nfcore cleanup", port.name, left)
