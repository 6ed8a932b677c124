# SPDX-License-Identifier: Apache-2.0
"""The balancer as the engine sees it: maps filled, program loaded, events read, marks published."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from socket import IPPROTO_UDP

import numpy as np
from numpy.typing import NDArray

from nfcore.carriers import Carrier, carrier_defines
from nfcore.config import Config
from nfcore.context import Context
from nfcore.errors import HostError
from nfcore.flows import ANY_CPU, FlowBatch
from nfcore.kernel import (
    EventReader,
    PerfReader,
    Program,
    RingBufferReader,
    XdpMode,
    attach_xdp,
    attached_xdp,
    compile_program,
    detach_xdp,
    occupied,
)
from nfcore.marks import CpuPools, MarkMeaning
from nfcore.rules import Device
from nfcore.state import State

from . import layouts as lay
from .gateway import gateway_mac
from .inventory import Inventory
from .maps import BalancerMaps, Sizes, forwarding_cpus, remove_pins
from .table import KatranTable

NAME = "katran_accel"
PROGRAM = "balancer_ingress"
PROGRAM_PIN = "balancer_ingress"
NUMBERING = f"{NAME}.numbering"
NEXT = ".next"
NO_GATEWAY = "00:00:00:00:00:00"
"""Stands in while tracing on a machine that does not have the interface."""


class Balancer:
    """One data plane: its maps, its program, and what they were configured for."""

    name = NAME
    number = 0

    def __init__(self, config: Config, table: KatranTable, meaning: MarkMeaning | None) -> None:
        self.config = config
        self.table = table
        self.meaning = meaning
        self.inventory = Inventory.of(table)
        self.shadowed = self.inventory.shadowed()
        self._targets = np.array([lay.make_target(*pair) for pair in self.inventory.pairs()], dtype=np.uint64)
        self.cpus = forwarding_cpus(table.forwarding_cpus)
        self.pin_dir = Path(table.pin_dir) if table.pin_dir else None
        self.pools: CpuPools | None = None
        self._modes = {interface.name: XdpMode(interface.xdp_mode) for interface in config.interfaces}
        self._attached: list[Device] = []
        self._litter: Path | None = None
        self._reader: EventReader | None = None

    # Life

    def open(self, context: Context) -> None:
        """Create and fill the maps, load the program. HostError names what stands in the way."""
        if context.tracing:
            self.pin_dir = None
        self._state = context.state
        if self.pin_dir is not None:
            context.claims.folder(self.pin_dir)
        self._refuse_occupied(context)
        gateway = self._gateway(context)
        # Pins of an earlier run are worth keeping; those of a start that fails are litter.
        self._litter = self.pin_dir if self.pin_dir is not None and not self.pin_dir.exists() else None
        sizes = Sizes(
            vips=len(self.inventory.vips),
            lru_entries=self.table.lru_size,
            mark_width=self.config.marking.width,
            meaning=self.meaning,
            events=self.config.offload.events,
        )
        self.maps = BalancerMaps.open(sizes, self.cpus, self.pin_dir)
        self.program = self._load(tracing=context.tracing)
        if not self._numbers_survive():
            self._forget_numbers()
        self._fill(gateway)
        self._open_marks()

    def close(self) -> None:
        """Let go of program and maps; pinned ones stay in the kernel, with a note of what their numbers mean."""
        if hasattr(self, "_state") and self.pin_dir is None:
            self._state.forget(NUMBERING)
        for device in list(self._attached):
            self.detach(device)
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if hasattr(self, "program"):
            self.program.close()
        if hasattr(self, "maps"):
            self.maps.close()
        if self._litter is not None:
            list(remove_pins(self._litter))

    def attach(self, device: Device) -> None:
        """Attach the program to the device, in place of one that a killed run left there."""
        previous = _own_program(self._state, device)
        self._attached.append(device)
        # Noted before and after: a kill in between leaves one of the two attached, and both are known.
        self._state.remember(_state_key(device, NEXT), self.program.id)
        attach_xdp(device.ifindex, self.program, mode=self._modes[device.name], replace=previous)
        self._state.remember(_state_key(device), self.program.id)
        self._state.forget(_state_key(device, NEXT))
        self._litter = None
        if self.pin_dir is not None:
            (self.pin_dir / PROGRAM_PIN).unlink(missing_ok=True)
            self.program.pin(self.pin_dir / PROGRAM_PIN)

    def detach(self, device: Device) -> None:
        """Detach the program from the device, if it is still ours."""
        if device in self._attached:
            self._attached.remove(device)
            if detach_xdp(device.ifindex, expected=self.program.id):
                self._state.forget(_state_key(device))

    def _refuse_occupied(self, context: Context) -> None:
        """HostError while nothing is changed yet: :meth:`attach` would refuse, too, but late."""
        for device in () if context.tracing else context.devices_of(NAME):
            there = attached_xdp(device.ifindex)
            if there is not None and _own_program(self._state, device) is None:
                raise HostError(occupied(device.name, there))

    def _load(self, *, tracing: bool) -> Program:
        defines: dict[str, int | str] = {
            "MIN_PACKETS": self.config.offload.min_packets,
            "POOL_SLOTS": lay.POOL_SLOTS,
            "EVENTS_RINGBUF" if self.config.offload.events == "ringbuf" else "EVENTS_PERF": 1,
        }
        if any(vip.is_prefix for vip in self.inventory.vips):
            defines["HAVE_CIDR_VIPS"] = 1
        carrier = None if self.meaning is None else Carrier(self.config.marking.carrier)
        defines |= carrier_defines(carrier, tracing=tracing)
        if self.meaning is not None:
            defines["MARK_IS_FLOW" if self.meaning is MarkMeaning.FLOW else "MARK_IS_TARGET"] = 1
        with as_file(files("nfcore") / "bpf" / "balancer.c") as source:
            return compile_program(source, PROGRAM, defines=defines, maps=self.maps.maps)

    def _gateway(self, context: Context) -> str:
        if self.table.gateway_mac != "auto":
            return self.table.gateway_mac
        devices = context.devices_of(NAME)
        if context.tracing or not devices:
            return NO_GATEWAY
        return gateway_mac(devices[0].name, devices[0].ifindex)

    def _fill(self, gateway: str) -> None:
        inventory, maps = self.inventory, self.maps
        ctl = np.zeros(1, dtype=lay.CTL_VALUE)
        ctl["mac"][0] = np.frombuffer(bytes.fromhex(gateway.replace(":", "")), dtype=np.uint8)
        maps["ctl_array"].write_array(0, ctl)
        maps["reals"].write_array(0, inventory.real_definitions())
        self._forget_other_vips()
        for number, vip in enumerate(inventory.vips):
            maps["ch_rings"].write_array(number * lay.RING_SLOTS, inventory.ring(number))
            meta = np.array((vip.flag_bits, number), dtype=lay.VIP_META)
            if vip.is_prefix:
                maps["vip_lpm_map"].update(inventory.lpm_key(number), meta)
            else:
                maps["vip_map"].update(inventory.vip_definition(number), meta)

    def _forget_other_vips(self) -> None:
        """Remove from reopened maps the VIPs that the configuration no longer names."""
        numbers = range(len(self.inventory.vips))
        wanted = {self.inventory.vip_definition(n).tobytes() for n in numbers}
        wanted |= {self.inventory.lpm_key(n).tobytes() for n in numbers}
        for name in ("vip_map", "vip_lpm_map"):
            keys, _ = self.maps[name].lookup_all()
            self.maps[name].delete_batch(keys[[key.tobytes() not in wanted for key in keys]])

    # Marks

    def _open_marks(self) -> None:
        """Make VIPs and reals live, in a new generation unless they are already."""
        if self.meaning is None:
            return
        self._vips, self._reals = self.maps["vip_map_by_id"].mmap(), self.maps["hw_accel_reals"].mmap()
        if self.meaning is MarkMeaning.FLOW:
            self._entries = self.maps["hw_accel_mapping"].mmap()
            self.pools = CpuPools(self.maps["markid_pool_mapping"].mmap(), self.cpus)
        else:
            self._entries = self.maps["hw_accel_targets"].mmap()
        if not self._vips["generation"][0]:
            self._begin_generation()
        ringbuf = self.config.offload.events == "ringbuf"
        events = self.maps["hw_accel_events"]
        self._reader = (
            RingBufferReader(events, lay.HW_ACCEL_EVENT) if ringbuf else PerfReader(events, lay.HW_ACCEL_EVENT)
        )

    def _numbers_survive(self) -> bool:
        """Whether the maps are those of an earlier run in which every number meant the same."""
        now = int.from_bytes(hashlib.blake2b(self.fingerprint(), digest_size=7).digest(), "big")
        before = self._state.recall(NUMBERING)
        self._state.remember(NUMBERING, now)
        return self.pin_dir is not None and before == now

    def _forget_numbers(self) -> None:
        """Void, in maps of an earlier run, whatever holds a number that means something else now.

        Before anything new is written: that run's program may still be forwarding by these maps.
        """
        for name in ("vip_map_by_id", "hw_accel_reals", "hw_accel_mapping", "hw_accel_targets"):
            if name in self.maps:
                shared = self.maps[name].mmap()
                shared[:] = np.zeros((), dtype=shared.dtype)
        for table in (*self.maps.lrus.values(), self.maps["fallback_cache"]):
            keys, _ = table.lookup_all()
            table.delete_batch(keys)

    def _begin_generation(self) -> None:
        """Write VIPs and reals with a generation that no entry of an earlier run can have."""
        generation = max(1, time.time_ns() // 1_000_000_000 & 0xFFFF_FFFF)
        self._entries[:] = np.zeros((), dtype=self._entries.dtype)
        for number in range(len(self.inventory.vips)):
            self._vips[number] = self.inventory.vip_by_id(number, generation)
        self._reals[1 : len(self.inventory.reals) + 1] = generation

    @property
    def events_lost(self) -> int:
        """Reports that the transport lost after XDP had sent them."""
        return self._reader.lost if self._reader else 0

    def read_events(self, limit: int) -> FlowBatch:
        """Take the reports that XDP has made."""
        if self._reader is None:
            return FlowBatch.empty()
        events = self._reader.read(limit)
        batch = FlowBatch.empty(len(events))
        rows = batch.rows
        rows["key"], rows["nf"], rows["family"] = events["flow"], self.number, events["family"]
        for name in ("ifindex", "cpu", "mark", "packets"):
            rows[name] = events[name]
        rows["target"] = events["vip_num"].astype(np.uint64) << np.uint64(32) | events["real_key"]
        return batch

    def targets(self) -> FlowBatch:
        """All (VIP, real) pairs in the TOML's order."""
        batch = FlowBatch.empty(len(self._targets))
        batch.rows["nf"] = self.number
        batch.rows["target"] = self._targets
        return batch

    def fingerprint(self) -> bytes:
        """Numbers of VIPs and reals, and whether flow-id's entries are still in the maps."""
        vips = [(vip.name, vip.flag_bits) for vip in self.inventory.vips]
        numbering = vips, [str(real) for real in self.inventory.reals]
        pairs = list(self.inventory.pairs())
        return repr((numbering, pairs, str(self.pin_dir), self.meaning)).encode()

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Read the targets of a former run's marks: dest-id's are numbered alike, flow-id's need pinned maps."""
        known: NDArray[np.bool_] = marks < len(self._entries)
        entries = self._entries[np.where(known, marks, 0)]
        vips, reals = entries["vip_num"].astype(np.int64), entries["real_key"].astype(np.int64)
        known &= (entries["vip_generation"] != 0) & (entries["vip_generation"] == self._vips["generation"][vips])
        known &= entries["real_generation"] == self._reals[reals]
        batch.rows["target"] = vips.astype(np.uint64) << np.uint64(32) | reals.astype(np.uint64)
        if self.meaning is MarkMeaning.FLOW:
            known &= entries["flow"] == batch.rows["key"]
            known &= entries["family"] == batch.rows["family"]
        return known

    def publish(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Write what the marks mean, or check what XDP wrote; True where the entry stands and is live."""
        vips = (batch.rows["target"] >> np.uint64(32)).astype(np.int64)
        reals = (batch.rows["target"] & np.uint64(0xFFFF_FFFF)).astype(np.int64)
        live: NDArray[np.bool_] = (self._vips["generation"][vips] != 0) & (self._reals[reals] != 0)
        if self.meaning is MarkMeaning.FLOW:
            entries = self._entries[marks]
            live &= entries["flow"] == batch.rows["key"]
            live &= entries["vip_generation"] == self._vips["generation"][vips]
            live &= entries["real_generation"] == self._reals[reals]
            return live
        live &= ~np.isin(vips, list(self.shadowed)) & np.isin(batch.rows["target"], self._targets)
        for row in _first_per_mark(marks, live):
            self._write_target(int(marks[row]), int(vips[row]), int(reals[row]))
        return live

    def _write_target(self, mark: int, vip_num: int, real: int) -> None:
        entry = self._entries[mark : mark + 1]
        generation, real_generation = self._vips["generation"][vip_num], self._reals[real]
        wanted = (vip_num, real, generation, real_generation)
        if tuple(entry[0]) == wanted:
            return
        # The generation goes first and comes last: a packet meanwhile takes the slow path.
        entry["vip_generation"] = 0
        entry["vip_num"], entry["real_key"], entry["real_generation"] = vip_num, real, real_generation
        entry["vip_generation"] = generation

    def retire(self, marks: NDArray[np.uint32]) -> None:
        """Erase what the marks meant."""
        self._entries["vip_generation"][marks] = 0

    def restore(self, batch: FlowBatch) -> None:
        """Put flows back into the connection table of the CPU that reported them, of all CPUs when that is unknown.

        Entries that are there keep their real; those of UDP flows are made fresh, since marked packets did not.
        """
        keys, rows = self._lru_keys(batch), batch.rows
        values = np.zeros(len(batch), dtype=lay.REAL_POS_LRU)
        values["pos"] = (rows["target"] & np.uint64(0xFFFF_FFFF)).astype(np.uint32)
        values["atime"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        for cpu, table in [*self.maps.lrus.items(), (None, self.maps["fallback_cache"])]:
            mine = rows["cpu"] == ANY_CPU
            mine |= ~np.isin(rows["cpu"], list(self.maps.lrus)) if cpu is None else rows["cpu"] == cpu
            if not mine.any():
                continue
            there, _ = table.lookup_batch_keys(keys[mine])
            due = ~there | (keys["proto"][mine] == IPPROTO_UDP)
            table.update_batch(keys[mine][due], values[mine][due])

    def _lru_keys(self, batch: FlowBatch) -> NDArray[np.void]:
        """Keys of flows in the connection table: what the VIP's flags ignore is zero there (bpf/vip.h)."""
        keys = np.ascontiguousarray(batch.rows["key"])
        vips = (batch.rows["target"] >> np.uint64(32)).astype(np.int64)
        flags = np.array([vip.flag_bits for vip in self.inventory.vips])[vips]
        any_port = np.array([vip.port == 0 for vip in self.inventory.vips])[vips]
        keys["sport"][(flags & lay.VipFlag.HASH_NO_SRC_PORT) != 0] = 0
        per_port = (flags & (lay.VipFlag.HASH_DPORT_ONLY | lay.VipFlag.HASH_SRC_DST_PORT)) != 0
        keys["dport"][any_port & ~per_port] = 0
        return keys


def _first_per_mark(marks: NDArray[np.uint32], wanted: NDArray[np.bool_]) -> list[int]:
    rows = np.flatnonzero(wanted)
    return [int(rows[first]) for first in np.unique(marks[rows], return_index=True)[1]]


def _state_key(device: Device, suffix: str = "") -> str:
    return f"{NAME}.program.{device.ifindex}{suffix}"


def _own_program(state: State, device: Device) -> int | None:
    """Id of the program on the device, if this or an earlier run put it there."""
    there = attached_xdp(device.ifindex)
    known = {state.recall(_state_key(device)), state.recall(_state_key(device, NEXT))}
    return there.id if there is not None and there.id in known else None


def remove_leftovers(context: Context, pin_dir: Path | None) -> Iterator[str]:
    """Detach the program that a killed run left, and remove its pins; a line for each thing removed."""
    for device in context.devices_of(NAME):
        program = _own_program(context.state, device)
        if program is not None and detach_xdp(device.ifindex, expected=program):
            yield f"{NAME}: detached program {program} from {device.name}"
        for suffix in ("", NEXT):
            context.state.forget(_state_key(device, suffix))
    if pin_dir is not None:
        for pin in remove_pins(pin_dir):
            yield f"{NAME}: removed pin {pin}"
