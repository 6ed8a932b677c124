# SPDX-License-Identifier: Apache-2.0
"""Which metrics each feature has, by the maps that it has. Their values: tests/kernel/katran_accel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nfcore.plugins.katran_accel.config import KatranTable
from nfcore.plugins.katran_accel.counter_maps import OF_FEATURES
from nfcore.plugins.katran_accel.feature_metrics import FeatureMetrics, count_unknown_reals
from nfcore.plugins.katran_accel.features import Features
from nfcore.plugins.katran_accel.inventory import Numbering
from nfcore.plugins.katran_accel.layouts import LB_STATS, MAX_VIPS
from nfcore.plugins.stats.registry import Registry

ICMP = {"nfcore_icmp_mtu_errors_total", "nfcore_icmp_small_mtu_errors_total"}
IDS = {"nfcore_server_id_packets_total"}
OF_VIPS = {"nfcore_vip_server_id_new_total", "nfcore_vip_server_id_moved_total"}
LRU = {"nfcore_server_id_lru_total"}
UNKNOWN = {"nfcore_server_id_unknown_total"}
QUIC = IDS | OF_VIPS | LRU | UNKNOWN | {"nfcore_quic_ids_total", "nfcore_quic_unknown_id"}
DECAP = {"nfcore_decap_packets_total", "nfcore_decap_addressed_total", "nfcore_decap_balanced_total"}


def told(keys: dict[str, Any], flags: list[str]) -> tuple[set[str], bool]:
    """Names of the metrics of a TOML with these keys and a VIP of these flags; whether unknown reals are counted."""
    vip = {
        "address": "198.18.10.2",
        "port": 53,
        "protocol": "udp",
        "flags": flags,
        "reals": [{"address": "198.18.20.11"}],
    }
    table = KatranTable.model_validate({"vips": [vip], **keys})
    features = Features.of(table)
    counters = {
        spec.name: np.zeros(spec.max_entries, spec.value)
        for spec in features.map_specs()
        if spec.name in OF_FEATURES and spec.value is not None
    }
    registry = Registry()
    metrics = FeatureMetrics(features, Numbering(0.0).plan(table))
    registry.add(metrics.families(np.zeros(2 * MAX_VIPS, LB_STATS), counters))
    return {family.name for family in registry}, count_unknown_reals(counters) is not None


@pytest.mark.parametrize(
    ("keys", "flags", "names", "drops"),
    [
        ({}, [], ICMP, False),
        ({"icmp": False}, [], set(), False),
        (
            {},
            ["quic"],
            ICMP | QUIC | {"nfcore_quic_icmp_errors_total", "nfcore_quic_icmp_ignorable_total"},
            True,
        ),
        ({"icmp": False}, ["quic"], QUIC, True),
        ({"icmp": False}, ["udp_stable_routing"], IDS | UNKNOWN | {"nfcore_udp_stable_other_total"}, True),
        ({"icmp": False, "tcp_server_ids": True}, [], IDS | OF_VIPS | LRU, False),
        ({"icmp": False}, ["src_routing"], {"nfcore_source_route_lookups_total"}, False),
        (
            {"icmp": False},
            ["global_lru"],
            {"nfcore_global_lru_hits_total", "nfcore_global_lru_fallback_total"},
            False,
        ),
        ({"icmp": False}, ["udp_flow_migration"], {"nfcore_udp_migrations_total"}, False),
        ({"icmp": False}, ["local", "hash_no_src_port", "lru_bypass"], set(), False),
        ({"icmp": False, "too_big": "answer"}, [], {"nfcore_too_big_answers_total"}, False),
        ({"icmp": False, "decap": {"ipip": True}}, [], DECAP, False),
        (
            {"icmp": False, "decap": {"gue": True}},
            [],
            DECAP | {"nfcore_decap_egress_total", "nfcore_vip_decap_passed_total"},
            False,
        ),
    ],
)
def test_each_feature_tells_its_own(keys: dict[str, Any], flags: list[str], names: set[str], drops: bool) -> None:
    assert told(keys, flags) == (names, drops)
