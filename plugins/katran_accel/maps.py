# SPDX-License-Identifier: Apache-2.0
"""The balancer's maps: Katran's, with Katran's names and layouts, and those of the marks."""

from __future__ import annotations

import mmap as memory_map
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import FLOW_KEY
from nfcore.api.marks import MarkMeaning
from nfcore.errors import HostError
from nfcore.kernel import (
    Map,
    MapFlags,
    MapSpec,
    MapType,
    check_bpffs,
    ensure_bpffs,
    online_cpus,
    pinned_entries,
    possible_cpus,
    remove_bpffs,
)
from nfcore.refusals import explain

from . import layouts as lay
from .capture.layouts import CAPTURE_MAPS, EVENT_PIPE
from .features import ALL_FEATURES, NO_FEATURES, PROGRAMS, Features
from .inventory import Inventory

PROGRAM = "balancer_ingress"
"""Name of the program and of its pin."""
U32 = np.dtype("<u4")
U64 = np.dtype("<u8")
FALLBACK_ENTRIES = 1000
LEAST_ROUTES = 1 << 17
"""`hw_accel_routes` has room for a power of two of flows, 16 bytes each and 96 more while it has a rule."""
OF_ONE_RUN = (
    *("hw_accel_events", "markid_pool_mapping", "hw_accel_devices", "hw_accel_macs"),
    *(spec.name for spec in CAPTURE_MAPS),
)
MOST_DEVICES = 256
"""Of `hw_accel_devices`: interfaces, and ports of these."""
MOST_MACS = 256
"""Of `hw_accel_macs`."""
LRU_CPUS = 128
SPARE_RINGS = 16
"""`ch_rings` has room for a multiple of so many rings, at least one of them spare: a reload may add VIPs."""
_ELEMENT_SPACING = 8
"""Bytes from one element of an array map to the next in memory."""
EVENT_BYTES = 1 << 23
"""Size of the ring buffer: 116,000 reports."""
PERF_PAGES = 8192
"""Pages of all CPUs' perf buffers together: with two CPUs, 190,000 reports each."""
FEWEST_PERF_PAGES = 64
RENEWED = frozenset({*OF_ONE_RUN, "ch_rings", "hw_accel_next_hops"})
"""Maps that a start need not find as it wants them: reports, pools and devices are of one run; rings are built and next
hops found at every start, and their maps kept only when they fit."""


OF_OBJECTS = {
    "pckt_srcs": MapSpec("pckt_srcs", MapType.ARRAY, U32, lay.REAL_DEFINITION, 2),
    "subprograms": MapSpec("subprograms", MapType.PROG_ARRAY, U32, U32, 1),
}
"""Maps that are driven when a compiled object has them, whatever the configuration uses: the sources of outer headers;
the programs that the object calls, in slot 0 itself."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the maps, as far as the configuration decides them."""

    vips: int
    """The largest VIP number and one."""
    lru_entries: int
    mark_width: int
    meaning: MarkMeaning | None
    events: str
    rings: int = 0
    """Rings that fit into `ch_rings`; 0: as many as `vips` needs."""
    routes: int = LEAST_ROUTES
    """Flows with rules that fit into `hw_accel_routes`."""
    features: Features = NO_FEATURES
    devices: int = 0
    """Interfaces that the program is attached to, at least 1 for a program that is to be loaded."""
    capture: bool = False
    introspection: bool = False


def ring_room(vips: int) -> int:
    """How many rings `ch_rings` has room for when there are so many VIP numbers."""
    return min(lay.MAX_VIPS, (vips // SPARE_RINGS + 1) * SPARE_RINGS)


def route_room(flows: int) -> int:
    """How many flows with rules `hw_accel_routes` has room for when there are to be so many."""
    return max(LEAST_ROUTES, 1 << (flows - 1).bit_length())


def map_specs(sizes: Sizes) -> dict[str, MapSpec]:
    """Specify every map of the program; those of marks only when marks are used."""
    lru = MapSpec("lru", MapType.LRU_HASH, FLOW_KEY, lay.REAL_POS_LRU, sizes.lru_entries)
    array, hashed, per_cpu = MapType.ARRAY, MapType.HASH, MapType.PERCPU_ARRAY
    specs = [
        MapSpec("vip_map", hashed, lay.VIP_DEFINITION, lay.VIP_META, lay.MAX_VIPS),
        MapSpec(
            "vip_lpm_map", MapType.LPM_TRIE, lay.VIP_LPM_KEY, lay.VIP_META, lay.MAX_PREFIX_VIPS, MapFlags.NO_PREALLOC
        ),
        MapSpec(
            "vip_addresses", MapType.LPM_TRIE, lay.VIP_ADDRESS_KEY, lay.VIP_META, lay.MAX_VIPS, MapFlags.NO_PREALLOC
        ),
        _ring_spec(sizes.rings or ring_room(sizes.vips)),
        MapSpec("reals", array, U32, lay.REAL_DEFINITION, lay.MAX_REALS),
        MapSpec("lru_mapping", MapType.ARRAY_OF_MAPS, U32, U32, LRU_CPUS, inner=lru),
        MapSpec("fallback_cache", MapType.LRU_HASH, FLOW_KEY, lay.REAL_POS_LRU, FALLBACK_ENTRIES),
        MapSpec("stats", per_cpu, U32, lay.LB_STATS, 2 * lay.MAX_VIPS),
        MapSpec("reals_stats", per_cpu, U32, lay.LB_STATS, lay.MAX_REALS),
        MapSpec("ctl_array", array, U32, lay.CTL_VALUE, 16),
        MapSpec("vip_slow_stats", per_cpu, U32, lay.LB_STATS, lay.MAX_VIPS),
        MapSpec("real_slow_stats", per_cpu, U32, lay.LB_STATS, lay.MAX_REALS),
        MapSpec("hw_accel_stats", per_cpu, U32, U64, len(lay.AccelCounter)),
    ]
    specs += [*sizes.features.map_specs(), *_device_specs(sizes), *_mark_specs(sizes), *_sample_specs(sizes)]
    return {spec.name: spec for spec in specs}


def _device_specs(sizes: Sizes) -> Iterator[MapSpec]:
    """Specify what bpf/balancer/device.h reads. One device needs no look-up by its ifindex."""
    if sizes.devices:
        several = sizes.devices > 1
        kind, entries = (MapType.HASH, MOST_DEVICES) if several else (MapType.ARRAY, 1)
        yield MapSpec("hw_accel_devices", kind, U32, lay.DEVICE, entries)
        yield MapSpec("hw_accel_macs", MapType.HASH, lay.CTL_VALUE, U32, MOST_MACS)
        hops = 2 * lay.MAX_REALS * sizes.devices
        yield MapSpec("hw_accel_next_hops", MapType.ARRAY, U32, lay.CTL_VALUE, hops)


def _sample_specs(sizes: Sizes) -> Iterator[MapSpec]:
    if sizes.capture:
        yield from CAPTURE_MAPS
    if sizes.introspection:
        yield EVENT_PIPE


def _ring_spec(rings: int) -> MapSpec:
    # Rings are written in shared memory: by system calls that takes 300 times as long.
    return MapSpec("ch_rings", MapType.ARRAY, U32, U32, rings * lay.RING_SLOTS, MapFlags.MMAPABLE)


def _route_spec(flows: int) -> MapSpec:
    # Memory for a route is taken when it is written: most flows of `max_rules` do not exist.
    return MapSpec("hw_accel_routes", MapType.HASH, FLOW_KEY, lay.HW_ACCEL_ROUTE, flows, MapFlags.NO_PREALLOC)


def _mark_specs(sizes: Sizes) -> Iterator[MapSpec]:
    if sizes.meaning is None:
        return
    marks, shared = 1 << sizes.mark_width, MapFlags.MMAPABLE
    yield _route_spec(sizes.routes)
    yield MapSpec("vip_map_by_id", MapType.ARRAY, U32, lay.VIP_BY_ID, lay.MAX_VIPS, shared)
    yield MapSpec("hw_accel_reals", MapType.ARRAY, U32, U32, lay.MAX_REALS, shared)
    if sizes.meaning is MarkMeaning.FLOW:
        yield MapSpec("hw_accel_mapping", MapType.ARRAY, U32, lay.HW_ACCEL_FLOW, marks, shared)
        yield MapSpec("markid_pool_mapping", MapType.ARRAY, U32, lay.MARK_POOL, possible_cpus(), shared)
    else:
        yield MapSpec("hw_accel_targets", MapType.ARRAY, U32, lay.HW_ACCEL_TARGET, marks, shared)
    if sizes.events == "ringbuf":
        yield MapSpec("hw_accel_events", MapType.RINGBUF, None, None, EVENT_BYTES)
    else:
        yield MapSpec("hw_accel_events", MapType.PERF_EVENT_ARRAY, U32, U32, possible_cpus())


@dataclass
class BalancerMaps:
    """The maps of one balancer, created or reopened from their pins."""

    is_own = True
    """Whether they are those of nfcore's program. Another one knows neither nfcore's maps nor its flags."""
    maps: dict[str, Map]
    lrus: dict[int, Map] = field(default_factory=dict)
    """CPU → its connection table."""

    def __getitem__(self, name: str) -> Map:
        return self.maps[name]

    def __contains__(self, name: str) -> bool:
        return name in self.maps

    @property
    def rings(self) -> int:
        """How many rings fit into `ch_rings`."""
        return self["ch_rings"].spec.max_entries // lay.RING_SLOTS

    def lacking(self, inventory: Inventory) -> str:
        """Say what there is not for an inventory; empty: nfcore's program has all."""
        return ""

    def write_ring(self, number: int, ring: NDArray[np.uint32]) -> None:
        """Write the ring of a VIP number below :attr:`rings`, slot by slot under the packets; shape (RING_SLOTS,)."""
        table = self["ch_rings"]
        # The kernel maps whole pages. Only this ring is mapped: mapping all of them takes longer than writing one, and
        # all would count as the daemon's memory.
        first = number * lay.RING_SLOTS * _ELEMENT_SPACING
        before = first % memory_map.ALLOCATIONGRANULARITY
        try:
            with memory_map.mmap(table.fd, before + lay.RING_SLOTS * _ELEMENT_SPACING, offset=first - before) as memory:
                np.ndarray(lay.RING_SLOTS, U32, buffer=memory, offset=before, strides=(_ELEMENT_SPACING,))[:] = ring
        except OSError as error:
            raise HostError(f"cannot map ring {number} of map {table.spec.name}: {explain(error)}") from error

    @classmethod
    def open(cls, sizes: Sizes, cpus: list[int], pin_dir: Path | None) -> BalancerMaps:
        """Create the maps, or open those that are pinned in `pin_dir`. HostError when a pin has another shape."""
        maps = cls({})
        try:
            if pin_dir is not None:
                ensure_bpffs(pin_dir)
            adopted = pin_dir is not None and are_of_others(pin_dir)
            if adopted and pin_dir is not None:
                # Before the first of them changes: somebody's program may forward by them.
                check_pins(sizes, cpus, pin_dir)
            rings = 0 if pin_dir is None else _pinned_rings(pin_dir, sizes.vips)
            routes = sizes.routes if pin_dir is None else _enlarged_routes(pin_dir, sizes.routes)
            specs = map_specs(replace(sizes, rings=rings, routes=routes))
            renewed = RENEWED - ({"ch_rings"} if rings else set())
            # A killed run's program forwards by `reals`, so it must find the groups that are written there.
            hops = None if pin_dir is None else pin_dir / "hw_accel_next_hops"
            if hops is not None and hops.exists() and pinned_entries(hops) == specs[hops.name].max_entries:
                renewed -= {hops.name}
            for name, spec in specs.items():
                pinned_in = None if name == PROGRAMS else pin_dir
                maps.maps[name] = _open_or_create(spec, pinned_in, renew=name in renewed)
            for cpu in cpus:
                inner = specs["lru_mapping"].inner
                assert inner is not None  # map_specs() gave it
                table = replace(inner, name=f"lru_{cpu}")
                if adopted:
                    maps.lrus[cpu] = open_table(maps["lru_mapping"], table, cpu, pin_dir)
                    _pin_if_new(maps.lrus[cpu], pin_dir)
                else:
                    maps.lrus[cpu] = _open_or_create(table, pin_dir, renew=False)
                maps["lru_mapping"].update(cpu, maps.lrus[cpu])
        except BaseException:
            maps.close()
            raise
        return maps

    def close(self) -> None:
        """Close every map. The kernel keeps those that a program or a pin refers to."""
        for opened in [*self.maps.values(), *self.lrus.values()]:
            opened.close()
        self.maps.clear()
        self.lrus.clear()


def _pinned_rings(pin_dir: Path, vips: int) -> int:
    """How many rings fit into the pinned `ch_rings`.

    0 when there is none or it cannot be used: too small for so many VIP numbers, or not mappable, as earlier versions
    made it.
    """
    pin = pin_dir / "ch_rings"
    rings = pinned_entries(pin) // lay.RING_SLOTS if pin.exists() else 0
    if rings < max(vips, 1):
        return 0
    try:
        Map.open_pinned(pin, _ring_spec(rings)).close()
    except HostError:
        return 0
    return rings


def _enlarged_routes(pin_dir: Path, wanted: int) -> int:
    """How many flows fit into the pinned `hw_accel_routes`, which is replaced by a larger one when they are too few.

    `wanted` when there is none.
    """
    pin = pin_dir / "hw_accel_routes"
    if not pin.exists():
        return wanted
    room = pinned_entries(pin)
    if room >= wanted:
        return room
    with Map.open_pinned(pin, _route_spec(room)) as old, Map.create(_route_spec(wanted)) as new:
        new.update_batch(*old.lookup_all())
        pin.unlink()
        new.pin(pin)
    return wanted


def are_of_others(pin_dir: Path) -> bool:
    """Whether another control plane has pinned Katran's maps in a folder: nfcore's program has one more."""
    return [(pin_dir / name).exists() for name in ("vip_map", "reals", "vip_addresses")] == [True, True, False]


def open_table(tables: Map, spec: MapSpec, cpu: int, pin_dir: Path | None) -> Map:
    """Open the connection table of a CPU: the pinned one, that which another control plane has given it, or a new one.

    HostError: it has another shape.
    """
    if pin_dir is not None and (pin := pin_dir / spec.name).exists():
        return open_kept(spec, pin)
    number = tables.lookup(cpu)
    return Map.create(spec) if number is None else Map.from_id(int(number), spec)


def _pin_if_new(table: Map, pin_dir: Path | None) -> None:
    if pin_dir is not None and not (pin := pin_dir / table.spec.name).exists():
        table.pin(pin)


def unpin_other_tables(pin_dir: Path, cpus: list[int]) -> None:
    """Unpin the connection tables of CPUs that have none now."""
    kept = {f"lru_{cpu}" for cpu in cpus}
    for pin in list(pin_dir.glob("lru_[0-9]*")):
        if pin.name not in kept:
            pin.unlink()


def wait_for_programs() -> None:
    """Wait until every program run that began before this call has ended: it may use what it read from maps earlier.

    Changes a map of maps for that: the kernel waits for such runs before it returns. Takes tens of milliseconds.
    """
    spec = MapSpec("none", MapType.ARRAY, U32, U32, 1)
    with (
        Map.create(spec) as inner,
        Map.create(MapSpec("barrier", MapType.ARRAY_OF_MAPS, U32, U32, 1, inner=spec)) as outer,
    ):
        outer.update(0, inner)


def _open_or_create(spec: MapSpec, pin_dir: Path | None, *, renew: bool) -> Map:
    if pin_dir is None:
        return Map.create(spec)
    pin = pin_dir / spec.name
    if pin.exists() and not renew:
        return open_kept(spec, pin)
    pin.unlink(missing_ok=True)
    created = Map.create(spec)
    created.pin(pin)
    return created


def open_kept(spec: MapSpec, pin: Path) -> Map:
    """Open a pinned map. HostError, with what to do, when it is not like `spec`."""
    try:
        return Map.open_pinned(pin, spec)
    except HostError as error:
        advice = "the pins are of another configuration: run nfcore cleanup CONFIG, or set another pin_dir"
        raise HostError(f"{error}; {advice}") from None


def check_pins(sizes: Sizes, cpus: list[int], pin_dir: Path) -> None:
    """HostError when :meth:`BalancerMaps.open` would refuse what is pinned. Changes nothing."""
    check_bpffs(pin_dir)
    specs = map_specs(sizes)
    inner = specs["lru_mapping"].inner
    assert inner is not None  # map_specs() gave it
    routes = pin_dir / "hw_accel_routes"
    if routes.name in specs and routes.exists():
        specs[routes.name] = _route_spec(pinned_entries(routes))  # of any size: too small a one is replaced
    kept = [spec for name, spec in specs.items() if name not in RENEWED]
    for spec in [*kept, *(replace(inner, name=f"lru_{cpu}") for cpu in cpus)]:
        if (pin_dir / spec.name).exists():
            open_kept(spec, pin_dir / spec.name).close()
    if are_of_others(pin_dir) and (pin := pin_dir / "lru_mapping").exists():
        with open_kept(specs[pin.name], pin) as tables:
            for cpu in cpus:
                open_table(tables, replace(inner, name=f"lru_{cpu}"), cpu, pin_dir).close()


def forwarding_cpus(wanted: list[int] | None) -> list[int]:
    """CPUs that get a connection table: those wanted, or all that are online."""
    return online_cpus() if wanted is None else list(wanted)


def perf_pages() -> int:
    """Pages of one CPU's perf buffer, a power of two."""
    return max(FEWEST_PERF_PAGES, 1 << (PERF_PAGES // len(online_cpus())).bit_length() - 1)


def remove_pins(pin_dir: Path) -> Iterator[Path]:
    """Unpin the balancer's maps and program and remove the folder, with the file system mounted for it."""
    names = {PROGRAM, *OF_OBJECTS}
    for meaning in MarkMeaning:
        sizes = Sizes(1, 1, 1, meaning, "ringbuf", devices=1, capture=True, introspection=True)
        names |= map_specs(replace(sizes, features=ALL_FEATURES)).keys()
    for pin in sorted(pin_dir.iterdir()) if pin_dir.is_dir() else ():
        if pin.name in names or pin.name.startswith("lru_"):
            pin.unlink()
            yield pin
    remove_bpffs(pin_dir)
