# SPDX-License-Identifier: Apache-2.0
"""What the maps of features count comes out as metrics: one of each counter, of no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nfcore.kernel import possible_cpus
from nfcore.plugins.katran_accel.layouts import StatsSlot
from nfcore.plugins.katran_accel.metrics import BalancerMetrics
from nfcore.plugins.stats.registry import Registry
from nfcore.plugins.stats.top.model import WAYS

from .every_feature import QUIC_VIP, STABLE_VIP, TCP_VIP, open_full_world
from .world import World, open_world

Values = dict[str, int | float]
"""Name with labels, such as ``nfcore_drops_total{reason=no_real}`` → value."""
QUIC = "quic_stats_map", 0
STABLE = "stable_rt_stats", 0
TCP = "tpr_stats_map", 0
IDS = "nfcore_server_id_packets_total"
UNKNOWN_REAL = "nfcore_drops_total{reason=unknown_real}"
V4_V6 = ("family=4", "family=6")

COUNTED: dict[tuple[str, int, str], set[str]] = {
    **{
        ("stats", slot, field): {f"{name}{{{label}}}"}
        for slot, name in (
            (StatsSlot.TOO_BIG, "nfcore_too_big_answers_total"),
            (StatsSlot.DECAP, "nfcore_decap_packets_total"),
            (StatsSlot.CROSS_POP, "nfcore_decap_balanced_total"),
            (StatsSlot.EGRESS_DECAP, "nfcore_decap_egress_total"),
        )
        for field, label in zip(("v1", "v2"), V4_V6, strict=True)
    },
    **{
        ("stats", slot, field): {f"nfcore_icmp_{which}errors_total{{{label}}}"}
        for slot, label in zip((StatsSlot.ICMP_TOO_BIG_V4, StatsSlot.ICMP_TOO_BIG_V6), V4_V6, strict=True)
        for field, which in (("v1", "mtu_"), ("v2", "small_mtu_"))
    },
    ("stats", StatsSlot.SOURCE_ROUTE, "v1"): {"nfcore_source_route_lookups_total{result=miss}"},
    ("stats", StatsSlot.SOURCE_ROUTE, "v2"): {"nfcore_source_route_lookups_total{result=hit}"},
    ("stats", StatsSlot.DECAP_ADDRESS, "v1"): {"nfcore_decap_addressed_total{}"},
    ("stats", StatsSlot.GLOBAL_LRU, "v1"): {"nfcore_global_lru_fallback_total{}"},
    ("stats", StatsSlot.GLOBAL_LRU, "v2"): {"nfcore_global_lru_hits_total{}"},
    ("stats", StatsSlot.QUIC_ICMP, "v1"): {"nfcore_quic_icmp_errors_total{}"},
    ("stats", StatsSlot.QUIC_ICMP, "v2"): {"nfcore_quic_icmp_ignorable_total{}"},
    ("stats", StatsSlot.MIGRATED, "v1"): {"nfcore_udp_migrations_total{}"},
    (*QUIC, "ch_routed"): {f"{IDS}{{kind=quic,outcome=by_flow}}"},
    (*QUIC, "cid_initial"): {f"{IDS}{{kind=quic,outcome=new}}"},
    (*QUIC, "cid_routed"): {f"{IDS}{{kind=quic,outcome=by_id}}"},
    (*QUIC, "cid_unknown_real_dropped"): {f"{IDS}{{kind=quic,outcome=dropped}}", UNKNOWN_REAL},
    (*QUIC, "cid_invalid_server_id"): {"nfcore_server_id_unknown_total{kind=quic}"},
    **{(*QUIC, f"cid_v{number}"): {f"nfcore_quic_ids_total{{version={number}}}"} for number in range(4)},
    (*QUIC, "dst_match_in_lru"): {"nfcore_server_id_lru_total{kind=quic,entry=same}"},
    (*QUIC, "dst_mismatch_in_lru"): {"nfcore_server_id_lru_total{kind=quic,entry=other}"},
    (*QUIC, "dst_not_found_in_lru"): {"nfcore_server_id_lru_total{kind=quic,entry=none}"},
    (*STABLE, "ch_routed"): {f"{IDS}{{kind=udp_stable,outcome=by_flow}}"},
    (*STABLE, "cid_routed"): {f"{IDS}{{kind=udp_stable,outcome=by_id}}"},
    (*STABLE, "cid_unknown_real_dropped"): {f"{IDS}{{kind=udp_stable,outcome=dropped}}", UNKNOWN_REAL},
    (*STABLE, "cid_invalid_server_id"): {"nfcore_server_id_unknown_total{kind=udp_stable}"},
    (*STABLE, "invalid_packet_type"): {"nfcore_udp_stable_other_total{}"},
    (*TCP, "ch_routed"): {f"{IDS}{{kind=tcp,outcome=by_flow}}"},
    (*TCP, "sid_routed"): {f"{IDS}{{kind=tcp,outcome=by_id}}"},
    (*TCP, "tcp_syn"): {f"{IDS}{{kind=tcp,outcome=new}}"},
    (*TCP, "dst_mismatch_in_lru"): {"nfcore_server_id_lru_total{kind=tcp,entry=other}"},
    ("server_id_stats", 0, "v1"): {f"nfcore_vip_server_id_new_total{{vip={TCP_VIP}}}"},
    ("server_id_stats", 1, "v2"): {f"nfcore_vip_server_id_moved_total{{vip={QUIC_VIP}}}"},
    ("decap_vip_stats", 2, "v1"): {f"nfcore_vip_decap_passed_total{{vip={STABLE_VIP}}}"},
}
"""Map, row and field → the metrics that grow with it."""


def values(world: World | BalancerMetrics) -> Values:
    """All samples, as the registry has taken them."""
    metrics = world if isinstance(world, BalancerMetrics) else BalancerMetrics(world.balancer)
    registry = Registry()
    registry.add(metrics.families())
    return {
        f"{family.name}{{{','.join(f'{name}={value}' for name, value in sample.labels.items())}}}": sample.value
        for family in registry
        for sample in family.everything()
        if isinstance(sample.value, int | float)
    }


def raise_counter(world: World, name: str, row: int, field: str, by: int = 1) -> None:
    """Add `by` to a counter on the first CPU, and twice that on the last one."""
    held = world.balancer.maps[name].read_slice(row, 1)
    held[field][0, 0] += by
    held[field][0, -1] += 2 * by
    world.balancer.maps[name].write_array(row, held)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_full_world(tmp_path_factory.mktemp("full")) as opened:
        yield opened


@pytest.mark.parametrize("counter", COUNTED, ids=lambda counter: "-".join(map(str, counter)))
def test_a_counter_of_all_cpus_is_in_its_metric_and_in_no_other(world: World, counter: tuple[str, int, str]) -> None:
    before = values(world)
    raise_counter(world, *counter)
    after = values(world)
    assert after.keys() == before.keys()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == dict.fromkeys(
        COUNTED[counter], 3
    )


def test_every_field_of_the_maps_has_its_metric(world: World) -> None:
    fields = {
        (name, field)
        for name in ("quic_stats_map", "stable_rt_stats", "tpr_stats_map")
        for field in world.balancer.maps[name].spec.value.names or ()
    }
    told = {(name, field) for name, _, field in COUNTED}
    assert fields - told == {("quic_stats_map", "cid_invalid_server_id_sample")}


def test_a_sample_is_not_added_up(world: World) -> None:
    map_ = world.balancer.maps["quic_stats_map"]
    held = map_.read_slice(0, 1)
    held["cid_invalid_server_id_sample"][0, :2] = 1234, 77
    map_.write_array(0, held)
    assert possible_cpus() > 1
    assert values(world)["nfcore_quic_unknown_id{}"] == 1234


def test_vips_whose_packets_have_no_ids_have_no_such_metrics(world: World) -> None:
    shown = {name for name in values(world) if name.startswith("nfcore_vip_server_id_new_total")}
    assert shown == {f"nfcore_vip_server_id_new_total{{vip={vip}}}" for vip in (TCP_VIP, QUIC_VIP)}


@pytest.mark.parametrize("title", WAYS)
def test_top_asks_for_what_there_is(world: World, title: str) -> None:
    name, labels = WAYS[title]
    (family,) = [family for family in BalancerMetrics(world.balancer).families() if family.name == name]
    assert any(labels.items() <= sample.labels.items() for sample in family.everything())


def test_features_that_are_off_tell_nothing(tmp_path: Path, world: World) -> None:
    with open_world(tmp_path, katran="icmp = false") as plain:
        assert not plain.balancer.features.defines
        told = values(plain)
    names = {name.partition("{")[0] for metrics in COUNTED.values() for name in metrics}
    assert {name for name in told if name.partition("{")[0] in names} == {
        f"nfcore_drops_total{{reason={reason}}}"
        for reason in ("malformed", "too_big", "no_real", "no_next_hop", "no_headroom")
    }
