# SPDX-License-Identifier: Apache-2.0
"""The balancer as the engine sees it: maps filled, program loaded, events read, marks published."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfcore.api.carriers import Carrier, carrier_defines
from nfcore.api.config import Config
from nfcore.api.context import Context
from nfcore.api.flows import FlowBatch
from nfcore.api.mark_pools import CpuPools
from nfcore.api.marks import MarkMeaning
from nfcore.api.rules import Device
from nfcore.errors import ConfigError, Problem
from nfcore.kernel import (
    BPF_SOURCES,
    EventReader,
    PerfReader,
    Program,
    RingBufferReader,
    XdpMode,
    compile_program,
)

from . import layouts as lay
from .attachment import NAME, NUMBERING, PROGRAM, Attachments
from .config import KatranTable
from .connection_table import Connections, VipFinder
from .gateway import gateway_mac
from .inventory import Inventory, Numbering, NumbersExhaustedError
from .map_writer import Change, MapWriter
from .maps import BalancerMaps, Sizes, forwarding_cpus, perf_pages, remove_pins, unpin_other_tables, wait_for_programs
from .mark_entries import MarkEntries

NO_GATEWAY = "00:00:00:00:00:00"
"""Stands in while tracing on a machine that does not have the interface."""


FIXED = ("forwarding_cpus", "lru_size", "maglev", "pin_dir")
"""Keys of the table that are read at the start only."""


class Balancer:
    """One data plane: its maps, its program, and what they were configured for."""

    name = NAME
    number = 0

    def __init__(
        self,
        config: Config,
        table: KatranTable,
        meaning: MarkMeaning | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.table = table
        self.meaning = meaning
        self._clock = clock
        self.numbering = Numbering(_rest(config), clock)
        self._use(self.numbering.plan(table))
        self._names: tuple[dict[int, str], dict[int, str]] = {}, {}
        self._history: list[str] = []
        self._generation = 0
        self.marks: MarkEntries | None = None
        self.pools: CpuPools | None = None
        self.cpus = forwarding_cpus(table.forwarding_cpus)
        self.pin_dir = Path(table.pin_dir) if table.pin_dir else None
        self._modes = {interface.name: XdpMode(interface.xdp_mode) for interface in config.interfaces}
        self._litter: Path | None = None
        self._reader: EventReader | None = None

    # Life

    def open(self, context: Context) -> None:
        """Create and fill the maps, load the program. HostError names what stands in the way."""
        if context.tracing:
            self.pin_dir = None
        self._context, self._state = context, context.state_file
        if self.pin_dir is not None:
            context.locks.folder(self.pin_dir)
        self._attachments = Attachments(context.state_file, self._modes, self.pin_dir)
        self._attachments.refuse_occupied(() if context.tracing else context.devices_of(NAME))
        gateway = self._gateway(self.table)
        # Pins of an earlier run are worth keeping; those of a start that fails are litter.
        self._litter = self.pin_dir if self.pin_dir is not None and not self.pin_dir.exists() else None
        note = self._read_note()
        sizes = Sizes(
            vips=max(self.inventory.vips) + 1,
            lru_entries=self.table.lru_size,
            mark_width=self.config.marking.width,
            meaning=self.meaning,
            events=self.config.offload.events,
        )
        self.maps = BalancerMaps.open(sizes, self.cpus, self.pin_dir)
        self.connections = Connections(self.maps)
        self.program = self._load(tracing=context.tracing)
        self._open_marks()
        self._writer = MapWriter(self.maps, self.marks)
        known = self._resume(note)
        self._history = [f"{vip}/{real}" for vip, real in self.inventory.pairs()]
        self._apply(Change.between(self.numbering, None, self.inventory, gateway, purge=known))

    def close(self) -> None:
        """Let go of program and maps; pinned ones stay in the kernel, with a note of what their numbers mean."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if hasattr(self, "_writer"):
            self._writer.close()
        if hasattr(self, "program"):
            self._attachments.detach_all(self.program)
            self.program.close()
        if hasattr(self, "maps"):
            self.maps.close()
        if self._litter is not None:
            list(remove_pins(self._litter))
            self._state.forget(NUMBERING)

    def attach(self, device: Device) -> None:
        """Attach the program to the device, in place of one that a killed run left there."""
        self._attachments.attach(device, self.program)
        self._litter = None

    def detach(self, device: Device) -> None:
        """Detach the program from the device, if it is still ours."""
        self._attachments.detach(device, self.program)

    def _load(self, *, tracing: bool) -> Program:
        defines: dict[str, int | str] = {
            "MIN_PACKETS": self.config.offload.min_packets,
            "POOL_SLOTS": lay.POOL_SLOTS,
            "EVENTS_RINGBUF" if self.config.offload.events == "ringbuf" else "EVENTS_PERF": 1,
        }
        carrier = None if self.meaning is None else Carrier(self.config.marking.carrier)
        defines |= carrier_defines(carrier, tracing=tracing)
        if self.meaning is not None:
            defines["MARK_IS_FLOW" if self.meaning is MarkMeaning.FLOW else "MARK_IS_TARGET"] = 1
        return compile_program(BPF_SOURCES / "balancer/balancer.c", PROGRAM, defines=defines, maps=self.maps.maps)

    def _gateway(self, table: KatranTable) -> str:
        if table.gateway_mac != "auto":
            return table.gateway_mac
        devices = self._context.devices_of(NAME)
        if self._context.tracing or not devices:
            return NO_GATEWAY
        return gateway_mac(devices[0].name, devices[0].ifindex)

    def _open_marks(self) -> None:
        if self.meaning is None:
            return
        self.marks = MarkEntries(self.maps, self.meaning, self.cpus)
        self.pools = self.marks.pools
        ringbuf = self.config.offload.events == "ringbuf"
        events = self.maps["hw_accel_events"]
        self._reader = (
            RingBufferReader(events, lay.HW_ACCEL_EVENT)
            if ringbuf
            else PerfReader(events, lay.HW_ACCEL_EVENT, perf_pages())
        )

    # Numbers

    def _read_note(self) -> dict[str, object] | None:
        """Number as an earlier run with pins did, if its note can be read and the numbers suffice; the note."""
        text = None if self.pin_dir is None else self._state.recall_text(NUMBERING)
        try:
            note = json.loads(text or "null")
            if not isinstance(note, dict) or type(note.get("generation")) is not int:
                return None
            self.numbering.resume(note)
            self._use(self.numbering.plan(self.table))
        except (ValueError, RecursionError, NumbersExhaustedError):
            self._start_anew()
            return None
        return note

    def _start_anew(self) -> None:
        self.numbering = Numbering(_rest(self.config), self._clock)
        self._use(self.numbering.plan(self.table))

    def _resume(self, note: dict[str, object] | None) -> bool:
        """Whether the maps are those that the note is about. If not, void whatever in them holds a number.

        That is done before anything new is written: an earlier run's program may still be forwarding by these maps.
        """
        if note is None or note.get("maps") != self.maps["reals"].id:
            self._start_anew()
            self.connections.clear()
            if self.pin_dir is not None:
                unpin_other_tables(self.pin_dir, self.cpus)
            if self.marks is not None:
                self.marks.forget()
            return False
        generation = note["generation"]
        assert isinstance(generation, int)  # _read_note() looked
        self._generation = generation
        if self.marks is not None:
            self._generation = max(generation, self.marks.newest_generation)
            # A run with marks of another kind, or without, left behind what it did not have open.
            if note.get("marks") != self.meaning:
                self.marks.forget()
        return True

    def _write_note(self, planned: Inventory | None = None) -> None:
        if self.pin_dir is not None:
            facts = {"maps": self.maps["reals"].id, "generation": self._generation, "marks": self.meaning}
            self._state.remember(NUMBERING, json.dumps(facts | self.numbering.note(planned)))

    def _use(self, inventory: Inventory) -> None:
        """Take what the maps hold from now on for the present."""
        self.inventory = inventory
        self.finder = VipFinder(inventory)
        targets = inventory.targets()
        if self.meaning is MarkMeaning.TARGET:
            targets = targets[~np.isin(targets >> np.uint64(32), list(inventory.shadowed()))]
        self._targets = targets

    # What the maps hold

    def reconfigure(self, config: Config, table: KatranTable) -> NDArray[np.uint64]:
        """Take over another table while packets flow; the targets that exist no more, sorted.

        They, and marks of them, have stopped steering by then. ConfigError with every reason, and HostError when the
        gateway does not answer, come before anything is changed.
        """
        change = self._plan(config, table)
        before, targets = self.inventory, self._targets
        self.numbering.let_rest_for(max(_rest(self.config), _rest(config)))
        self._apply(change)
        self.config, self.table = config, table
        gone = np.union1d(np.setdiff1d(targets, self._targets), self._overtaken(before))
        self._history += [f"-{target}" for target in gone.tolist()]
        self._history += [f"+{target}" for target in np.setdiff1d(self._targets, targets).tolist()]
        return gone

    def _plan(self, config: Config, table: KatranTable) -> Change:
        before, after = (each.model_dump(mode="json", include=set(FIXED)) for each in (self.table, table))
        problems = [
            Problem(f"{NAME}.{key}", f"is {after[key]!r} now and was {before[key]!r}; a change needs a restart")
            for key in FIXED
            if after[key] != before[key]
        ]
        vips = f"{NAME}.vips"
        try:
            inventory = self.numbering.plan(table)
        except NumbersExhaustedError as error:
            raise ConfigError(config.source, [*problems, Problem(vips, str(error))]) from None
        if len(inventory.vips) > self.maps.rings:
            message = f"names {len(inventory.vips)} VIPs; there is room for {self.maps.rings}: more need a restart"
            problems.append(Problem(vips, message))
        elif max(inventory.vips) >= self.maps.rings:
            message = f"does not fit yet: the number of a removed VIP rests for {self.numbering.vips.rest:g} s, and "
            message += f"there are {self.maps.rings}; wait, or restart"
            problems.append(Problem(vips, message))
        prefixes = {
            held.lpm_key(number).tobytes()
            for held in (self.inventory, inventory)
            for number, vip in held.vips.items()
            if vip.is_prefix
        }
        if len(prefixes) > lay.MAX_PREFIX_VIPS:
            message = f"names {len(prefixes)} prefixes, with those that are to go; at most {lay.MAX_PREFIX_VIPS} fit"
            problems.append(Problem(vips, message))
        if problems:
            raise ConfigError(config.source, problems)
        gateway = None if table.gateway_mac == self.table.gateway_mac else self._gateway(table)
        moved = set(inventory.targets().tolist()) != set(self.inventory.targets().tolist())
        return Change.between(self.numbering, self.inventory, inventory, gateway, purge=moved)

    def _overtaken(self, before: Inventory) -> NDArray[np.uint64]:
        """Targets of VIPs that share packets with a VIP which was not there before and goes first.

        Under dest-id they are gone already, as all that have no mark of their own.
        """
        had, now = before.winners, self.inventory.winners
        fewer = [n for n in now if n in before.vips and now[n] - had.get(n, frozenset())]
        overtaken: NDArray[np.uint64] = self._targets[np.isin(self._targets >> np.uint64(32), fewer)]
        return overtaken

    def _apply(self, change: Change) -> None:
        """Bring the maps from what is numbered now to what is planned, while packets flow."""
        self._generation = max(self._generation + 1, time.time_ns() // 1_000_000_000 & 0xFFFF_FFFF)
        # A run that is killed between here and the end leaves a note of all that may be in the maps.
        self._write_note(change.inventory)
        self._writer.add(change, self._generation)
        self._use(change.inventory)
        self._writer.remove(change)
        if change.purge:
            self._void()
            wait_for_programs()
            self.connections.purge(self.inventory, self.finder)
            self._void()
        self.numbering.take(change.inventory)
        self._write_note()
        self._names[0].update({number: vip.name for number, vip in self.inventory.vips.items()})
        self._names[1].update({number: str(address) for address, number in self.inventory.reals.items()})

    def _void(self) -> None:
        if self.marks is not None:
            self.marks.void_foreign(self._targets, self.finder)

    # Marks

    def wake_fds(self) -> Sequence[int]:
        """The event buffer's."""
        return () if self._reader is None else self._reader.fds

    def read_events(self, limit: int) -> FlowBatch:
        """Take the reports that XDP has made."""
        if self._reader is None:
            return FlowBatch.empty()
        events = self._reader.read(limit)
        batch = FlowBatch.empty(len(events))
        rows = batch.rows
        rows["key"], rows["nf"], rows["family"] = events["flow"], self.number, events["family"]
        for name in ("ifindex", "cpu", "kind", "mark", "packets"):
            rows[name] = events[name]
        rows["target"] = events["vip_num"].astype(np.uint64) << np.uint64(32) | events["real_key"]
        return batch

    def targets(self) -> FlowBatch:
        """All (VIP, real) pairs in the TOML's order; under dest-id those that can have a mark."""
        batch = FlowBatch.empty(len(self._targets))
        batch.rows["nf"] = self.number
        batch.rows["target"] = self._targets
        return batch

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Give the VIP number of each target."""
        return (targets >> np.uint64(32)).astype(np.uint32)

    def describe(self, target: int) -> Mapping[str, str]:
        """Name VIP and real; also of what is gone, until its number is given again."""
        vip, real = target >> 32, target & 0xFFFF_FFFF
        return {"vip": self._names[0].get(vip, f"VIP {vip}"), "real": self._names[1].get(real, f"real {real}")}

    def fingerprint(self) -> bytes:
        """What decides what a mark means.

        For flow-id, the map that says so: each entry tells by itself whether it still holds. For dest-id, the
        targets in the order in which they were given marks, with their numbers.
        """
        if self.meaning is MarkMeaning.FLOW:
            return repr(("flow", self.maps["hw_accel_mapping"].id)).encode()
        return repr((self.inventory.vip_numbers, self.inventory.real_numbers, self._history)).encode()

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Read the targets of a former run's marks: dest-id's are numbered alike, flow-id's need pinned maps."""
        return self._live_marks.recognise(batch, marks)

    def publish(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Write what the marks mean, or check what XDP wrote; True where the entry stands and is live."""
        return self._live_marks.publish(batch, marks, self._targets)

    def retire(self, marks: NDArray[np.uint32]) -> None:
        """Erase what the marks meant."""
        self._live_marks.retire(marks)

    def restore(self, batch: FlowBatch) -> None:
        """Put flows back into the connection tables; those whose target is gone are left out."""
        self.connections.restore(batch, self.inventory, self.finder)

    @property
    def _live_marks(self) -> MarkEntries:
        assert self.marks is not None, "nobody gives marks without a strategy"
        return self.marks


def _rest(config: Config) -> float:
    """Seconds that the number of something removed rests: until no rule, mark or packet of it can be left."""
    return config.marking.quarantine + 2 * config.offload.grace
