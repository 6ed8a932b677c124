# SPDX-License-Identifier: Apache-2.0
"""The maps of the data plane: entries, the filter in front of them, targets, marks, counters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nfcore.api.marks import MarkMeaning
from nfcore.kernel import (
    Map,
    MapFlags,
    MapSpec,
    MapType,
    check_bpffs,
    ensure_bpffs,
    pinned_entries,
    possible_cpus,
    remove_bpffs,
)

from . import layouts as lay

FILTER_BITS_PER_ENTRY = 16
"""One packet in a hundred is looked up in vain when all entries are in use."""
FEWEST_FILTER_BITS = 1 << 14
COUNTS, ENDED = "flow_counts", "flow_ended"
"""The maps that are pinned, since counters outlive the daemon as their entries do. All others are new at a start. ENDED
is user space's alone: what rules have counted that are gone from the NIC."""

_U32, _U64, _I64 = np.dtype("<u4"), np.dtype("<u8"), np.dtype("<i8")


@dataclass(frozen=True)
class Sizes:
    """Sizes of the maps, as far as the configuration decides them."""

    entries: int
    """Of each family; and how many slots there are for counters."""
    targets: int
    mark_width: int
    links: int = 256
    """Interfaces of redirects."""

    @property
    def filter_log2(self) -> int:
        """Binary logarithm of the number of bits of a filter."""
        return (max(self.entries * FILTER_BITS_PER_ENTRY, FEWEST_FILTER_BITS) - 1).bit_length()

    @property
    def buckets_log2(self) -> int:
        """Binary logarithm of the number of buckets: with two entries in each, a fortieth of them overflows."""
        return max(self.entries // 2 - 1, 1).bit_length()


def map_specs(sizes: Sizes, meaning: MarkMeaning | None) -> dict[str, MapSpec]:
    """Specify every map of the program; that of marks only when marks are used."""
    array, per_cpu, shared = MapType.ARRAY, MapType.PERCPU_ARRAY, MapFlags.MMAPABLE
    specs = [
        MapSpec("flow_targets", array, _U32, lay.TARGET, sizes.targets + 1, shared),
        MapSpec("flow_police", array, _U32, _I64, sizes.targets + 1, shared),
        MapSpec(COUNTS, array, _U32, lay.FLOW_COUNT, possible_cpus() * sizes.entries, shared),
        MapSpec(ENDED, array, _U32, lay.RULE_COUNT, sizes.entries, shared),
        MapSpec("flow_totals", per_cpu, _U32, lay.FLOW_TOTALS, 1),
        MapSpec("flow_clock", array, _U32, _U64, 1, shared),
        MapSpec("flow_links", MapType.DEVMAP, _U32, _U32, sizes.links),
        MapSpec("flow_cpus", MapType.CPUMAP, _U32, _U32, possible_cpus()),
    ]
    for family in (4, 6):
        key, element = lay.MATCH_KEY[family], lay.filter_layout(sizes.filter_log2)
        buckets = MapSpec(f"flow_buckets_v{family}", array, _U32, lay.BUCKET[family], 1 << sizes.buckets_log2, shared)
        # What does not fit into its bucket is seldom, so the kernel allocates it as it comes.
        overflow = MapSpec(
            f"flow_overflow_v{family}", MapType.HASH, key, lay.FLOW_ENTRY, sizes.entries, MapFlags.NO_PREALLOC
        )
        specs += [buckets, overflow]
        specs.append(MapSpec(f"flow_filter_v{family}", array, _U32, element, 1, shared))
    if meaning is not None:
        value = lay.FLOW_MARK if meaning is MarkMeaning.FLOW else _U32
        specs.append(MapSpec("flow_marks", array, _U32, value, 1 << sizes.mark_width, shared))
    return {spec.name: spec for spec in specs}


def open_maps(sizes: Sizes, meaning: MarkMeaning | None, pin_dir: Path | None) -> dict[str, Map]:
    """Create the maps; with `pin_dir` the counters of an earlier run go on. HostError: what is pinned is no counter."""
    opened: dict[str, Map] = {}
    try:
        for name, spec in map_specs(sizes, meaning).items():
            pinned = pin_dir if name in (COUNTS, ENDED) else None
            opened[name] = Map.create(spec) if pinned is None else _open_pinned(spec, pinned)
    except BaseException:
        for each in opened.values():
            each.close()
        raise
    return opened


def _open_pinned(spec: MapSpec, pin_dir: Path) -> Map:
    ensure_bpffs(pin_dir)
    pin = pin_dir / spec.name
    if pin.exists() and pinned_entries(pin) == spec.max_entries:
        return Map.open_pinned(pin, spec)
    created = Map.create(spec)
    try:
        if pin.exists():
            _copy_counters(pin, created)
            pin.unlink()
        created.pin(pin)
    except BaseException:
        created.close()
        raise
    return created


def _copy_counters(pin: Path, to: Map) -> None:
    """Copy counters to a map for another number of entries. Each CPU has a block of them, or all have one together."""
    blocks = possible_cpus() if pin.name == COUNTS else 1
    with Map.open_pinned(pin, replace(to.spec, max_entries=pinned_entries(pin))) as old:
        before, after = (each.mmap().reshape(blocks, -1) for each in (old, to))
        kept = min(before.shape[1], after.shape[1])
        after[:, :kept] = before[:, :kept]


def check_pins(pin_dir: Path) -> None:
    """HostError when :func:`open_maps` would refuse what is pinned: counters for any number of entries fit."""
    check_bpffs(pin_dir)
    specs = map_specs(Sizes(1, 1, 1), None)
    for pin in (pin_dir / COUNTS, pin_dir / ENDED):
        if pin.exists():
            Map.open_pinned(pin, replace(specs[pin.name], max_entries=pinned_entries(pin))).close()


def remove_pins(pin_dir: Path) -> Iterator[Path]:
    """Unpin the counters and remove the folder, with the file system mounted for it. Yields what was there."""
    for pin in (pin_dir / COUNTS, pin_dir / ENDED):
        if pin.exists():
            pin.unlink()
            yield pin
    remove_bpffs(pin_dir)
