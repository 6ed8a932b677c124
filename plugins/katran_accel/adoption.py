# SPDX-License-Identifier: Apache-2.0
"""Maps that a Katran server has pinned: they are taken over with the numbers that it has given to VIPs and reals.

So its connections stay, and its program, which may run meanwhile, goes on forwarding as it did.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfcore.errors import HostError
from nfcore.kernel import Map, pinned_entries, pinned_flags

from . import layouts as lay
from .inventory import Inventory, identity
from .maps import Sizes, are_of_others, map_specs

_NAMES = ("vip_map", "vip_lpm_map", "reals")


def note_of_pins(pin_dir: Path, inventory: Inventory) -> dict[str, object] | None:
    """Make the note that nfcore would have left with these maps; for what is in it see :class:`.balancer.Balancer`.

    None: nobody else has pinned maps there, or they do not fit, which who opens them says.
    """
    if not are_of_others(pin_dir):
        return None
    specs = map_specs(Sizes(1, 1, 1, None, "ringbuf"))
    try:
        with ExitStack() as opened:
            maps = {}
            for pin in (pin_dir / name for name in _NAMES if (pin_dir / name).exists()):
                spec = replace(specs[pin.name], max_entries=pinned_entries(pin), flags=pinned_flags(pin))
                maps[pin.name] = opened.enter_context(Map.open_pinned(pin, spec))
            return {"maps": maps["reals"].id, "generation": 0, "marks": None, **_numbers(maps, inventory)}
    except HostError:
        return None


def _numbers(maps: dict[str, Map], inventory: Inventory) -> dict[str, object]:
    """Find the numbers of an inventory's VIPs and reals in the maps. All others there rest: packets may go by them."""
    vips, reals = {}, {}
    of_keys = {name: _vip_numbers(maps[name]) for name in ("vip_map", "vip_lpm_map") if name in maps}
    for number, vip in inventory.vips.items():
        key = inventory.lpm_key(number) if vip.is_prefix else inventory.vip_definition(number)
        found = of_keys.get("vip_lpm_map" if vip.is_prefix else "vip_map", {}).get(key.tobytes())
        if found is not None:
            vips[identity(vip)] = found
    rows = maps["reals"].read_array()[: lay.MAX_REALS]
    in_use = np.flatnonzero(rows["addr"].any(axis=1))
    in_use = in_use[in_use != 0]  # the number of no real
    by_address = {_address(rows[number]): number for number in reversed(in_use.tolist())}
    for address in inventory.reals:
        known = by_address.get(_address(inventory.real_definition(address)))
        if known is not None:
            reals[str(address)] = known
    others = {number for of_map in of_keys.values() for number in of_map.values()} - set(vips.values())
    resting = {"vips": sorted(others), "reals": sorted(set(in_use.tolist()) - set(reals.values()))}
    return {"vips": vips, "reals": reals, "resting": resting}


def _vip_numbers(map_: Map) -> dict[bytes, int]:
    keys, metas = map_.lookup_all()
    return {key.tobytes(): int(meta["vip_num"]) for key, meta in zip(keys, metas, strict=True)}


def _address(real: np.void | NDArray[np.void]) -> tuple[bytes, int]:
    """The address of a row of `reals`, with its family."""
    return real["addr"].tobytes(), int(real["flags"]) & lay.RealFlag.IPV6
