/* SPDX-License-Identifier: GPL-2.0-only */
/* Pools of marks that XDP takes by itself, for flow-id. */
#pragma once

#include <linux/types.h>

#include "lib/map_handle.h"

#ifdef MARK_IS_FLOW
/*
 * Marks leased to one CPU. Only XDP on that CPU writes `taken`, only user space writes `filled`; both count up and
 * wrap. User space keeps at most POOL_SLOTS - 1 marks in a pool, so that XDP can give back the one that it has just
 * taken. User space lowers `filled` when it reclaims marks: then `filled` may be lower than `taken`.
 */
struct mark_pool {
	__u32 taken;
	__u32 pad_taken[15];
	__u32 filled;
	__u32 pad_filled[15];
	__u32 slots[POOL_SLOTS];
};

static __always_inline __u32 take_mark(__u32 cpu)
{
	struct mark_pool *pool = bpf_map_lookup_elem(MAP(markid_pool_mapping), &cpu);
	__u32 taken, mark;

	if (!pool)
		return 0;
	taken = pool->taken;
	if ((__s32)(*(volatile __u32 *)&pool->filled - taken) <= 0)
		return 0;
	mark = pool->slots[taken & (POOL_SLOTS - 1)];
	pool->taken = taken + 1;
	return mark;
}

static __always_inline void give_back_mark(__u32 cpu)
{
	struct mark_pool *pool = bpf_map_lookup_elem(MAP(markid_pool_mapping), &cpu);

	if (pool)
		pool->taken -= 1;
}
#else
static __always_inline void give_back_mark(__u32 cpu)
{
}
#endif
