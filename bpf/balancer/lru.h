/* SPDX-License-Identifier: GPL-2.0-only */
/* Connection tables: one LRU hash per forwarding CPU, and a fallback that the other CPUs share. */
#pragma once

#include "lib/flow_key.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "katran_abi.h"

/* The table of this CPU; NULL when it has none and uses the fallback. */
static __always_inline void *lru_of_this_cpu(void)
{
	__u32 cpu = bpf_get_smp_processor_id();
	void *lru = bpf_map_lookup_elem(MAP(lru_mapping), &cpu);

	if (!lru)
		count_v1(STATS_FALLBACK_LRU);
	return lru;
}

/*
 * The flow's key in the tables: its whole 5-tuple, also what its VIP's hash ignores. An IPv6 flow that would have the
 * key of an IPv4 flow says so in `pad`.
 */
static __always_inline struct flow_key connection_key(const struct packet *packet, int family)
{
	struct flow_key key = packet->flow;

	if (family == AF_INET6 && !(key.src[1] | key.src[2] | key.src[3] | key.dst[1] | key.dst[2] | key.dst[3]))
		key.pad[0] = 6;
	return key;
}

/*
 * The flow's entry or NULL, whatever its age. Two calls that the compiler must not merge: of a call with one map, the
 * verifier makes a direct call of the map's own look-up; of a call with either map it does not.
 */
static __always_inline struct real_pos_lru *lru_entry(void *lru, const struct flow_key *key)
{
	struct real_pos_lru *entry;

	if (lru) {
		entry = bpf_map_lookup_elem(lru, key);
		asm volatile("" : "+r"(entry));
	} else {
		entry = bpf_map_lookup_elem(MAP(fallback_cache), key);
	}
	return entry;
}

/* The flow's entry or NULL. UDP shows no end of a flow: after UDP_IDLE_LIMIT_NS without packets it counts as new. */
static __always_inline struct real_pos_lru *lru_lookup(void *lru, const struct flow_key *key)
{
	struct real_pos_lru *entry = lru_entry(lru, key);
	__u64 now;

	if (!entry || key->proto != IPPROTO_UDP)
		return entry;
	now = bpf_ktime_get_ns();
	if (now - entry->atime > UDP_IDLE_LIMIT_NS)
		return NULL;
	entry->atime = now;
	return entry;
}

/* Counts an event of a new flow; whether this CPU has had more in the current second than its table is to store. */
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

/* Stores an entry. An `atime` of 0 is expired at once, for a UDP flow. */
static __always_inline void lru_store(void *lru, const struct flow_key *key, struct real_pos_lru *entry)
{
	count_v2(STATS_RING);
	if (lru) {
		long done = bpf_map_update_elem(lru, key, entry, BPF_ANY);
		asm volatile("" : "+r"(done));
	} else {
		bpf_map_update_elem(MAP(fallback_cache), key, entry, BPF_ANY);
	}
}

/* Stores the flow with its real. `fresh` has the report state; its other fields are set here. */
static __always_inline void lru_insert(void *lru, const struct flow_key *key, __u32 real, struct real_pos_lru *fresh,
				       __u64 now)
{
	fresh->pos = real;
	fresh->atime = key->proto == IPPROTO_UDP ? now : 0;
	lru_store(lru, key, fresh);
}
