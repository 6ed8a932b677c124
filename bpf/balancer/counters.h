/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Per-CPU counters: Katran's `stats` and `reals_stats`, and our own: `hw_accel_stats` for what marks did,
 * `vip_slow_stats` and `real_slow_stats` for what the slow path did. The fast path writes none of the last two: what it
 * sent is what is left of all that was.
 *
 * Where a figure is what a part leaves of a whole, a packet raises the part first and the whole afterwards:
 *
 *   packets of a VIP or real - those by the slow path      = by mark
 *   all frames - ACCEL_FAST - ACCEL_SLOW                   = neither
 *   look-ups in a connection table - misses                = hits
 *
 * So, whatever is under way, no whole holds a packet that its part has yet to count. Who reads the whole first and the
 * part afterwards may find too little left, and never too much.
 */
#pragma once

#include "lib/map_handle.h"
#include "katran_abi.h"

/* Slots of `hw_accel_stats` (u64 each); plugins/katran_accel/layouts.py lists them in the same order. */
enum accel_counter {
	ACCEL_FAST, /* sent by mark */
	ACCEL_SLOW, /* sent without one */
	ACCEL_INELIGIBLE, /* marked, but a packet that always takes the slow path: SYN, FIN, RST, over-length */
	ACCEL_UNKNOWN_MARK, /* no entry behind the mark */
	ACCEL_OTHER_FLOW, /* entry of another flow, family or VIP */
	ACCEL_STALE, /* VIP or real changed since the entry was written, or the real is gone */
	ACCEL_REPORTED,
	ACCEL_REPORT_LOST, /* no room in the event buffer */
	ACCEL_POOL_EMPTY, /* reported without a mark */
	ACCEL_MALFORMED, /* truncated, IP options, fragment */
	ACCEL_REAL_GONE, /* known flow whose real is gone: the ring chose anew */
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

/* Counts the frame by its verdict and hands the verdict on. `bytes` is the length that it arrived with. */
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
