/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A rate limit: a token bucket, kept as a clock of its own that each packet moves on by what it costs. The bucket is
 * full while that clock is `burst` behind the real one, and empty when it has caught up. All CPUs share it. They read
 * and then add: each of them may let at most one packet too many pass.
 */
#pragma once

#include <linux/types.h>

#include "lib/map_handle.h"
#include "target.h"

#define POLICE_TICKS_LOG2 6 /* of a nanosecond */
#define POLICE_COST_SHIFT 16

/* Whether the packet is within the rate of target `number`. */
static __always_inline int conforms(const struct flow_target *target, __u32 number, __u64 bytes)
{
	__s64 now = bpf_ktime_get_ns() << POLICE_TICKS_LOG2;
	__s64 cost = (target->argument ? bytes : 1) * target->cost >> POLICE_COST_SHIFT;
	__s64 *clock = bpf_map_lookup_elem(MAP(flow_police), &number);
	__s64 full = now - (__s64)target->burst;
	__s64 used;

	if (!clock)
		return 0;
	used = *clock;
	if (used < full) {
		*clock = full;
		used = full;
	}
	if (used + cost > now)
		return 0;
	__sync_fetch_and_add(clock, cost);
	return 1;
}
