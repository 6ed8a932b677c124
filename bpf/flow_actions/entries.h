/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The entries, by key. Most are in buckets in shared memory, where one is found by reading one or two cache lines and
 * without a call, which costs more than all else here. Those whose bucket is full are in a hash map. The filter keeps
 * away nearly all packets that have no entry.
 *
 * User space writes buckets: plugins/flow_actions/buckets.py. The target of a free place is 0; it is written last, and
 * cleared first. As in a hash map of the kernel that reuses elements, a packet that comes while one entry is replaced
 * by another in the same place may read parts of both.
 *
 * Build-time choice: BUCKETS_LOG2, the binary logarithm of the number of buckets.
 */
#pragma once

#include <linux/types.h>

#include "lib/map_handle.h"
#include "key.h"

#define BUCKET_PLACES 4

struct flow_entry {
	__u32 slot; /* of its counters */
	__u32 target; /* never 0 */
	__u32 precedence; /* of masked entries: the number of fixed bits, then the priority */
	__u32 pad;
};

/* A place is its key's words, then the entry; no place lies across two cache lines. */
static __always_inline int place_bytes(int family)
{
	return family == AF_INET ? 32 : 64;
}

/* 0 if a place has this key and is not free, else 1. Without a branch for each word: the verifier follows each of them 64 times. */
static __always_inline __u32 is_other(const __u64 *words, const struct match_key *key, int family)
{
	const struct flow_entry *entry = (void *)(words + key_words(family));
	__u64 different = 0;

#pragma unroll
	for (int i = 0; i < key_words(family); i++)
		different |= words[i] ^ key->words[i];
	/* Its highest bit is set if anything differs, or if the target, less than 2^31, is 0. */
	return (different | -different | ((__u64)entry->target - 1)) >> 63;
}

static __always_inline struct flow_entry *find_in_bucket(const struct match_key *key, __u64 hash, int family)
{
	__u32 number = hash >> (64 - BUCKETS_LOG2);
	void *bucket = bpf_map_lookup_elem(family == AF_INET ? MAP(flow_buckets_v4) : MAP(flow_buckets_v6), &number);

	if (!bucket)
		return NULL;
#pragma unroll
	for (int i = 0; i < BUCKET_PLACES; i++) {
		__u64 *words = bucket + i * place_bytes(family);

		if (!is_other(words, key, family))
			return (void *)(words + key_words(family));
	}
	return NULL;
}

/* Whether there is an entry with this key; `hash`: the filter's, of the key. */
static __always_inline int find_entry(struct flow_entry *found, const struct match_key *key, __u64 hash, int family)
{
	struct flow_entry *entry = find_in_bucket(key, hash, family);

	if (!entry) {
		entry = bpf_map_lookup_elem(family == AF_INET ? MAP(flow_overflow_v4) : MAP(flow_overflow_v6),
					    key->words);
		if (!entry)
			return 0;
	}
	*found = *entry;
	return 1;
}
