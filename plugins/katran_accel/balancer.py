# SPDX-License-Identifier: Apache-2.0
"""The balancer as the engine's network function: fills its maps, loads its program, reads reports, publishes marks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfcore.api.carriers import Carrier, carrier_defines
from nfcore.api.config import Config
from nfcore.api.context import Context
from nfcore.api.flows import FlowBatch
from nfcore.api.mark_pools import CpuPools
from nfcore.api.marks import MarkMeaning
from nfcore.api.network_function import NetworkFunction, TargetFacts
from nfcore.api.rules import Device
from nfcore.api.steps import Steps, pause, run_steps
from nfcore.errors import ConfigError, HostError, Problem
from nfcore.kernel import (
    BPF_SOURCES,
    CallPin,
    EventReader,
    PerfReader,
    Program,
    RingBufferReader,
    compile_program,
)
from nfcore.kernel.links import format_mac

from . import layouts as lay
from .adoption import note_of_pins
from .config import NAME, KatranTable
from .connection_table import Connections, VipFinder
from .features import PROGRAMS, Features
from .flow_routes import FlowRoutes
from .inventory import NUMBERING, Inventory, Numbering, NumbersExhaustedError
from .katran_object import open_object
from .map_writer import Change, MapWriter
from .maps import (
    PROGRAM,
    BalancerMaps,
    Sizes,
    forwarding_cpus,
    perf_pages,
    remove_pins,
    route_room,
    unpin_other_tables,
    wait_for_programs,
)
from .mark_entries import MarkEntries
from .next_hops import (
    NO_MAC,
    Facts,
    Sending,
    assume,
    changes,
    look,
    look_patiently,
    require_next_hops,
    require_routes,
    send_by,
)
from .object_writer import ObjectWriter, to_one_station
from .routing import Routing

LOOPBACK = 1
"""ifindex of test packets."""
ADVICE = 'add the route or neighbour, or set katran_accel.gateway_mac to the MAC address instead of "auto"'
CONFIRM_PERIOD = 4.0
"""Seconds, at least, between two questions to a gateway whether its MAC address is still right."""
NEEDS_RESTART = (
    "forwarding_cpus",
    "lru_size",
    "maglev",
    "pin_dir",
    "destination_mac",
    "program",
    "healthcheck",
    "server_id_map",
    "capture",
    "introspection",
)
"""Keys of the table that are read only at the start."""


class Balancer(NetworkFunction):
    """One data plane: its maps, its program and their configuration."""

    name = NAME
    number = 0

    def __init__(
        self,
        config: Config,
        table: KatranTable,
        meaning: MarkMeaning | None,
        clock: Callable[[], float] = time.monotonic,
        own_mac: bytes = NO_MAC,
    ) -> None:
        """Take over a table. own_mac: the address that test packets have to be addressed to; NO_MAC: to any."""
        self.config = config
        self.table = table
        self.meaning = meaning
        self.features = Features.of(table)
        self._clock, self._own_mac = clock, own_mac
        self._confirm_at = 0.0
        self.numbering = Numbering(_rest_seconds(config), clock)
        self._set_inventory(self.numbering.plan(table))
        self._names: tuple[dict[int, str], dict[int, str]] = {}, {}
        """Of VIPs and of reals by number. The name of a removed one stays until its number is given again."""
        self._history: list[str] = []
        """The targets at the start, then each that a reload removed (-) or added (+)."""
        self._generation = 0
        self._devices: list[Device] = []
        self.sending = Sending()
        self._reloading = False
        self._written = True
        """Whether the maps were written to the end."""
        self.marks: MarkEntries | None = None
        self.routes: FlowRoutes | None = None
        self.pools: CpuPools | None = None
        self.cpus = forwarding_cpus(table.forwarding_cpus)
        self.pin_dir = Path(table.pin_dir) if table.pin_dir else None
        self._unpin_on_close: Path | None = None
        self._call_pin = CallPin(config.nf.call_pins, PROGRAMS)
        self._reader: EventReader | None = None
        self.also_resolve: Callable[[], Callable[[], Sequence[str]]] | None = None
        """Of a part of the plugin that has something from the network, too."""

    # Start and stop

    def open(self, context: Context) -> None:
        """Create and fill the maps, load the program. HostError says why that is not possible."""
        if context.tracing:
            self.pin_dir = None
        self._context, self._state = context, context.state_file
        if self.pin_dir is not None:
            context.locks.folder(self.pin_dir)
        self._devices = context.devices_of(NAME)
        facts = require_next_hops(look_patiently(lambda: self._look(self.table, self.inventory)), ADVICE)
        # Pins of an earlier run are kept. Those that this start creates are removed again when it fails.
        self._unpin_on_close = self.pin_dir if self.pin_dir is not None and not self.pin_dir.exists() else None
        note = self._read_note()
        sizes = Sizes(
            vips=max(self.inventory.vips) + 1,
            lru_entries=self.table.lru_size,
            mark_width=self.config.marking.width,
            meaning=self.meaning,
            events=self.config.offload.events,
            routes=route_room(_most_flows(self.config)),
            features=self.features,
            devices=max(len(self._devices), 1),
            capture=self.table.capture,
            introspection=self.table.introspection,
        )
        self.maps: BalancerMaps
        if self.table.program is None:
            self.maps = BalancerMaps.open(sizes, self.cpus, self.pin_dir)
            self.program = self._load(context, facts)
            self._open_marks()
            self._writer = MapWriter(self.maps, self.marks, self.table.listed_macs)
        else:
            self._send_by(Sending(), facts, require=True)
            path = Path(self.table.program)
            self.maps, self.program = open_object(path, sizes, self.inventory, self.cpus, self.pin_dir)
            self._writer = ObjectWriter(self.maps)
        self.connections = Connections(self.maps)
        if self.table.introspection:
            self.maps["ctl_array"].write_array(lay.CTL_INTROSPECTION, np.ones(1, "<u8").view(lay.CTL_VALUE))
        resumed = self._resume_maps(note)
        self._history = [f"{vip}/{real}" for vip, real in self.inventory.pairs()]
        sending = self._send_by(self._writer.sent_by_others(), facts)
        run_steps(self._apply(Change.between(self.numbering, None, self.inventory, sending, purge=resumed)))
        if PROGRAMS in self.maps.maps and not context.tracing:
            self._call_pin.pin(self.maps[PROGRAMS])
        context.services.health.trouble_sources.append(lambda: self.sending.troubles)
        context.services.health.warning_sources.append(lambda: self.sending.warnings)

    def close(self) -> None:
        """Close program and maps. Pinned ones stay in the kernel, and the state file keeps their numbers."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if hasattr(self, "_writer"):
            self._writer.close()
        if hasattr(self, "program"):
            self.program.close()
        if hasattr(self, "maps"):
            self.maps.close()
        self._call_pin.remove()
        if self._unpin_on_close is not None:
            list(remove_pins(self._unpin_on_close))
            self._state.remove(NUMBERING)

    def attached(self, device: Device) -> None:
        """Pin the program, if the maps are pinned: from now on the pins are in use."""
        self._unpin_on_close = None
        if not self._devices or device.ifindex == self._devices[-1].ifindex:
            self._call_pin.remove_earlier()
        if self.pin_dir is not None:
            (self.pin_dir / PROGRAM).unlink(missing_ok=True)
            self.program.pin(self.pin_dir / PROGRAM)

    def _load(self, context: Context, facts: Facts) -> Program:
        defines: dict[str, int | str] = {
            "MIN_PACKETS": self.config.offload.min_packets,
            "POOL_SLOTS": lay.POOL_SLOTS,
            "EVENTS_RINGBUF" if self.config.offload.events == "ringbuf" else "EVENTS_PERF": 1,
        }
        carrier = None if self.meaning is None else Carrier(self.config.marking.carrier)
        defines |= carrier_defines(carrier, tracing=context.tracing)
        if self.meaning is not None:
            defines["MARK_IS_FLOW" if self.meaning is MarkMeaning.FLOW else "MARK_IS_TARGET"] = 1
        sampled = {"CAPTURE": self.table.capture, "INTROSPECTION": self.table.introspection}
        defines |= {name: 1 for name, on in sampled.items() if on}
        defines |= self._device_defines(facts) | self.features.defines
        chain = context.chain_build(NAME)
        defines, maps = {**defines, **chain.defines}, {**self.maps.maps, **chain.maps}
        program = compile_program(BPF_SOURCES / "balancer/balancer.c", PROGRAM, defines=defines, maps=maps)
        if self.features.decap:
            self.maps[PROGRAMS].update(0, program.fd)
        return program

    def _device_defines(self, facts: Facts) -> dict[str, int | str]:
        """Give the build choices of bpf/balancer/device.h."""
        defines: dict[str, int | str] = {"DEVICES": max(len(self._devices), 1)}
        # Test packets come by no interface, and some interfaces have no address: the loopback's is zeros.
        if any(device.mac == NO_MAC for device in facts.devices):
            return defines
        defines["OWN_SOURCE"] = 1
        if self.table.destination_mac != "any":
            defines["OWN_DESTINATION"] = 1
            if self.table.listed_macs or any(device.is_aggregate for device in facts.devices):
                defines["MORE_DESTINATIONS"] = 1
        return defines

    # What packets are sent by

    def _look(self, table: KatranTable, inventory: Inventory, *, confirm: bool = False) -> Facts:
        """Ask the kernel where packets go, for another table and inventory too."""
        fixed = [table.fixed_mac(device.name) for device in self._devices]
        if self._context.tracing or not self._devices:
            given = [table.gateway_mac] if isinstance(table.gateway_mac, str) else [*table.gateway_mac.values()]
            macs = [bytes.fromhex(mac.replace(":", "")) for mac in given if mac != "auto"]
            return assume(Device("trace", LOOPBACK), self._own_mac, macs[0] if macs else NO_MAC, inventory.reals)
        return look(self._devices, fixed, inventory.reals, confirm=confirm)

    def _send_by(self, before: Sending, facts: Facts, *, require: bool = False) -> Sending:
        """Find out by what packets are to be sent. require: HostError when the program cannot send so."""
        sending = send_by(before, facts)
        return sending if self.table.program is None else to_one_station(sending, require=require)

    def resolve(self) -> Callable[[], Sequence[str]]:
        """Ask the kernel again where packets go, on a thread of its own."""
        table, inventory, before = self.table, self.inventory, self.sending
        # Not each time: the answer is a change, too, after which this is called again.
        confirm = self._clock() >= self._confirm_at
        if confirm:
            self._confirm_at = self._clock() + CONFIRM_PERIOD
        facts = self._look(table, inventory, confirm=confirm)
        # With thousands of reals this takes a while, and mostly nothing has changed.
        now = before if facts.devices == before.devices else self._send_by(before, facts)
        also = () if self.also_resolve is None else (self.also_resolve(),)

        def follow() -> Sequence[str]:
            # What a reload is changing, the next look finds anew.
            same = not self._reloading and before is self.sending and inventory is self.inventory
            own = self._follow(before, now) if same else ()
            return [*own, *(sentence for each in also for sentence in each())]

        return follow

    def _follow(self, before: Sending, now: Sending) -> Sequence[str]:
        """Send by what was found, unless the program does so already."""
        right = self._writer.sends_by(now, self.inventory)
        # A write of ours that failed half-way is no other program's.
        changed_by_others = not right and now is before and self._written
        if not right:
            self._written = False
            self._writer.send_by(now, self.inventory)
        self._written, self.sending = True, now
        if changed_by_others:
            return ["another program has changed by what packets are sent: it is as it was again"]
        return changes(before, now)

    def next_hops(self, parameters: Mapping[str, object]) -> object:
        """Answer the method `katran_accel.next_hops`: where the program sends packets now, from the maps."""
        devices = self.sending.devices
        found: dict[tuple[str, str, str], list[str]] = {}
        for real, macs in self._writer.macs_in_use(self.inventory, max(len(devices), 1)).items():
            for place, facts in enumerate(devices):
                hop = self.sending.members[self.sending.groups[real]][place]
                key = facts.device.name, format_mac(macs[place]), "unknown" if hop is None else str(hop)
                found.setdefault(key, []).append(str(real))
        keys = ("interface", "mac", "next_hop")
        return [{**dict(zip(keys, key, strict=True)), "reals": reals} for key, reals in found.items()]

    def _open_marks(self) -> None:
        if self.meaning is None:
            return
        self.marks = MarkEntries(self.maps, self.meaning, self.cpus)
        self.routes = FlowRoutes(self.maps)
        self.pools = self.marks.pools
        ringbuf = self.config.offload.events == "ringbuf"
        events = self.maps["hw_accel_events"]
        event = lay.HW_ACCEL_VLAN_EVENT if self.table.vlan else lay.HW_ACCEL_EVENT
        self._reader = RingBufferReader(events, event) if ringbuf else PerfReader(events, event, perf_pages())

    # Numbers and pinned maps

    def _read_note(self) -> dict[str, object] | None:
        """Continue the numbering of an earlier run with these pins, or of another control plane, and return its note.

        None, with a new numbering, when there is no note, it cannot be read, or it leaves too few numbers.
        """
        text = None if self.pin_dir is None else self._state.get_text(NUMBERING)
        of_pins = None if self.pin_dir is None else note_of_pins(self.pin_dir, self.inventory)
        try:
            note: dict[str, object] | None = json.loads(text or "null")
            if not isinstance(note, dict) or type(note.get("generation")) is not int:
                note = None
            if of_pins is not None and (note is None or note.get("maps") != of_pins["maps"]):
                note = of_pins
                # From the first map that this start adds, these are nfcore's: also when it fails.
                self._state.set(NUMBERING, json.dumps(note))
            if note is None:
                return None
            self.numbering.resume(note)
            self._set_inventory(self.numbering.plan(self.table))
        except (ValueError, RecursionError, NumbersExhaustedError):
            self._restart_numbering()
            return None
        return note

    def _restart_numbering(self) -> None:
        self.numbering = Numbering(_rest_seconds(self.config), self._clock)
        self._set_inventory(self.numbering.plan(self.table))

    def _resume_maps(self, note: dict[str, object] | None) -> bool:
        """Whether the maps are those of the note. If not, erase the connections and marks that they hold.

        That comes before anything new is written: the program of an earlier run may still forward by these maps.
        """
        if note is None or note.get("maps") != self.maps["reals"].id:
            self._restart_numbering()
            self.connections.clear()
            if self.pin_dir is not None:
                unpin_other_tables(self.pin_dir, self.cpus)
            if self.marks is not None and self.routes is not None:
                self.marks.forget()
                self.routes.clear()
            return False
        generation = note["generation"]
        assert isinstance(generation, int)  # _read_note() has checked it
        self._generation = generation
        if self.marks is not None:
            self._generation = max(generation, self.marks.newest_generation)
            # A run with another kind of mark, or without marks, did not update these entries.
            if note.get("marks") != self.meaning:
                self.marks.forget()
            if self.routes is not None and note.get("marks") is None:
                self.routes.clear()
        return True

    def _write_note(self, planned: Inventory | None = None) -> None:
        if self.pin_dir is not None:
            facts = {"maps": self.maps["reals"].id, "generation": self._generation, "marks": self.meaning}
            self._state.set(NUMBERING, json.dumps(facts | self.numbering.note(planned)))

    def _set_inventory(self, inventory: Inventory) -> None:
        """Make an inventory the current one."""
        self.inventory = inventory
        self.finder = VipFinder(inventory)
        self._targets = self._marked_targets(inventory)

    def _marked_targets(self, inventory: Inventory) -> NDArray[np.uint64]:
        """Targets that can have a mark."""
        targets = inventory.targets()
        unmarked = set(inventory.vips_with(self.features.unmarked))
        if self.meaning is MarkMeaning.TARGET:
            unmarked |= inventory.shadowed()
        return targets[~np.isin(targets >> np.uint64(32), list(unmarked)) & ~np.isin(targets, inventory.left_targets())]

    # Changes

    def reconfigure(self, config: Config, table: KatranTable) -> NDArray[np.uint64]:
        """Apply another table while packets flow. Returns the targets whose rules must end, sorted.

        Those are targets that no longer exist, to which no packet is sent any more, and targets of VIPs that now lose
        packets to a new VIP. ConfigError with every problem, and HostError when there is no way to the reals, are
        raised before anything changes.
        """
        return run_steps(self.reconfigure_in_steps(config, table))

    def reconfigure_in_steps(self, config: Config, table: KatranTable) -> Steps[NDArray[np.uint64]]:
        """Do :meth:`reconfigure` in steps. Reports are read and marks are given meanwhile."""
        self._reloading = True
        try:
            return (yield from self._reconfigure(config, table))
        finally:
            self._reloading = False

    def _reconfigure(self, config: Config, table: KatranTable) -> Steps[NDArray[np.uint64]]:
        change = yield partial(self._plan, config, table)
        before, targets = self.inventory, self._targets
        self.numbering.let_rest_for(max(_rest_seconds(self.config), _rest_seconds(config)))
        yield from self._apply(change)
        yield pause
        self.config, self.table = config, table
        self.claim_changes += 1
        gone = np.union1d(np.setdiff1d(targets, self._targets), self._overlapped_targets(before))
        self._history += [f"-{target}" for target in gone.tolist()]
        self._history += [f"+{target}" for target in np.setdiff1d(self._targets, targets).tolist()]
        return gone

    def _plan(self, config: Config, table: KatranTable) -> Change:
        before, after = (each.model_dump(mode="json", include=set(NEEDS_RESTART)) for each in (self.table, table))
        problems = [
            Problem(f"{NAME}.{key}", f"is {after[key]!r} now and was {before[key]!r}; a change needs a restart")
            for key in NEEDS_RESTART
            if after[key] != before[key]
        ]
        if self.table.program is None:
            problems += self.features.changes(Features.of(table))
        vips = f"{NAME}.vips"
        # What is invalid was made so by hand, for a reason that the TOML does not know.
        routing = Routing.of(table).with_invalid(self.inventory.routing.invalid_ids)
        try:
            inventory = self.numbering.plan(table, routing)
        except NumbersExhaustedError as error:
            raise ConfigError(config.source, [*problems, Problem(vips, str(error))]) from None
        if len(inventory.vips) > self.maps.rings:
            message = f"has {len(inventory.vips)} VIPs; {self.maps.rings} fit, and more need a restart"
            problems.append(Problem(vips, message))
        elif max(inventory.vips) >= self.maps.rings:
            message = f"does not fit yet: there are {self.maps.rings} VIP numbers, and the number of a removed VIP "
            message += f"rests for {self.numbering.vips.rest:g} s; wait, or restart"
            problems.append(Problem(vips, message))
        if lacking := self.maps.lacking(inventory):
            problems.append(Problem(f"{NAME}.program", f"is {self.table.program}, which {lacking}"))
        if self.routes is not None and _most_flows(config) > self.routes.room:
            message = f"and offload.waiting are {_most_flows(config)} together; at most {self.routes.room} fit, "
            problems.append(Problem("offload.max_rules", message + "and more need a restart"))
        prefixes = {
            each.lpm_key(number).tobytes()
            for each in (self.inventory, inventory)
            for number, vip in each.vips.items()
            if vip.is_prefix
        }
        if len(prefixes) > lay.MAX_PREFIX_VIPS:
            message = f"has {len(prefixes)} prefixes, those to be removed included; at most {lay.MAX_PREFIX_VIPS} fit"
            problems.append(Problem(vips, message))
        if problems:
            raise ConfigError(config.source, problems)
        facts = self._look(table, inventory)
        if table.gateway_mac != self.table.gateway_mac:
            require_routes(facts, ADVICE)
        sending = self._send_by(self.sending, facts, require=True)
        inventory.shadowed()  # computed here, in the thread, for _set_inventory()
        return self._change_to(inventory, sending)

    def _change_to(self, inventory: Inventory, sending: Sending) -> Change:
        before = self.inventory
        gone = (
            len(np.setxor1d(inventory.targets(), before.targets())) > 0
            or not before.reals.keys() <= inventory.reals.keys()
        )
        return Change.between(self.numbering, before, inventory, sending, purge=gone)

    def change_routing(self, change: Callable[[Routing], Routing]) -> Steps[None]:
        """Let other server ids and source routes be in effect than those of the TOML, until the next reload.

        They may lead to new reals. `change` makes them of those that are in effect now, in a thread; what it raises,
        and HostError when the kernel refuses an entry, leaves everything as it was.
        """
        self._reloading = True
        try:
            inventory = yield partial(self._plan_routing, change)
            if inventory.reals == self.inventory.reals:
                yield partial(self._writer.routing.change, self.inventory, inventory)
                self.inventory = inventory
            else:
                facts = yield partial(self._look, self.table, inventory)
                yield from self._apply(self._change_to(inventory, self._send_by(self.sending, facts)))
        finally:
            self._reloading = False

    def _plan_routing(self, change: Callable[[Routing], Routing]) -> Inventory:
        return self.numbering.plan(self.table, change(self.inventory.routing))

    def _overlapped_targets(self, before: Inventory) -> NDArray[np.uint64]:
        """Targets of VIPs that now lose packets to a VIP to which they lost none before.

        Under dest-id there are none: such VIPs have no targets with marks.
        """
        winners = self.inventory.winners
        vips = [n for n in winners if n in before.vips and winners[n] - before.winners.get(n, frozenset())]
        overlapped: NDArray[np.uint64] = self._targets[np.isin(self._targets >> np.uint64(32), vips)]
        return overlapped

    def _apply(self, change: Change) -> Steps[None]:
        """Write a change into the maps while packets flow."""
        self._generation = max(self._generation + 1, time.time_ns() // 1_000_000_000 & 0xFFFF_FFFF)
        # If the run is killed before the end, this note has every number that may be in the maps.
        self._write_note(change.inventory)
        self._names[0].update({number: vip.name for number, vip in change.inventory.vips.items()})
        self._names[1].update({number: str(address) for address, number in change.inventory.reals.items()})
        # Between two rings XDP reports flows to what is new and to what is about to go: both may have marks.
        self._targets = np.union1d(self._targets, self._marked_targets(change.inventory))
        self._written = False
        try:
            yield from self._writer.add(change, self._generation)
        except HostError:
            self._set_inventory(self.inventory)
            with suppress(HostError):
                yield partial(self._writer.routing.write, self.inventory)
            raise
        self._set_inventory(change.inventory)
        self._written, self.sending = True, change.sending
        self._writer.remove(change)
        if change.purge:
            yield from self._erase_other_marks()
            yield self._forget_gone_connections
            yield from self._erase_other_marks()
            if self.routes is not None:
                yield from self.routes.purge(self._targets, self.finder)
        yield pause
        self.numbering.take(change.inventory)
        self._write_note()

    def _forget_gone_connections(self) -> None:
        wait_for_programs()
        self.connections.purge(self.inventory, self.finder)

    def _erase_other_marks(self) -> Steps[None]:
        if self.marks is not None:
            yield from self.marks.erase_other(self._targets, self.finder)

    # Reports and marks

    def wake_fds(self) -> Sequence[int]:
        """Descriptors of the event buffer."""
        return () if self._reader is None else self._reader.fds

    def read_events(self, limit: int) -> FlowBatch:
        """Read up to `limit` reports of XDP."""
        if self._reader is None:
            return FlowBatch.empty()
        events = self._reader.read(limit)
        batch = FlowBatch.empty(len(events))
        rows = batch.rows
        rows["key"], rows["nf"], rows["family"] = events["flow"], self.number, events["family"]
        for name in ("ifindex", "cpu", "kind", "mark", "packets"):
            rows[name] = events[name]
        if self.table.vlan:
            rows["vlans"] = events["vlans"]
        rows["target"] = events["vip_num"].astype(np.uint64) << np.uint64(32) | events["real_key"]
        return batch

    def targets(self) -> FlowBatch:
        """Give all (VIP, real) pairs in the TOML's order; under dest-id only those that can have a mark."""
        # A compiled object knows no marks, also where there are some.
        without = self.meaning is None and self._context.strategy is not None
        targets = self._targets[:0] if without else self._targets
        batch = FlowBatch.empty(len(targets))
        batch.rows["nf"] = self.number
        batch.rows["target"] = targets
        return batch

    def claims(self, batch: FlowBatch, since: int | None = None) -> NDArray[np.bool_]:
        """Say which flows go to one of the VIPs."""
        return self.finder.reach(batch)

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Give the VIP number of each target."""
        return (targets >> np.uint64(32)).astype(np.uint32)

    def describe(self, target: int) -> Mapping[str, str]:
        """Name VIP and real; removed ones too, until their number is given again."""
        vip, real = target >> 32, target & 0xFFFF_FFFF
        return {"vip": self._names[0].get(vip, f"VIP {vip}"), "real": self._names[1].get(real, f"real {real}")}

    def target_facts(self, target: int) -> TargetFacts:
        """Give VIP, real and weight of a target of the present configuration."""
        vip, real = target >> 32, target & 0xFFFF_FFFF
        table, weight = self.inventory.vips.get(vip), None
        if table is None or (weight := self.inventory.shares(vip).get(real)) is None:
            return TargetFacts()
        address = next(address for address, number in self.inventory.reals.items() if number == real)
        return TargetFacts(table.address, table.port, table.proto, address, weight)

    def fingerprint(self) -> bytes:
        """Give bytes that are equal in two runs when marks mean the same in both.

        For flow-id, the map of the entries: each entry shows whether it is live. For dest-id, the numbers of VIPs and
        reals, and the order in which targets got their marks.
        """
        if self.table.program is not None:
            return repr(("object", self.table.program)).encode()
        if self.meaning is MarkMeaning.FLOW:
            return repr(("flow", self.maps["hw_accel_mapping"].id)).encode()
        return repr((self.inventory.vip_numbers, self.inventory.real_numbers, self._history)).encode()

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Fill in the targets of an earlier run's marks; True where the entry is live (flow-id: in pinned maps).

        These flows have routes from now on, although the maps may be new ones.
        """
        if self.marks is None:
            return np.zeros(len(batch), dtype=bool)
        live = self._mark_entries.recognise(batch, marks)
        return self._write_routes(batch, live)

    def publish(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Write the entries of the marks (dest-id), or check those of XDP (flow-id), and the routes of the flows.

        True where the entry is live and the route is there.
        """
        live = self._mark_entries.publish(batch, marks, self._targets)
        return self._write_routes(batch, live)

    def _write_routes(self, batch: FlowBatch, live: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Write the routes of the live rows; the row of a target is of no flow. Says which are still live."""
        assert self.routes is not None, "there are no marks without a strategy"
        flows = live & (batch.rows["family"] != 0)
        live[flows] = self.routes.write(batch[flows])
        return live

    def retire(self, marks: NDArray[np.uint32]) -> None:
        """Erase the entries of the marks."""
        self._mark_entries.retire(marks)

    def restore(self, batch: FlowBatch) -> None:
        """Put flows back into the connection tables, except those whose target no longer exists."""
        assert self.routes is not None, "there are no rules without a strategy"
        self.connections.restore(batch, self.inventory, self.finder, self.routes.stand)

    def let_go(self, batch: FlowBatch) -> None:
        """Remove the routes of flows: the connection table has them again."""
        if self.routes is not None:
            self.routes.remove(batch)

    def keep_only(self, batch: FlowBatch) -> None:
        """Remove all other routes: those of an earlier run, too. First the connection table gets their flows."""
        if self.routes is not None and len(others := self.routes.others(batch)):
            self.restore(others)
            self.routes.remove(others)

    def have_moved(self, batch: FlowBatch, reported: NDArray[np.uint64] | None = None) -> NDArray[np.bool_]:
        """Say which flows a SYN has taken to another real: the connection table tells, or XDP has ended the route."""
        assert self.routes is not None, "there are no rules without a strategy"
        moved = self.connections.moved(batch)
        return moved if reported is None else moved | ~self.routes.stand(batch)

    @property
    def _mark_entries(self) -> MarkEntries:
        assert self.marks is not None, "there are no marks without a strategy"
        return self.marks


def meaning_of(context: Context, table: KatranTable) -> MarkMeaning | None:
    """What marks mean to the balancer; None: nothing, it has no interface with rules, or a program without marks."""
    return context.strategy.meaning if context.strategy and table.program is None else None


def _most_flows(config: Config) -> int:
    """How many flows may have a rule or wait for one."""
    return config.offload.max_rules + config.offload.waiting


def _rest_seconds(config: Config) -> float:
    """How long the number of a removed VIP or real rests: until no rule, mark or packet of it can be left."""
    return config.marking.quarantine + 2 * config.offload.grace
