/* SPDX-License-Identifier: GPL-2.0-only */
/* Connection table: one LRU hash per forwarding CPU, and one for the CPUs without. */
#pragma once

#include "lib/flow_key.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "katran_abi.h"

/* The table of this CPU; NULL when it has none of its own and shares the fallback. */
static __always_inline void *lru_of_this_cpu(void)
{
	__u32 cpu = bpf_get_smp_processor_id();
	void *lru = bpf_map_lookup_elem(MAP(lru_mapping), &cpu);

	if (!lru)
		count_v1(STATS_FALLBACK_LRU);
	return lru;
}

/* The flow's live entry or NULL. A UDP flow has no end of its own: idle for too long, it counts as new. */
static __always_inline struct real_pos_lru *lru_lookup(void *lru, const struct flow_key *key)
{
	struct real_pos_lru *entry;
	__u64 now;

	/*
	 * Two calls, kept apart: one that may be of either map goes through the generic look-up, which the verifier
	 * does not replace by a direct call.
	 */
	if (lru) {
		entry = bpf_map_lookup_elem(lru, key);
		asm volatile("" : "+r"(entry));
	} else {
		entry = bpf_map_lookup_elem(MAP(fallback_cache), key);
	}

	if (!entry || key->proto != IPPROTO_UDP)
		return entry;
	now = bpf_ktime_get_ns();
	if (now - entry->atime > UDP_IDLE_LIMIT_NS)
		return NULL;
	entry->atime = now;
	return entry;
}

/* Whether this CPU has seen more new flows in the running second than a table may be churned with. */
static __always_inline int new_flow_flood(__u64 now)
{
	__u32 slot = STATS_NEW_FLOWS;
	struct lb_stats *window = bpf_map_lookup_elem(MAP(stats), &slot);

	if (!window)
		return 1;
	if (now - window->v2 > NEW_FLOW_WINDOW_NS) {
		window->v1 = 1;
		window->v2 = now;
		return 0;
	}
	window->v1 += 1;
	return window->v1 > NEW_FLOWS_PER_WINDOW;
}

/* Remembers the flow's real. `fresh` brings the report state; its other fields are filled here. */
static __always_inline void lru_insert(void *lru, const struct flow_key *key, __u32 real, struct real_pos_lru *fresh,
				       __u64 now)
{
	count_v2(STATS_RING);
	fresh->pos = real;
	fresh->atime = key->proto == IPPROTO_UDP ? now : 0;
	if (lru) {
		long done = bpf_map_update_elem(lru, key, fresh, BPF_ANY);
		asm volatile("" : "+r"(done));
	} else {
		bpf_map_update_elem(MAP(fallback_cache), key, fresh, BPF_ANY);
	}
}
