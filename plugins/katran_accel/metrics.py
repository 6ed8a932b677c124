# SPDX-License-Identifier: Apache-2.0
"""The balancer's counters as metric families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfcore.api.metrics import Column, LabelSets, MetricFamily, MonotonicDifference, counter, function_packets, gauge

from . import layouts as lay
from .balancer import Balancer
from .config import NAME
from .counter_maps import read_counters, read_feature_counters
from .feature_metrics import FeatureCounters, FeatureMetrics, count_unknown_reals
from .features import ALL_FEATURES, Features
from .inventory import Inventory

Counts = NDArray[np.uint64]
IPV6_HEADER = 40
_SLOT, _ACCEL = lay.StatsSlot, lay.AccelCounter
_OWN = {
    f"nfcore_{name}_total"
    for name in (
        *("vip_new_flows", "real_new_flows", "lru_inserts", "ring_routed", "real_gone", "marks_rejected"),
        *("reports", "reports_lost", "mark_pool_empty"),
    )
}
"""Metrics of counters that nfcore's program alone has."""
_OF_OBJECTS = Features({**ALL_FEATURES.defines, "ICMP": 1, "TOO_BIG": 1})
"""What a compiled object may count."""


def _misses(balancer: Balancer) -> int:
    """Packets of flows that were in no table: those with a real, as Katran counts them, and those without."""
    slots = read_counters(balancer.maps["stats"], _SLOT.LRU, _SLOT.RING_DROP - _SLOT.LRU + 1)
    return int(slots["v2"][0] + slots["v1"][-1] + slots["v2"][-1])


def accel_counters(balancer: Balancer) -> Counts:
    """`hw_accel_stats` by :class:`layouts.AccelCounter`, summed over the CPUs.

    A compiled object has no such map: all packets that are for a VIP take its slow path.
    """
    if "hw_accel_stats" not in balancer.maps:
        counts = np.zeros(len(lay.AccelCounter), dtype=np.uint64)
        counts[_ACCEL.SLOW] = balancer.maps["stats"].read_slice(_SLOT.LRU, 1)["v1"].sum()
        return counts
    total: Counts = balancer.maps["hw_accel_stats"].read_array().sum(axis=1).astype(np.uint64)
    return total


def _summed(balancer: Balancer, name: str, entries: int) -> NDArray[np.void]:
    """Sum a per-CPU map of `struct lb_stats` over the CPUs. Only the first `entries` are read, the others are 0.

    Those of a map that a compiled object does not have are 0.
    """
    if name not in balancer.maps:
        return np.zeros(max(lay.MAX_VIPS, lay.MAX_REALS), dtype=lay.LB_STATS)
    total = np.zeros(balancer.maps[name].spec.max_entries, dtype=lay.LB_STATS)
    total[:entries] = read_counters(balancer.maps[name], count=entries)
    return total


@dataclass
class _Readings:
    """All counters, in the order in which they are read: each total before the parts that are subtracted from it.

    A packet raises the part before the total (bpf/balancer/counters.h). So a part that is read after its total has
    every packet of that total, and the difference is never too large. It may be too small until the next reading. A
    difference that is too large would stay, since a counter must not go back.
    """

    stats: NDArray[np.void]
    reals: NDArray[np.void]
    slow: NDArray[np.void]
    """`vip_slow_stats`, parts of the VIPs' packets in `stats`."""
    reals_slow: NDArray[np.void]
    """`real_slow_stats`, parts of `reals`."""
    accel: Counts
    """Its `FAST` and `SLOW` are parts of all frames in `stats`."""
    misses: int
    """Part of the look-ups in `stats`. It is in the same slot, so it is read again."""
    of_features: FeatureCounters

    @classmethod
    def take(cls, balancer: Balancer) -> _Readings:
        reals = max(balancer.inventory.reals.values(), default=0) + 1
        # Python evaluates arguments in this order.
        return cls(
            stats=_summed(balancer, "stats", 2 * lay.MAX_VIPS),
            reals=_summed(balancer, "reals_stats", reals),
            slow=_summed(balancer, "vip_slow_stats", lay.MAX_VIPS),
            reals_slow=_summed(balancer, "real_slow_stats", reals),
            accel=accel_counters(balancer),
            misses=_misses(balancer),
            of_features=read_feature_counters(balancer.maps.maps),
        )

    def v1(self, slot: lay.StatsSlot) -> int:
        return int(self.stats["v1"][slot])

    def v2(self, slot: lay.StatsSlot) -> int:
        return int(self.stats["v2"][slot])

    def both(self, slot: lay.StatsSlot) -> int:
        return self.v1(slot) + self.v2(slot)

    def of(self, which: lay.AccelCounter) -> int:
        return int(self.accel[which])


@dataclass(frozen=True)
class _Names:
    """Labels of VIPs and reals with their numbers, row by row."""

    inventory: Inventory
    vips: LabelSets
    vip_paths: LabelSets
    """All VIPs with path `fast`, then all with `slow`."""
    vip_numbers: NDArray[np.int64]
    uncounted: NDArray[np.uint64]
    """Bytes of the IP header that the maps do not count, as Katran's do not: 40 for IPv6, else 0."""
    reals: LabelSets
    real_paths: LabelSets
    real_numbers: NDArray[np.int64]

    @classmethod
    def of(cls, inventory: Inventory) -> _Names:
        vips = [vip.name for vip in inventory.vips.values()]
        reals = [str(address) for address in inventory.reals]
        return cls(
            inventory,
            LabelSets(["vip"], [[vip] for vip in vips]),
            LabelSets(["vip", "path"], [[vip, path] for path in ("fast", "slow") for vip in vips]),
            np.array(list(inventory.vips), dtype=np.int64),
            np.array(
                [IPV6_HEADER if vip.address.version == 6 else 0 for vip in inventory.vips.values()], dtype=np.uint64
            ),
            LabelSets(["real"], [[real] for real in reals]),
            LabelSets(["real", "path"], [[real, path] for path in ("fast", "slow") for real in reals]),
            np.array(list(inventory.reals.values()), dtype=np.int64),
        )


class BalancerMetrics:
    """Reads a balancer's counters. Remembers those that are differences: they must not go back."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._ratchet = MonotonicDifference()
        self._names = _Names.of(balancer.inventory)
        self._features = balancer.features if balancer.maps.is_own else _OF_OBJECTS
        self._of_features = FeatureMetrics(self._features, balancer.inventory)

    def follow(self) -> None:
        """Take over the VIPs and reals of a reload. A number that was given again counts from 0."""
        before, now = self._names.inventory, self._balancer.inventory
        self._ratchet.forget("vip", list(now.vips.keys() - before.vips.keys()))
        self._ratchet.forget("real", list(set(now.reals.values()) - set(before.reals.values())))
        self._names = _Names.of(now)
        self._of_features.follow(now)

    def families(self) -> Iterator[MetricFamily]:
        """Give all metrics of the balancer; of a compiled object those that Katran's maps have."""
        now = _Readings.take(self._balancer)
        is_own = self._balancer.maps.is_own
        found = [self._paths(now), *self._per_vip(now), *self._per_real(now), *self._tables(now)]
        found += [*_verdicts(now), _drops(now, self._features, is_own=is_own), *_reports(now)]
        yield from (family for family in found if is_own or family.name not in _OWN)
        yield from self._of_features.families(now.stats, now.of_features)

    def _paths(self, now: _Readings) -> MetricFamily:
        fast, slow, total = now.of(_ACCEL.FAST), now.of(_ACCEL.SLOW), now.v1(_SLOT.XDP_TOTAL)
        family = counter("nfcore_packets_total", "Packets by how their way was found.", "packets", "path")
        family.add(fast, path="fast")
        family.add(slow, path="slow")
        family.add(self._remainder("none", total, fast, slow), path="none")
        return family

    def _remainder(self, key: str, total: int, *others: int) -> int:
        return int(self._ratchet.hold(key, np.array(total), *map(np.array, others)))

    def _per_vip(self, now: _Readings) -> Iterator[MetricFamily]:
        names = self._names
        packets = now.stats["v1"][: lay.MAX_VIPS]
        sent = packets[names.vip_numbers]
        ip_bytes = now.stats["v2"][names.vip_numbers] + sent * names.uncounted
        for what, unit, text, values in (
            ("packets", "packets", "Packets sent for a VIP.", sent),
            ("bytes", "bytes", "Bytes sent for a VIP, of its IP packets.", ip_bytes),
            ("new_flows", "flows", "Flows of a VIP that its ring has routed.", now.slow["v2"][names.vip_numbers]),
        ):
            family = counter(f"nfcore_vip_{what}_total", text, unit, "vip")
            family.columns.append(Column(names.vips, values))
            yield family
        paths = counter("nfcore_vip_path_packets_total", "Packets sent for a VIP, by path.", "packets", "vip", "path")
        by_path = self._by_path("vip", packets, now.slow["v1"], names.vip_numbers)
        paths.columns.append(Column(names.vip_paths, by_path))
        yield paths

    def _per_real(self, now: _Readings) -> Iterator[MetricFamily]:
        names = self._names
        for what, unit, text, values in (
            ("packets", "packets", "Packets sent to a real.", now.reals["v1"]),
            ("bytes", "bytes", "Bytes sent to a real, of its IP packets without IPv6 headers.", now.reals["v2"]),
            ("new_flows", "flows", "Flows that a ring has routed to a real.", now.reals_slow["v2"]),
        ):
            family = counter(f"nfcore_real_{what}_total", text, unit, "real")
            family.columns.append(Column(names.reals, values[names.real_numbers]))
            yield family
        paths = counter("nfcore_real_path_packets_total", "Packets sent to a real, by path.", "packets", "real", "path")
        by_path = self._by_path("real", now.reals["v1"], now.reals_slow["v1"], names.real_numbers)
        paths.columns.append(Column(names.real_paths, by_path))
        yield paths

    def _by_path(self, key: str, packets: Counts, slow: Counts, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Packets of VIPs or reals by the fast path, then by the slow path. Without marks all packets are slow."""
        slow = packets if self._balancer.meaning is None else slow
        by_mark = self._ratchet.hold(key, packets, slow)
        return np.concatenate([by_mark[numbers], slow[numbers].astype(np.int64)])

    def _tables(self, now: _Readings) -> Iterator[MetricFamily]:
        """Metrics of the connection tables and rings."""
        lookups = counter("nfcore_lru_lookups_total", "Look-ups in the connection tables.", "packets", "result")
        lookups.add(self._remainder("hits", now.v1(_SLOT.LRU), now.misses), result="hit")
        lookups.add(now.misses, result="miss")
        kinds = counter("nfcore_lru_tcp_misses_total", "TCP packets of flows that were in no table.", "packets", "kind")
        kinds.add(now.v1(_SLOT.TCP_MISS), kind="syn")
        kinds.add(now.v2(_SLOT.TCP_MISS), kind="established")
        inserted = counter("nfcore_lru_inserts_total", "Flows put into a connection table.", "flows")
        inserted.add(now.v2(_SLOT.RING))
        fallback = counter("nfcore_lru_fallback_total", "Packets on CPUs without a table of their own.", "packets")
        fallback.add(now.v1(_SLOT.FALLBACK_LRU))
        room = gauge("nfcore_lru_capacity_flows", "Flows that fit into the connection table of a CPU.", "flows", "cpu")
        for cpu in self._balancer.cpus:
            room.add(self._balancer.table.lru_size, cpu=str(cpu))
        routed = counter("nfcore_ring_routed_total", "Packets whose real a ring chose: the first of flows.", "packets")
        routed.add(now.v1(_SLOT.RING))
        gone = counter(
            "nfcore_real_gone_total", "Packets of known flows whose real was gone: the ring chose.", "packets"
        )
        gone.add(now.of(_ACCEL.REAL_GONE))
        yield from (lookups, kinds, inserted, fallback, room, routed, gone)


def _verdicts(now: _Readings) -> Iterator[MetricFamily]:
    verdicts = counter("nfcore_verdicts_total", "Frames by the program's verdict.", "packets", "verdict")
    for verdict, slot in (("tx", _SLOT.XDP_TX), ("drop", _SLOT.XDP_DROP), ("pass", _SLOT.XDP_PASS)):
        verdicts.add(now.v1(slot), verdict=verdict)
    yield verdicts
    verdict_of = {"sent": _SLOT.XDP_TX, "drop": _SLOT.XDP_DROP, "passed_on": _SLOT.XDP_PASS}
    yield function_packets(NAME, {outcome: now.v1(slot) for outcome, slot in verdict_of.items()})
    rejected = counter(
        "nfcore_marks_rejected_total", "Marked packets not sent by their mark, by kind.", "packets", "kind"
    )
    for kind in (_ACCEL.INELIGIBLE, _ACCEL.UNKNOWN_MARK, _ACCEL.OTHER_FLOW, _ACCEL.STALE):
        rejected.add(now.of(kind), kind=kind.name.lower())
    yield rejected


def _drops(now: _Readings, features: Features, *, is_own: bool) -> MetricFamily:
    drops = counter("nfcore_drops_total", "Frames dropped, by reason.", "packets", "reason")
    if is_own:
        drops.add(now.of(_ACCEL.MALFORMED), reason="malformed")
        drops.add(now.v1(_SLOT.NO_NEXT_HOP), reason="no_next_hop")
        if "TOO_BIG" not in features:  # then they are answered, and none is dropped
            drops.add(now.of(_ACCEL.TOO_BIG), reason="too_big")
    drops.add(now.both(_SLOT.RING_DROP), reason="no_real")
    drops.add(now.both(_SLOT.ENCAP_FAIL), reason="no_headroom")
    if (unknown := count_unknown_reals(now.of_features)) is not None:
        drops.add(unknown, reason="unknown_real")
    return drops


def _reports(now: _Readings) -> Iterator[MetricFamily]:
    for name, text, value in (
        ("nfcore_reports_total", "Reports of flows made by the datapath.", now.of(_ACCEL.REPORTED)),
        # The program counts losses itself: those that the kernel reports for a perf buffer are the same.
        ("nfcore_reports_lost_total", "Reports of flows without room in the buffer.", now.of(_ACCEL.REPORT_LOST)),
        (
            "nfcore_mark_pool_empty_total",
            "Reports made without a mark: the CPU's pool was empty.",
            now.of(_ACCEL.POOL_EMPTY),
        ),
    ):
        family = counter(name, text, "flows")
        family.add(value)
        yield family
