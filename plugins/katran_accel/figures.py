# SPDX-License-Identifier: Apache-2.0
"""The balancer's counters as metric families."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nfcore.metrics import MetricFamily, MetricKind

from . import layouts as lay
from .balancer import Balancer

COUNTER, GAUGE = MetricKind.COUNTER, MetricKind.GAUGE


def _summed(balancer: Balancer, name: str) -> NDArray[np.void]:
    """`stats` or `reals_stats`, summed over the CPUs."""
    per_cpu = balancer.maps[name].read_array()
    total = np.zeros(len(per_cpu), dtype=lay.LB_STATS)
    for field in ("v1", "v2"):
        total[field] = per_cpu[field].sum(axis=1)
    return total


def accel_counters(balancer: Balancer) -> NDArray[np.uint64]:
    """`hw_accel_stats` by :class:`layouts.AccelCounter`, summed over the CPUs."""
    total: NDArray[np.uint64] = balancer.maps["hw_accel_stats"].read_array().sum(axis=1).astype(np.uint64)
    return total


def families(balancer: Balancer) -> Iterator[MetricFamily]:
    """Give all figures of the balancer."""
    stats, accel = _summed(balancer, "stats"), accel_counters(balancer)
    yield _paths(stats, accel)
    yield from _per_vip(balancer, stats)
    yield from _per_real(balancer)
    yield from _datapath(stats, accel)
    lost = MetricFamily("nfcore_reports_lost_total", COUNTER, "Reports of flows without room in the buffer.", "flows")
    # What the kernel says it has lost of a perf buffer, the program knew already.
    lost.add(int(accel[lay.AccelCounter.REPORT_LOST]))
    yield lost


def _paths(stats: NDArray[np.void], accel: NDArray[np.uint64]) -> MetricFamily:
    fast, slow = int(accel[lay.AccelCounter.FAST]), int(accel[lay.AccelCounter.SLOW])
    total = int(stats["v1"][lay.StatsSlot.XDP_TOTAL])
    family = MetricFamily("nfcore_packets_total", COUNTER, "Packets by how their way was found.", "packets")
    family.add(fast, path="fast")
    family.add(slow, path="slow")
    # The counters are not read at one instant: "none" is what is left and must not go below zero.
    family.add(max(0, total - fast - slow), path="none")
    return family


def _per_vip(balancer: Balancer, stats: NDArray[np.void]) -> Iterator[MetricFamily]:
    packets = MetricFamily("nfcore_vip_packets_total", COUNTER, "Packets sent for a VIP.", "packets")
    volume = MetricFamily("nfcore_vip_bytes_total", COUNTER, "Bytes sent for a VIP, of its IP packets.", "bytes")
    for number, vip in balancer.inventory.vips.items():
        packets.add(int(stats["v1"][number]), vip=vip.name)
        volume.add(int(stats["v2"][number]), vip=vip.name)
    yield packets
    yield volume


def _per_real(balancer: Balancer) -> Iterator[MetricFamily]:
    stats = _summed(balancer, "reals_stats")
    packets = MetricFamily("nfcore_real_packets_total", COUNTER, "Packets sent to a real.", "packets")
    volume = MetricFamily("nfcore_real_bytes_total", COUNTER, "Bytes sent to a real, of its IP packets.", "bytes")
    for address, number in balancer.inventory.reals.items():
        packets.add(int(stats["v1"][number]), real=str(address))
        volume.add(int(stats["v2"][number]), real=str(address))
    yield packets
    yield volume


def _datapath(stats: NDArray[np.void], accel: NDArray[np.uint64]) -> Iterator[MetricFamily]:
    slot, counter = lay.StatsSlot, lay.AccelCounter
    verdicts = MetricFamily("nfcore_verdicts_total", COUNTER, "Frames by the program's verdict.", "packets")
    for name in ("TX", "DROP", "PASS"):
        verdicts.add(int(stats["v1"][slot["XDP_" + name]]), verdict=name.lower())
    yield verdicts
    rejected = MetricFamily("nfcore_marks_rejected_total", COUNTER, "Marked packets not sent by their mark.", "packets")
    for kind in (counter.INELIGIBLE, counter.UNKNOWN_MARK, counter.OTHER_FLOW, counter.STALE):
        rejected.add(int(accel[kind]), kind=kind.name.lower())
    yield rejected
    drops = MetricFamily("nfcore_drops_total", COUNTER, "Frames dropped, by reason.", "packets")
    drops.add(int(accel[counter.MALFORMED]), reason="malformed")
    drops.add(int(stats["v1"][slot.TOO_BIG] + stats["v2"][slot.TOO_BIG]), reason="too_big")
    drops.add(int(stats["v1"][slot.RING_DROP] + stats["v2"][slot.RING_DROP]), reason="no_real")
    drops.add(int(stats["v1"][slot.ENCAP_FAIL] + stats["v2"][slot.ENCAP_FAIL]), reason="no_headroom")
    yield drops
    gone = MetricFamily(
        "nfcore_real_gone_total", COUNTER, "Packets of known flows whose real was gone: the ring chose anew.", "packets"
    )
    gone.add(int(accel[counter.REAL_GONE]))
    yield gone
    lru = MetricFamily("nfcore_lru_lookups_total", COUNTER, "Look-ups in the connection table.", "packets")
    misses = int(stats["v2"][slot.LRU])
    lru.add(max(0, int(stats["v1"][slot.LRU]) - misses), result="hit")
    lru.add(misses, result="miss")
    yield lru
    reports = MetricFamily("nfcore_reports_total", COUNTER, "Reports of flows made by the datapath.", "flows")
    reports.add(int(accel[counter.REPORTED]))
    yield reports
    empty = MetricFamily(
        "nfcore_mark_pool_empty_total",
        COUNTER,
        "Reports made without a mark: the CPU's pool was empty.",
        "flows",
    )
    empty.add(int(accel[counter.POOL_EMPTY]))
    yield empty
