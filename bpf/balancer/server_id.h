/* SPDX-License-Identifier: GPL-2.0-only */
/* What all packets that name their real have in common: from a server id to the real, and the connection table. */
#pragma once

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "katran_abi.h"
#include "lru.h"
#include "real.h"

enum id_result {
	ID_NONE, /* by connection table or ring */
	ID_NAMES_REAL,
	ID_MOVES_FLOW, /* the same, and so far the connection table had another real */
	ID_OF_NOBODY, /* of a real that is not there: dropped */
};

#ifdef ROUTES_BY_ID
/* Counts in a map of one element; `field` is one of its struct. */
#define COUNT_FIELD(map, layout, field)                                                                                \
	do {                                                                                                           \
		__u32 first = 0;                                                                                       \
		struct layout *counters = bpf_map_lookup_elem(MAP(map), &first);                                       \
		if (counters)                                                                                          \
			counters->field += 1;                                                                          \
	} while (0)

/* The number of the real of an id, NULL when the map has no such index; 0: the id leads nowhere at present. */
static __always_inline __u32 *real_of_id(__u32 id)
{
	return bpf_map_lookup_elem(MAP(server_id_map), &id);
}

static __always_inline struct lb_stats *server_id_stats_of(__u32 vip_num)
{
#if defined(QUIC) || defined(TCP_SERVER_IDS)
	return bpf_map_lookup_elem(MAP(server_id_stats), &vip_num);
#else
	return NULL;
#endif
}

static __always_inline void count_first_packet(__u32 vip_num)
{
	struct lb_stats *stats = server_id_stats_of(vip_num);

	if (stats)
		stats->v1 += 1;
}

static __always_inline void count_mismatch(__u32 vip_num)
{
	struct lb_stats *stats = server_id_stats_of(vip_num);

	if (stats)
		stats->v2 += 1;
}

enum lru_before { LRU_HAD_NONE, LRU_HAD_SAME, LRU_HAD_OTHER };

/*
 * Lets the connection table have the real that an id names. A new entry counts as expired: without an id, a UDP flow's
 * next packet goes by the ring.
 */
static __always_inline enum lru_before correct_entry(void *lru, const struct flow_key *key, __u32 real_key)
{
	struct real_pos_lru *entry = lru_entry(lru, key), fresh = {.pos = real_key};

	if (!entry) {
		if (!new_flow_flood(bpf_ktime_get_ns()))
			lru_store(lru, key, &fresh);
		return LRU_HAD_NONE;
	}
	if (entry->pos == real_key)
		return LRU_HAD_SAME;
	entry->pos = real_key;
	return LRU_HAD_OTHER;
}
#endif
