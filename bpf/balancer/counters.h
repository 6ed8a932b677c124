/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Per-CPU counters: Katran's `stats` and `reals_stats`, and nfcore's own: `hw_accel_stats` counts what marks did,
 * `vip_slow_stats` and `real_slow_stats` count the slow path. The fast path does not write the last two: its packets
 * are the total less those of the slow path.
 *
 * Where a metric is a total less a part of it, a packet raises the part first and the total afterwards:
 *
 *   packets of a VIP or real - those by the slow path      = by mark
 *   all frames - ACCEL_FAST - ACCEL_SLOW                   = by neither path
 *   look-ups in a connection table - misses                = hits
 *
 * So at no time does a total include a packet that its part does not. A difference may be too small, but never too
 * large, when user space reads the total first and the part afterwards.
 */
#pragma once

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "katran_abi.h"

/* Slots of `hw_accel_stats` (u64 each); plugins/katran_accel/layouts.py lists them in the same order. */
enum accel_counter {
	ACCEL_FAST, /* sent by mark */
	ACCEL_SLOW, /* of a VIP, by the slow path; sent or dropped */
	ACCEL_INELIGIBLE, /* marked, but a packet that always takes the slow path: SYN, FIN, RST, over-length */
	ACCEL_UNKNOWN_MARK, /* the mark has no entry */
	ACCEL_OTHER_FLOW, /* the entry is of another flow, family or VIP */
	ACCEL_STALE, /* VIP or real changed since the entry was written, or the real is gone */
	ACCEL_REPORTED,
	ACCEL_REPORT_LOST, /* no room in the event buffer */
	ACCEL_POOL_EMPTY, /* reported without a mark */
	ACCEL_MALFORMED, /* to a VIP: truncated, IP options, fragment; or with less than an IP header */
	ACCEL_REAL_GONE, /* known flow whose real is gone: the ring chooses another */
	ACCEL_TOO_BIG, /* longer than the MTU: dropped, and nobody is told */
	ACCEL_COUNTERS,
};

static __always_inline void count(enum accel_counter which)
{
	__u32 slot = which;
	__u64 *counter = bpf_map_lookup_elem(MAP(hw_accel_stats), &slot);

	if (counter)
		*counter += 1;
}

static __always_inline void count_v1(__u32 slot)
{
	struct lb_stats *stats = bpf_map_lookup_elem(MAP(stats), &slot);

	if (stats)
		stats->v1 += 1;
}

static __always_inline void count_v2(__u32 slot)
{
	struct lb_stats *stats = bpf_map_lookup_elem(MAP(stats), &slot);

	if (stats)
		stats->v2 += 1;
}

/* Counts in v1 for IPv4, in v2 for IPv6. */
static __always_inline void count_family(__u32 slot, int family)
{
	if (family == AF_INET)
		count_v1(slot);
	else
		count_v2(slot);
}

static __always_inline void count_bytes(__u32 slot, __u64 bytes)
{
	struct lb_stats *stats = bpf_map_lookup_elem(MAP(stats), &slot);

	if (stats) {
		stats->v1 += 1;
		stats->v2 += bytes;
	}
}

static __always_inline void count_real(__u32 real, __u64 bytes)
{
	struct lb_stats *stats = bpf_map_lookup_elem(MAP(reals_stats), &real);

	if (stats) {
		stats->v1 += 1;
		stats->v2 += bytes;
	}
}

/* Counts the frame by its verdict, and returns the verdict. `bytes`: length of the frame as it arrived. */
static __always_inline int count_verdict(int verdict, __u64 bytes)
{
	count_bytes(STATS_XDP_TOTAL, bytes);
	if (verdict == XDP_TX)
		count_bytes(STATS_XDP_TX, bytes);
	else if (verdict == XDP_DROP)
		count_bytes(STATS_XDP_DROP, bytes);
	else
		count_bytes(STATS_XDP_PASS, bytes);
	return verdict;
}
