# SPDX-License-Identifier: Apache-2.0
"""Changes of the data plane are whole or do not happen; counters outlive it; structs are those of the compiler."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nfcore.api.marks import MarkMeaning
from nfcore.errors import HostError
from nfcore.kernel import Map, compile_program
from nfcore.plugins.flow_actions import layouts as lay
from nfcore.plugins.flow_actions.data_plane import DataPlane
from nfcore.plugins.flow_actions.maps import Sizes, map_specs, remove_pins
from nfcore.plugins.flow_actions.maps import open_maps as open_all

from .frames import frame
from .model import Match, rows
from .plane import COUNT, DROP, PASS, SIZES, open_plane, packets, send
from .test_look_up import WHOLE

SMALL = Sizes(entries=8, targets=16, mark_width=4)


@pytest.fixture
def plane() -> Iterator[DataPlane]:
    with open_plane(sizes=SMALL) as opened:
        yield opened


def ports(family: int, count: int, first: int = 1, target: int = DROP) -> list[Match]:
    """Exact entries for source ports from `first` on."""
    whole = WHOLE[family]
    return [replace(whole, sport=first + each, slot=each % 8, target=target) for each in range(count)]


def dropped(plane: DataPlane, family: int, sports: Iterable[int]) -> list[int]:
    """The source ports whose packets are dropped."""
    return [port for port in sports if send(plane, frame(family, sport=port)).verdict.name == "XDP_DROP"]


@pytest.mark.parametrize("family", [4, 6])
def test_an_addition_that_does_not_fit_leaves_nothing(plane: DataPlane, family: int) -> None:
    plane.add(rows(ports(family, 6)))
    both = rows([*ports(10 - family, 3, first=20), *ports(family, 3, first=20)])
    with pytest.raises(HostError, match=f"table of IPv{family} entries is full: 3 new ones, room for 2 of 8"):
        plane.add(both)
    assert dropped(plane, family, range(30)) == [1, 2, 3, 4, 5, 6]
    assert dropped(plane, 10 - family, range(30)) == []
    plane.add(rows(ports(family, 2, first=20)))
    assert dropped(plane, family, range(30)) == [1, 2, 3, 4, 5, 6, 20, 21]


def test_entries_with_the_same_key_are_replaced(plane: DataPlane) -> None:
    plane.add(rows(ports(4, 8)))
    plane.add(rows([replace(each, target=PASS, slot=7) for each in ports(4, 8)]))
    assert dropped(plane, 4, range(10)) == []
    assert packets(plane, 7) == 8
    plane.remove(rows(ports(4, 4)))
    plane.add(rows(ports(4, 4, first=50)))
    assert dropped(plane, 4, range(60)) == [50, 51, 52, 53]


def crowded(plane: DataPlane, count: int, few: int) -> list[Match]:
    """So many entries, slots from 0 on, of which some that come after the first few do not fit into their buckets.

    Which these are is random, as the plane's hash.
    """
    while True:
        chosen = random.sample(range(1, 60_000), count)
        entries = [replace(WHOLE[4], sport=port, slot=slot, target=DROP) for slot, port in enumerate(chosen)]
        overflowed = []
        for part in (entries[:few], entries[few:]):
            plane.add(rows(part))
            overflowed.append(len(plane.maps["flow_overflow_v4"].lookup_all()[0]))
        plane.remove(rows(entries))
        if overflowed[1] > overflowed[0]:
            return entries


def test_what_the_kernel_refuses_leaves_nothing() -> None:
    """Entries whose bucket is full are in a map of the kernel: here it is full, too."""
    sizes = Sizes(entries=256, targets=16, mark_width=4)
    foreign = np.zeros(sizes.entries, dtype=lay.MATCH_KEY[4])
    foreign["words"][:, 1] = 1 + np.arange(sizes.entries)
    with open_plane(sizes=sizes) as plane:
        overflow = plane.maps["flow_overflow_v4"]
        entries = crowded(plane, 240, few=20)
        sports = [each.sport or 0 for each in entries]
        plane.add(rows([*(replace(each, target=PASS) for each in entries[:20]), *ports(6, 2)]))
        filling = foreign[: sizes.entries - len(overflow.lookup_all()[0])]
        overflow.update_batch(filling, np.zeros(len(filling), dtype=lay.FLOW_ENTRY))
        every = rows([*entries, *ports(6, 2, first=20)])
        with pytest.raises(HostError, match="refuses an entry of IPv4: map flow_overflow: it is full"):
            plane.add(every)
        assert dropped(plane, 4, sports) == []
        assert [packets(plane, slot) for slot in range(20)] == [1] * 20
        assert dropped(plane, 6, range(30)) == [1, 2]
        overflow.delete_batch(foreign)
        plane.add(every)
        assert len(overflow.lookup_all()[0])
        assert dropped(plane, 4, sports) == sports
        plane.add(rows(replace(each, target=PASS) for each in entries[:100]))
        assert dropped(plane, 4, sports) == sports[100:]
        plane.remove(every)
        assert dropped(plane, 4, sports) == dropped(plane, 6, range(20, 300)) == []
        assert not len(overflow.lookup_all()[0])


def test_more_than_64_shapes_leave_nothing() -> None:
    def shape(number: int, family: int = 4) -> Match:
        return Match(family, 0, number % 32, 0, 32 - number // 32, slot=number, target=DROP)

    with open_plane() as plane:
        every = [replace(shape(number), slot=number) for number in range(64)]
        plane.add(rows(every[1:]))
        whole = [replace(WHOLE[6], slot=100, target=DROP), every[0], shape(64)]
        with pytest.raises(ValueError, match=r"65 combinations .* IPv4; 64 are possible"):
            plane.add(rows(whole))
        assert send(plane, frame(6)).verdict.name == "XDP_PASS"
        plane.add(rows(whole[:2]))
        assert send(plane, frame(6)).verdict.name == "XDP_DROP"
        plane.remove(rows([every[1]]))
        plane.add(rows([shape(64)]))


def test_impossible_rows_are_refused(plane: DataPlane) -> None:
    entry = ports(4, 1)[0]
    for wrong in (replace(entry, slot=8), replace(entry, target=0), replace(entry, target=17)):
        with pytest.raises(ValueError, match="should be below 8, from 1 to 16"):
            plane.add(rows([wrong]))
    with pytest.raises(ValueError, match="two entries of IPv4 in one call match the same"):
        plane.add(rows([entry, replace(entry, target=COUNT)]))
    with pytest.raises(ValueError, match="targets have numbers from 1 to 16"):
        plane.set_targets(np.array([17]), np.zeros(1, dtype=lay.TARGET))
    assert dropped(plane, 4, range(5)) == []


def test_removing_what_is_not_there_does_nothing(plane: DataPlane) -> None:
    plane.add(rows(ports(4, 2)))
    unknown_shape = replace(WHOLE[4], sport=None)
    plane.remove(rows([unknown_shape, *ports(4, 1, first=9), *ports(6, 1)]))
    assert dropped(plane, 4, range(10)) == [1, 2]
    plane.remove(rows([*ports(4, 1), *ports(4, 1), unknown_shape]))
    assert dropped(plane, 4, range(10)) == [2]
    plane.add(rows([]))
    plane.remove(rows([]))


def test_counters_outlive_the_data_plane(tmp_path: Path) -> None:
    pin_dir = tmp_path / "pins"
    for run in range(1, 4):
        with open_plane(sizes=SMALL, pin_dir=pin_dir) as plane:
            assert packets(plane, 0) == run - 1
            assert dropped(plane, 4, range(10)) == []
            plane.add(rows(ports(4, 1)))
            send(plane, frame(4, sport=1))
    for sizes in (SIZES, SMALL):
        with open_plane(sizes=sizes, pin_dir=pin_dir) as plane:
            assert packets(plane, 0) == 3
    assert "flow_counts" in [pin.name for pin in remove_pins(pin_dir)]
    assert not pin_dir.exists()


STRUCTS = {
    "match_key": lay.MATCH_KEY[6],
    "flow_entry": lay.FLOW_ENTRY,
    "flow_count": lay.FLOW_COUNT,
    "flow_totals": lay.FLOW_TOTALS,
    "flow_pattern": lay.FLOW_PATTERN,
    "flow_target": lay.TARGET,
    "flow_mark": lay.FLOW_MARK,
    "address_shapes": lay.ADDRESS_SHAPES,
    "filter": lay.filter_layout(SIZES.filter_log2),
}
PROGRAM = """#include <linux/bpf.h>
#include "flow_actions/flow_actions.c"
{checks}
int layouts(struct xdp_md *ctx)
{{
	return XDP_PASS;
}}
"""


def assertions() -> list[str]:
    """C that does not compile when a dtype differs from its struct, or an enum from its values."""
    checks = []
    for name, dtype in STRUCTS.items():
        checks.append(f"sizeof(struct {name}) == {dtype.itemsize}")
        for field, (_, offset, *_) in (dtype.fields or {}).items():
            checks.append(f"__builtin_offsetof(struct {name}, {field}) == {offset}")
    checks += [f"FLOW_{action.name} == {action.value}" for action in lay.Action]
    checks += [f"{other.name} == {other.value}" for other in lay.Other]
    checks += [f"BY_{path.name} == {path.value}" for path in lay.Path]
    checks += [f"FLOW_ACTIONS == {len(lay.Action)}", f"FLOW_OTHERS == {len(lay.Other)}"]
    checks += [f"BIT_TO_SHAPE == {lay.BIT_TO_SHAPE}ull", f"SHAPE_SHIFT == {lay.SHAPE_SHIFT}"]
    return [f'_Static_assert({check}, "{check}");' for check in checks]


def test_dtypes_equal_the_structs(tmp_path: Path) -> None:
    source = tmp_path / "layouts.c"
    source.write_text(PROGRAM.format(checks="\n".join(assertions())))
    maps: dict[str, Map] = open_all(SIZES, MarkMeaning.FLOW, None)
    defines = {"MARK_IS_FLOW": 1, "CARRIER_METADATA": 1, "FILTER_LOG2": SIZES.filter_log2, "SLOTS": SIZES.entries}
    defines["BUCKETS_LOG2"] = SIZES.buckets_log2
    folder = Path(lay.__file__).parents[2] / "bpf" / "flow_actions"
    try:
        flags = {**defines, "MISSING_INTERFACE": "XDP_DROP"}
        compile_program(source, "layouts", defines=flags, maps=maps, include_dirs=[folder]).close()
    finally:
        for each in maps.values():
            each.close()
    assert set(maps) == set(map_specs(SIZES, MarkMeaning.FLOW))
