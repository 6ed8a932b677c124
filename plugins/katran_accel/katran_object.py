# SPDX-License-Identifier: Apache-2.0
"""A compiled object with Katran's maps in place of nfcore's program.

file ──► maps compared with the published layouts ──► loaded, on the maps that are pinned already ──► ObjectMaps

Its maps have the sizes that the file gives them. What nfcore's program has beside Katran's maps is not there.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfcore.errors import HostError
from nfcore.kernel import Map, MapFlags, MapSpec, MapType, ObjectFile, Program, ensure_bpffs, pinned_flags

from . import layouts as lay
from .config import NAME
from .features import ALL_FEATURES, NO_FEATURES
from .inventory import Inventory
from .maps import OF_OBJECTS, PROGRAM, BalancerMaps, Sizes, map_specs, open_kept, open_table

PUBLISHED = {
    *("vip_map", "ch_rings", "reals", "lru_mapping", "fallback_cache", "global_lru_maps", "fallback_glru", "ctl_array"),
    *("stats", "reals_stats", "lru_miss_stats", "vip_miss_stats", "quic_stats_map", "stable_rt_stats"),
    *("tpr_stats_map", "decap_vip_stats", "server_id_stats", "server_id_map", "vip_to_down_reals_map"),
    *("lpm_src_v4", "lpm_src_v6", "decap_dst", "pckt_srcs", "subprograms", "event_pipe"),
}
"""Katran's maps. An object needs those of them that the configuration uses: see also :meth:`ObjectMaps.lacking`."""
IN_SHARED_MEMORY = ("ch_rings", "server_id_map")
"""Maps that are created with a flag more than the file gives them, which no program notices. By system calls it takes
300 times as long to fill them; so are filled those that somebody else has made."""
OF_ANY_SIZE = ("fallback_cache", "lru_mapping", "event_pipe")


@dataclass
class ObjectMaps(BalancerMaps):
    """The maps of a compiled object, as far as nfcore drives them."""

    is_own = False

    def write_ring(self, number: int, ring: NDArray[np.uint32]) -> None:
        """Write a ring slot by slot under the packets; in a map that somebody else has made, by system calls."""
        if self["ch_rings"].spec.flags & MapFlags.MMAPABLE:
            super().write_ring(number, ring)
        else:
            self["ch_rings"].write_array(number * lay.RING_SLOTS, ring)

    def lacking(self, inventory: Inventory) -> str:
        """Say what the object does not have for an inventory; empty when there is all."""
        return _lacking(self.maps, inventory)


def open_object(
    path: Path, sizes: Sizes, inventory: Inventory, cpus: list[int], pin_dir: Path | None
) -> tuple[ObjectMaps, Program]:
    """Load the object on the maps that are pinned in `pin_dir`, and on new ones, which are pinned there, too.

    HostError, with the key of the TOML: libbpf or the kernel refuses it, it has no program, lacks a map that the
    inventory needs, or a map or pin has another shape. Then nothing is left, and pinned maps are as they were.
    """
    with _named(), ObjectFile.open(path) as opened:
        specs, program = _driven(opened, sizes), _program_of(opened)
        if lacking := _lacking(specs, inventory):
            raise HostError(f"{path} {lacking}")
        if pin_dir is not None:
            ensure_bpffs(pin_dir)
        return _load(opened, program, specs, cpus, pin_dir)


def check_object(path: Path, sizes: Sizes, cpus: list[int], pin_dir: Path | None) -> None:
    """HostError when :func:`open_object` would refuse file or pins. Changes nothing; the verifier is not asked."""
    with _named(), ObjectFile.open(path) as opened, ExitStack() as kept:
        specs = _driven(opened, sizes)
        _program_of(opened)
        pinned = _open_pinned(kept, opened, specs, pin_dir)
        if "lru_mapping" in pinned:
            for cpu in cpus:
                open_table(pinned["lru_mapping"], _table_spec(specs, cpu), cpu, pin_dir).close()


@contextmanager
def _named() -> Iterator[None]:
    """Begin messages with the key of the TOML."""
    try:
        yield
    except HostError as error:
        raise HostError(f"{NAME}.program: {error}") from error


def _load(
    opened: ObjectFile, program: str, specs: dict[str, MapSpec], cpus: list[int], pin_dir: Path | None
) -> tuple[ObjectMaps, Program]:
    with ExitStack() as undone, ExitStack() as meanwhile:
        pinned = _open_pinned(meanwhile, opened, specs, pin_dir)
        specs = _prepare(meanwhile, opened, specs, pinned)
        opened.load(program)
        maps = ObjectMaps({})
        undone.callback(maps.close)
        for name, spec in specs.items():
            maps.maps[name] = opened.take_map(name, spec)
        loaded = undone.enter_context(opened.take_program(program))
        if "subprograms" in maps:
            maps["subprograms"].update(0, loaded)
        for cpu in cpus:
            maps.lrus[cpu] = open_table(maps["lru_mapping"], _table_spec(specs, cpu), cpu, pin_dir)
        for cpu, table in maps.lrus.items():
            maps["lru_mapping"].update(cpu, table)
        _leave_only(maps["lru_mapping"], cpus)
        if pin_dir is not None:
            for name, each in [*maps.maps.items(), *((table.spec.name, table) for table in maps.lrus.values())]:
                if not (pin := pin_dir / name).exists():
                    each.pin(pin)
                    undone.callback(pin.unlink)
        undone.pop_all()
    return maps, loaded


def _prepare(
    meanwhile: ExitStack, opened: ObjectFile, specs: dict[str, MapSpec], pinned: dict[str, Map]
) -> dict[str, MapSpec]:
    """Say which maps the object gets, and how the others are made. Gives the specs of those that nfcore drives."""
    for name, kept in pinned.items():
        opened.reuse(name, kept)
    for name, spec in specs.items():
        if name not in pinned:
            opened.set_flags(name, spec.flags)
            # The file need not say what maps it is made for.
            if spec.inner is not None:
                opened.set_inner(name, meanwhile.enter_context(Map.create(spec.inner)))
    return {name: pinned[name].spec if name in pinned else spec for name, spec in specs.items()}


def _program_of(opened: ObjectFile) -> str:
    """The name of the program to load: Katran's, or the only one for XDP."""
    found = opened.programs
    if PROGRAM in found or len(found) == 1:
        return PROGRAM if PROGRAM in found else found[0]
    there = f"it has {', '.join(found)}" if found else "it has none for XDP"
    raise HostError(f"{opened.path} has no XDP program {PROGRAM}, and none that is the only one: {there}")


def _driven(opened: ObjectFile, sizes: Sizes) -> dict[str, MapSpec]:
    """Specify the object's maps that nfcore drives, with the sizes and flags that they have in the file.

    HostError with everything in which they differ from the published layouts.
    """
    # No spare rings: an object has as many as it has.
    least = replace(sizes, meaning=None, devices=0, rings=max(sizes.vips, 1), features=NO_FEATURES)
    every = replace(ALL_FEATURES, hashed_server_ids=sizes.features.hashed_server_ids)
    needed, driven = map_specs(least), map_specs(replace(least, features=every))
    there, problems, specs = opened.maps, [], {}
    for name, published in (OF_OBJECTS | driven).items():
        if name not in there:
            problems += [f"has no map {name}"] if name in needed.keys() & PUBLISHED else []
        else:
            problems += [f"map {name}: {text}" for text in _differences(there[name], published)]
            flags = there[name].flags
            if name in IN_SHARED_MEMORY and published.type is MapType.ARRAY:
                flags |= MapFlags.MMAPABLE
            specs[name] = replace(published, max_entries=there[name].max_entries, flags=flags)
            if published.inner is not None and (inner := there[name].inner) is not None:
                specs[name] = replace(specs[name], inner=replace(published.inner, flags=inner.flags))
    if problems:
        raise HostError(f"{opened.path} cannot be driven as Katran's: {'; '.join(problems)}")
    return specs


def _lacking(names: Container[str], inventory: Inventory) -> str:
    """Say what of the maps that an inventory needs is not there."""
    table, prefixes = inventory.table, [vip.name for vip in inventory.vips.values() if vip.is_prefix]
    routing = inventory.routing
    versions = set(np.unique(routing.source_routes.keys["family"]).tolist())
    for name, by, needed in (
        ("vip_lpm_map", "".join(prefixes[:1]), prefixes),
        ("server_id_map", f"{NAME}.server_ids", len(routing.server_ids.keys)),
        ("lpm_src_v4", f"{NAME}.source_routes", 4 in versions),
        ("lpm_src_v6", f"{NAME}.source_routes", 6 in versions),
        ("decap_dst", f"{NAME}.decap.addresses", table.decap.addresses),
        ("vip_to_down_reals_map", "a real that is down", inventory.down_reals()),
        ("pckt_srcs", f"{NAME}.source_v4 or source_v6", table.source_v4 or table.source_v6),
    ):
        if needed and name not in names:
            return f"has no map {name}, which {by} needs"
    return ""


def _differences(found: MapSpec, published: MapSpec) -> Iterator[str]:
    """Say in what a map is not as published. Most may be larger."""
    for what, is_so, should in (
        ("type", found.type.name, published.type.name),
        ("key size", found.key_size, published.key_size),
        ("value size", found.value_size, published.value_size),
    ):
        if is_so != should:
            yield f"its {what} is {is_so}, published is {should}"
    entries, wanted = found.max_entries, published.max_entries
    if found.name == "ch_rings":
        if not entries or entries % lay.RING_SLOTS:
            yield f"it has {entries} entries, which are no whole rings of {lay.RING_SLOTS}"
        elif entries < wanted:
            yield f"it has {entries // lay.RING_SLOTS} rings, and {wanted // lay.RING_SLOTS} are needed"
    elif found.name == "stats":
        # The counters that are of no VIP follow those of the VIPs.
        if entries != wanted:
            yield f"it has {entries} entries, published are {wanted}"
    elif found.name not in OF_ANY_SIZE and entries < wanted:
        yield f"it has {entries} entries, published are {wanted}"
    if found.inner is not None and published.inner is not None and found.inner.max_entries:
        inner = replace(found.inner, name="inner", max_entries=published.inner.max_entries)
        yield from (f"of the maps in it {text}" for text in _differences(inner, published.inner))


def _open_pinned(
    opened_here: ExitStack, opened: ObjectFile, specs: dict[str, MapSpec], pin_dir: Path | None
) -> dict[str, Map]:
    """Open those of the object's maps that are pinned. HostError: one is not as in the file."""
    found: dict[str, Map] = {}
    if pin_dir is None:
        return found
    for name, spec in opened.maps.items():
        if (pin := pin_dir / name).exists():
            wanted = specs.get(name, spec)
            if name in IN_SHARED_MEMORY and not pinned_flags(pin) & MapFlags.MMAPABLE:
                wanted = replace(wanted, flags=spec.flags)
            found[name] = opened_here.enter_context(open_kept(wanted, pin))
    return found


def _table_spec(specs: dict[str, MapSpec], cpu: int) -> MapSpec:
    """The spec of a CPU's connection table."""
    inner = specs["lru_mapping"].inner
    assert inner is not None  # map_specs() gave it
    return replace(inner, name=f"lru_{cpu}")


def _leave_only(tables: Map, cpus: list[int]) -> None:
    """Take the connection tables of all other CPUs away: the fallback is theirs."""
    for cpu in range(tables.spec.max_entries):
        if cpu not in cpus and tables.lookup(cpu) is not None:
            tables.delete(cpu)
