# SPDX-License-Identifier: Apache-2.0
"""The counters of what a program need not have, as metric families. A feature that is off has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import PROTOCOL_NUMBERS
from nfcore.api.metrics import Column, LabelSets, MetricFamily, counter, gauge

from . import layouts as lay
from .config import VipTable
from .features import Features
from .inventory import Inventory

Rows = NDArray[np.void]
FeatureCounters = Mapping[str, Rows]
"""Map → its rows, summed over the CPUs: see :func:`.counter_maps.read_feature_counters`."""
_SLOT = lay.StatsSlot


def _with(*names: str) -> Callable[[Features], bool]:
    return lambda features: all(name in features for name in names)


def _has_decap(features: Features) -> bool:
    return features.decap


@dataclass(frozen=True)
class _OfSlots:
    """A family whose samples are in slots of `stats`."""

    wanted: Callable[[Features], bool]
    name: str
    text: str
    samples: Mapping[str, tuple[lay.StatsSlot, str]]
    """Value of the label → slot and field. Without a label there is one sample, whose value is empty."""
    label: str = ""

    def family(self, stats: Rows) -> MetricFamily:
        """Make the family of what `stats` has."""
        made = counter(self.name, self.text, "packets", *([self.label] if self.label else []))
        for value, (slot, field) in self.samples.items():
            made.add(int(stats[field][slot]), **({self.label: value} if self.label else {}))
        return made


@dataclass(frozen=True)
class _OfFields:
    """A family whose samples are fields of maps with one row; those of maps that the program lacks are left out."""

    name: str
    text: str
    labels: tuple[str, ...]
    samples: Mapping[tuple[str, ...], tuple[str, str]]
    """Values of the labels → map and field."""

    def family(self, counters: FeatureCounters) -> MetricFamily:
        """Make the family; it may have no sample."""
        made = counter(self.name, self.text, "packets", *self.labels)
        for values, (name, field) in self.samples.items():
            if name in counters:
                made.add(int(counters[name][field][0]), **dict(zip(self.labels, values, strict=True)))
        return made


def _v4_v6(slot: lay.StatsSlot) -> dict[str, tuple[lay.StatsSlot, str]]:
    """The samples of a slot that counts IPv4 in v1 and IPv6 in v2."""
    return {"4": (slot, "v1"), "6": (slot, "v2")}


_SLOT_FAMILIES = (
    _OfSlots(
        _with("ICMP"),
        "nfcore_icmp_mtu_errors_total",
        "ICMP errors that tell an MTU.",
        {"4": (_SLOT.ICMP_TOO_BIG_V4, "v1"), "6": (_SLOT.ICMP_TOO_BIG_V6, "v1")},
        "family",
    ),
    _OfSlots(
        _with("ICMP"),
        "nfcore_icmp_small_mtu_errors_total",
        "ICMP errors that tell an MTU below 1280.",
        {"4": (_SLOT.ICMP_TOO_BIG_V4, "v2"), "6": (_SLOT.ICMP_TOO_BIG_V6, "v2")},
        "family",
    ),
    _OfSlots(
        _with("ICMP", "QUIC"),
        "nfcore_quic_icmp_errors_total",
        "ICMP errors that quote a flow of QUIC.",
        {"": (_SLOT.QUIC_ICMP, "v1")},
    ),
    _OfSlots(
        _with("ICMP", "QUIC"),
        "nfcore_quic_icmp_ignorable_total",
        "ICMP errors that quote a flow of QUIC, of codes that QUIC ignores.",
        {"": (_SLOT.QUIC_ICMP, "v2")},
    ),
    _OfSlots(
        _with("TOO_BIG"),
        "nfcore_too_big_answers_total",
        "Packets longer than the MTU whose sender was told.",
        _v4_v6(_SLOT.TOO_BIG),
        "family",
    ),
    _OfSlots(
        _with("SOURCE_ROUTING"),
        "nfcore_source_route_lookups_total",
        "Look-ups of new flows' clients among the source routes.",
        {"hit": (_SLOT.SOURCE_ROUTE, "v2"), "miss": (_SLOT.SOURCE_ROUTE, "v1")},
        "result",
    ),
    _OfSlots(
        _with("GLOBAL_LRU"),
        "nfcore_global_lru_hits_total",
        "Packets whose real a global connection table gave.",
        {"": (_SLOT.GLOBAL_LRU, "v2")},
    ),
    _OfSlots(
        _with("GLOBAL_LRU"),
        "nfcore_global_lru_fallback_total",
        "Look-ups on CPUs without a global table of their own.",
        {"": (_SLOT.GLOBAL_LRU, "v1")},
    ),
    _OfSlots(
        _with("UDP_FLOW_MIGRATION"),
        "nfcore_udp_migrations_total",
        "Packets whose flow has left a real that is down.",
        {"": (_SLOT.MIGRATED, "v1")},
    ),
    _OfSlots(
        _has_decap,
        "nfcore_decap_packets_total",
        "Packets taken out of a tunnel, by the family of its header.",
        _v4_v6(_SLOT.DECAP),
        "family",
    ),
    _OfSlots(
        _has_decap,
        "nfcore_decap_addressed_total",
        "Packets of tunnels to an address of [katran_accel.decap].",
        {"": (_SLOT.DECAP_ADDRESS, "v1")},
    ),
    _OfSlots(
        _has_decap,
        "nfcore_decap_balanced_total",
        "Packets out of a tunnel that were looked at anew, by their own family.",
        _v4_v6(_SLOT.CROSS_POP),
        "family",
    ),
    _OfSlots(
        _with("DECAP_GUE"),
        "nfcore_decap_egress_total",
        "Packets out of a tunnel that were sent back, by their own family.",
        _v4_v6(_SLOT.EGRESS_DECAP),
        "family",
    ),
)
_QUIC, _STABLE, _TCP = "quic_stats_map", "stable_rt_stats", "tpr_stats_map"
_FIELD_FAMILIES = (
    _OfFields(
        "nfcore_server_id_packets_total",
        "Packets that may have a server id, by what became of them.",
        ("kind", "outcome"),
        {
            ("quic", "by_id"): (_QUIC, "cid_routed"),
            ("quic", "by_flow"): (_QUIC, "ch_routed"),
            ("quic", "new"): (_QUIC, "cid_initial"),
            ("quic", "dropped"): (_QUIC, "cid_unknown_real_dropped"),
            ("udp_stable", "by_id"): (_STABLE, "cid_routed"),
            ("udp_stable", "by_flow"): (_STABLE, "ch_routed"),
            ("udp_stable", "dropped"): (_STABLE, "cid_unknown_real_dropped"),
            ("tcp", "by_id"): (_TCP, "sid_routed"),
            ("tcp", "by_flow"): (_TCP, "ch_routed"),
            ("tcp", "new"): (_TCP, "tcp_syn"),
        },
    ),
    _OfFields(
        "nfcore_server_id_unknown_total",
        "Packets whose server id is of no real.",
        ("kind",),
        {("quic",): (_QUIC, "cid_invalid_server_id"), ("udp_stable",): (_STABLE, "cid_invalid_server_id")},
    ),
    _OfFields(
        "nfcore_server_id_lru_total",
        "Packets sent by their server id, by what the connection table had.",
        ("kind", "entry"),
        {
            ("quic", "same"): (_QUIC, "dst_match_in_lru"),
            ("quic", "other"): (_QUIC, "dst_mismatch_in_lru"),
            ("quic", "none"): (_QUIC, "dst_not_found_in_lru"),
            ("tcp", "other"): (_TCP, "dst_mismatch_in_lru"),
        },
    ),
    _OfFields(
        "nfcore_quic_ids_total",
        "Connection ids of QUIC, by their version.",
        ("version",),
        {(str(version),): (_QUIC, f"cid_v{version}") for version in range(4)},
    ),
    _OfFields(
        "nfcore_udp_stable_other_total",
        "Packets to VIPs with stable routing that are not of its kind.",
        (),
        {(): (_STABLE, "invalid_packet_type")},
    ),
)


def count_unknown_reals(counters: FeatureCounters) -> int | None:
    """Count packets dropped because the real of their server id does not exist; None: the program has no such ids."""
    found = [counters[name]["cid_unknown_real_dropped"][0] for name in (_QUIC, _STABLE) if name in counters]
    return int(sum(found)) if found else None


@dataclass(frozen=True)
class _Vips:
    """Labels and numbers of some VIPs, row by row."""

    labels: LabelSets
    numbers: NDArray[np.int64]

    @classmethod
    def of(cls, vips: Mapping[int, VipTable]) -> _Vips:
        numbers = np.array(list(vips), dtype=np.int64)
        return cls(LabelSets(["vip"], [[vip.name] for vip in vips.values()]), numbers)

    def family(self, name: str, text: str, values: NDArray[np.uint64]) -> MetricFamily:
        """Make a family of the values of these VIPs; `values`: of all VIPs by number."""
        made = counter(name, text, "packets", "vip")
        made.columns.append(Column(self.labels, values[self.numbers]))
        return made


class FeatureMetrics:
    """Makes the families of one program's features."""

    def __init__(self, features: Features, inventory: Inventory) -> None:
        self._features = features
        self.follow(inventory)

    def follow(self, inventory: Inventory) -> None:
        """Take over the VIPs of a reload."""
        vips = inventory.vips
        self._all = _Vips.of(vips)
        self._with_ids = _Vips.of({number: vip for number, vip in vips.items() if self._may_have_ids(vip)})

    def _may_have_ids(self, vip: VipTable) -> bool:
        """Whether `server_id_stats` counts for a VIP."""
        is_tcp = vip.proto == PROTOCOL_NUMBERS["tcp"]
        return "TCP_SERVER_IDS" in self._features if is_tcp else bool(vip.flag_bits & lay.VipFlag.QUIC)

    def families(self, stats: Rows, counters: FeatureCounters) -> Iterator[MetricFamily]:
        """Give the metrics of all features. stats: all rows of the map of that name, summed over the CPUs."""
        for of_slots in _SLOT_FAMILIES:
            if of_slots.wanted(self._features):
                yield of_slots.family(stats)
        for of_fields in _FIELD_FAMILIES:
            family = of_fields.family(counters)
            if family.samples:
                yield family
        if _QUIC in counters:
            sample = gauge("nfcore_quic_unknown_id", "A server id that is of no real, seen lately; 0: none.", "")
            sample.add(int(counters[_QUIC]["cid_invalid_server_id_sample"][0]))
            yield sample
        yield from self._of_vips(counters)

    def _of_vips(self, counters: FeatureCounters) -> Iterator[MetricFamily]:
        if "server_id_stats" in counters:
            new, other = counters["server_id_stats"]["v1"], counters["server_id_stats"]["v2"]
            text = "Packets to a VIP that begin a flow, before it has a server id."
            yield self._with_ids.family("nfcore_vip_server_id_new_total", text, new)
            text = "Packets to a VIP whose server id led elsewhere than the connection table."
            yield self._with_ids.family("nfcore_vip_server_id_moved_total", text, other)
        if "decap_vip_stats" in counters:
            text = "Packets to a VIP that were taken out of GUE and passed to the stack."
            yield self._all.family("nfcore_vip_decap_passed_total", text, counters["decap_vip_stats"]["v1"])
