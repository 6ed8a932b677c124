# SPDX-License-Identifier: Apache-2.0
"""Every numpy dtype that crosses the kernel border has the size and offsets of its C struct."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nfcore.api.flows import FLOW_KEY
from nfcore.api.marks import MarkMeaning
from nfcore.kernel import CompileError, Map, compile_program
from nfcore.plugins.katran_accel import layouts as lay
from nfcore.plugins.katran_accel.capture import layouts as capture
from nfcore.plugins.katran_accel.capture.reasons import PacketReason
from nfcore.plugins.katran_accel.decap import layouts as decap
from nfcore.plugins.katran_accel.healthcheck import layouts as healthcheck
from nfcore.plugins.katran_accel.maps import Sizes, map_specs
from tests.paths import PROGRAMS

PROGRAM = PROGRAMS / "layouts.c"
STRUCTS = {
    "flow_key": FLOW_KEY,
    "vip_definition": lay.VIP_DEFINITION,
    "vip_meta": lay.VIP_META,
    "vip_lpm_key": lay.VIP_LPM_KEY,
    "vip_address_key": lay.VIP_ADDRESS_KEY,
    "real_definition": lay.REAL_DEFINITION,
    "real_pos_lru": lay.REAL_POS_LRU,
    "lb_stats": lay.LB_STATS,
    "ctl_value": lay.CTL_VALUE,
    "vip_by_id": lay.VIP_BY_ID,
    "hw_accel_flow": lay.HW_ACCEL_FLOW,
    "hw_accel_target": lay.HW_ACCEL_TARGET,
    "hw_accel_route": lay.HW_ACCEL_ROUTE,
    "hw_accel_event": lay.HW_ACCEL_EVENT,
    "mark_pool": lay.MARK_POOL,
    "capture_filter": capture.CAPTURE_FILTER,
    "capture_counts": capture.CAPTURE_COUNTS,
    "capture_sample": capture.CAPTURE_SAMPLE,
    "event_metadata": capture.EVENT_METADATA,
    "decap_counters": decap.DECAP_COUNTERS,
    "decap_drops": decap.DECAP_DROPS,
    "hc_address": healthcheck.HC_ADDRESS,
    "hc_mac": healthcheck.HC_MAC,
    "hc_key": healthcheck.HC_KEY,
    "hc_stats": healthcheck.HC_STATS,
}
NAMES_IN_C = {"wild": "pad"}
"""Field → its name in C, where that is another one."""
ABI_SIZES = {
    "flow_key": 40,
    "vip_definition": 20,
    "vip_meta": 8,
    "vip_lpm_key": 24,
    "real_definition": 20,
    "real_pos_lru": 16,
    "lb_stats": 16,
    "ctl_value": 8,
    "decap_counters": 40,
    "hc_address": 20,
    "hc_mac": 6,
    "hc_key": 20,
    "hc_stats": 48,
    "event_metadata": 12,
}


def assertions(structs: dict[str, np.dtype]) -> str:
    checks = []
    for name, dtype in structs.items():
        checks.append(f'_Static_assert(sizeof(struct {name})=={dtype.itemsize},\\"{name}\\");')
        for field, (_, offset, *_) in (dtype.fields or {}).items():
            place = f"struct {name},{NAMES_IN_C.get(field, field)}"
            checks.append(f'_Static_assert(__builtin_offsetof({place})=={offset},\\"{name}.{field}\\");')
    for counter in lay.AccelCounter:
        checks.append(f'_Static_assert(ACCEL_{counter.name}=={counter.value},\\"{counter.name}\\");')
    for slot in lay.StatsSlot:
        checks.append(f'_Static_assert(STATS_{slot.name}=={slot.value},\\"{slot.name}\\");')
    for reason in PacketReason:
        checks.append(f'_Static_assert(REASON_{reason.name}=={reason.value},\\"{reason.name}\\");')
    checks.append(f'_Static_assert(REASONS=={len(PacketReason)},\\"REASONS\\");')
    return "".join(checks).replace('\\"', '"')


def compile_with(structs: dict[str, np.dtype], tmp_path: Path, **more: int) -> None:
    source = tmp_path / "layouts.c"
    source.write_text(PROGRAM.read_text().replace("CHECK_LAYOUTS", assertions(structs)))
    specs = map_specs(Sizes(1, 128, 4, MarkMeaning.FLOW, "ringbuf"))
    specs |= {spec.name: spec for spec in (decap.COUNTERS, decap.DROPS)}
    maps = {name: Map.create(spec) for name, spec in specs.items()}
    try:
        defines: dict[str, int | str] = {"POOL_SLOTS": lay.POOL_SLOTS, **more}
        compile_program(source, "layouts", defines=defines, maps=maps).close()
    finally:
        for opened in maps.values():
            opened.close()


def test_dtypes_equal_the_structs(tmp_path: Path) -> None:
    compile_with(STRUCTS, tmp_path)


def test_a_report_has_vlan_tags_only_where_they_are_read(tmp_path: Path) -> None:
    compile_with({"hw_accel_event": lay.HW_ACCEL_VLAN_EVENT}, tmp_path, VLAN=1)
    with pytest.raises(CompileError, match="hw_accel_event"):
        compile_with({"hw_accel_event": lay.HW_ACCEL_VLAN_EVENT}, tmp_path)


def test_the_check_notices_a_difference(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="lb_stats"):
        compile_with({"lb_stats": np.dtype([("v2", "<u8"), ("v1", "<u8")])}, tmp_path)


def test_sizes_are_those_of_the_abi() -> None:
    assert {name: STRUCTS[name].itemsize for name in ABI_SIZES} == ABI_SIZES


def test_map_shapes_are_those_of_the_abi() -> None:
    specs = map_specs(Sizes(512, 1000, 16, None, "ringbuf"))
    shapes = {name: (spec.type.name, spec.key_size, spec.value_size, spec.max_entries) for name, spec in specs.items()}
    for ours in ("vip_addresses", "hw_accel_stats", "vip_slow_stats", "real_slow_stats"):
        del shapes[ours]
    assert shapes == {
        "vip_map": ("HASH", 20, 8, 512),
        "vip_lpm_map": ("LPM_TRIE", 24, 8, 256),
        "ch_rings": ("ARRAY", 4, 4, 65_537 * 512),
        "reals": ("ARRAY", 4, 20, 4096),
        "lru_mapping": ("ARRAY_OF_MAPS", 4, 4, 128),
        "fallback_cache": ("LRU_HASH", 40, 16, 1000),
        "stats": ("PERCPU_ARRAY", 4, 16, 1024),
        "reals_stats": ("PERCPU_ARRAY", 4, 16, 4096),
        "ctl_array": ("ARRAY", 4, 8, 16),
    }
