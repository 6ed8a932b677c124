/* SPDX-License-Identifier: GPL-2.0-only */
/* From a packet's key to its entry: an exact one wins, else that masked one which has the highest precedence. */
#pragma once

#include <linux/types.h>

#include "lib/map_handle.h"
#include "counters.h"
#include "entries.h"
#include "filter.h"
#include "key.h"

/* What a packet has been found to be for. target 0: for nothing. */
struct hit {
	__u32 target;
	__u32 slot;
	__u32 precedence;
};

/*
 * For all that a look-up sets, a value that the verifier does not know: else it follows the paths of "nothing was found
 * yet" and of "something was found" one after the other, through all turns of the loop.
 */
static __always_inline struct hit nothing_found(const struct flow_totals *totals)
{
	return (struct hit){.target = totals->zero, .slot = totals->zero, .precedence = totals->zero};
}

static __always_inline void look_up_masked(struct hit *hit, const struct filter *filter, const struct match_key *key,
					   int family)
{
	__u64 left = candidate_shapes(filter, key, family);

#pragma clang loop unroll(disable)
	for (int i = 0; i < MOST_SHAPES && left; i++) {
		__u64 hash, lowest = left & -left;
		struct match_key masked;
		struct flow_entry entry;

		left ^= lowest;
		mask_key(&masked, filter, key, lowest * BIT_TO_SHAPE >> 58, family);
		hash = hash_key(filter, &masked, family);
		if (!may_have(filter, hash) || !find_entry(&entry, &masked, hash, family))
			continue;
		if (entry.precedence >= hit->precedence) {
			hit->precedence = entry.precedence;
			hit->target = entry.target;
			hit->slot = entry.slot;
		}
	}
}

static __always_inline void look_up(struct hit *hit, const struct match_key *key, const struct flow_totals *totals,
				    int family)
{
	struct filter *filter = find_filter(family);
	struct flow_entry entry;
	__u64 hash;

	*hit = nothing_found(totals);
	if (!filter)
		return;
	hash = hash_key(filter, key, family);
	if (may_have(filter, hash) && find_entry(&entry, key, hash, family)) {
		hit->target = entry.target;
		hit->slot = entry.slot;
		return;
	}
	look_up_masked(hit, filter, key, family);
}
