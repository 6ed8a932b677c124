/* SPDX-License-Identifier: GPL-2.0-only */
/* What the program counts, per CPU: `decap_counters` as published, and `decap_drops` of nfcore's own. */
#pragma once

#include <linux/types.h>

#include "lib/map_handle.h"
#include "tunnel.h"

struct decap_counters {
	__u64 v4; /* by the outer header */
	__u64 v6;
	__u64 total;
	__u64 tpr_misrouted; /* inner TCP packets with the id of another server */
	__u64 tpr_total; /* inner TCP packets with an id */
};

struct decap_drops {
	__u64 fragments;
	__u64 options;
	__u64 malformed;
};

static __always_inline void count_decapsulated(const struct tunnel *tunnel)
{
	struct decap_counters *counters;
	__u32 key = 0;

	counters = bpf_map_lookup_elem(MAP(decap_counters), &key);
	if (!counters)
		return;
	counters->total++;
	if (tunnel->outer_is_v6)
		counters->v6++;
	else
		counters->v4++;
}

static __always_inline void count_server_id(int is_other)
{
	struct decap_counters *counters;
	__u32 key = 0;

	counters = bpf_map_lookup_elem(MAP(decap_counters), &key);
	if (!counters)
		return;
	counters->tpr_total++;
	if (is_other)
		counters->tpr_misrouted++;
}

static __always_inline void count_drop(enum tunnel_state state)
{
	struct decap_drops *drops;
	__u32 key = 0;

	drops = bpf_map_lookup_elem(MAP(decap_drops), &key);
	if (!drops)
		return;
	if (state == TUNNEL_FRAGMENT)
		drops->fragments++;
	else if (state == TUNNEL_OPTIONS)
		drops->options++;
	else
		drops->malformed++;
}
