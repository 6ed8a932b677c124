/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What says in a few nanoseconds that a packet has no entry, before any entry is read; one of each family.
 * User space writes it in shared memory: plugins/flow_actions/filters.py. It may say "perhaps" too often, never too
 * seldom: an entry can be found before its bits are here, and as long as they are.
 *
 *   key ──► hash ──► bits[]: is there perhaps such an exact entry?
 *    │
 *    └──► src[], dst[], sport[], dport[], proto[]: the shapes with an entry that has this value in this field; AND of
 *         all: the candidates. Each candidate: key & mask ──► hash ──► bits[]: is there perhaps such a masked entry?
 *
 * Build-time choice: FILTER_LOG2, the binary logarithm of the number of bits.
 */
#pragma once

#include <linux/types.h>

#include "lib/map_handle.h"
#include "key.h"

#define MOST_SHAPES 64
#define ADDRESS_BUCKETS_LOG2 12
#define ADDRESS_LEVELS 4
#define PORT_BUCKETS_LOG2 10
#define PROTOCOL_VALUES 512 /* 9 bits of a key */
/* What the bits of a key's hash choose, from the highest on: the word, then two bits in it. */
#define FILTER_WORD (64 - (FILTER_LOG2 - 6))
#define FIRST_BIT (FILTER_WORD - 6)
#define SECOND_BIT (FILTER_WORD - 12)
/* Each product of a power of two with it has other highest 6 bits: a bit's number without a loop or a table. */
#define BIT_TO_SHAPE 0x03f79d71b4cb0a89ull

/* Sets of shapes by buckets of addresses. */
struct address_shapes {
	__u64 keys[ADDRESS_LEVELS + 1]; /* random, odd */
	__u64 levels[ADDRESS_LEVELS][1 << ADDRESS_BUCKETS_LOG2]; /* by 24 and 32 bits; IPv6: by 48, 64, 120 and 128 */
};

struct filter {
	__u64 hash_keys[KEY_WORDS_V6]; /* random, odd */
	__u64 port_key;
	__u64 shapes; /* those in use, one bit each; as all sets of shapes here */
	struct match_key masks[MOST_SHAPES]; /* by number - 1 */
	struct address_shapes src, dst;
	__u64 sport[1 << PORT_BUCKETS_LOG2];
	__u64 dport[1 << PORT_BUCKETS_LOG2];
	__u64 protocol[PROTOCOL_VALUES];
	__u64 bits[1 << (FILTER_LOG2 - 6)];
};

static __always_inline struct filter *find_filter(int family)
{
	__u32 slot = 0;

	return bpf_map_lookup_elem(family == AF_INET ? MAP(flow_filter_v4) : MAP(flow_filter_v6), &slot);
}

/*
 * A product carries a difference to higher bits only, and the last bytes of an address, which differ most, are the highest
 * bits of a word. So the upper half is folded onto the lower one first.
 */
static __always_inline __u64 hash_key(const struct filter *filter, const struct match_key *key, int family)
{
	__u64 hash = 0;

#pragma unroll
	for (int i = 0; i < key_words(family); i++)
		hash += (key->words[i] ^ key->words[i] >> 32) * filter->hash_keys[i];
	return hash;
}

/* Whether there may be an entry whose key has this hash. Each has two bits of a word: others seldom have both. */
static __always_inline int may_have(const struct filter *filter, __u64 hash)
{
	__u64 bits = 1ull << (hash >> SECOND_BIT & 63) | 1ull << (hash >> FIRST_BIT & 63);

	return (filter->bits[hash >> FILTER_WORD] & bits) == bits;
}

static __always_inline __u64 address_bucket(__u64 hash)
{
	return hash >> (64 - ADDRESS_BUCKETS_LOG2);
}

/*
 * The shapes that may have an entry for an address, whose two words these are. It is looked up by its first bits, as
 * many as each level has, so that a longer prefix is in one bucket of the level.
 */
static __always_inline __u64 shapes_of_ipv4(const struct address_shapes *shapes, __u64 address)
{
	return shapes->levels[0][address_bucket((address & 0xffffff) * shapes->keys[0])] &
	       shapes->levels[1][address_bucket((address & 0xffffffff) * shapes->keys[1])];
}

static __always_inline __u64 shapes_of_ipv6(const struct address_shapes *shapes, __u64 network, __u64 host)
{
	return shapes->levels[0][address_bucket((network & 0xffffffffffff) * shapes->keys[0])] &
	       shapes->levels[1][address_bucket(network * shapes->keys[1])] &
	       shapes->levels[2]
			     [address_bucket(network * shapes->keys[2] + (host & 0xffffffffffffff) * shapes->keys[3])] &
	       shapes->levels[3][address_bucket(network * shapes->keys[3] + host * shapes->keys[4])];
}

static __always_inline __u32 port_bucket(__u64 port, __u64 key)
{
	return port * key >> (64 - PORT_BUCKETS_LOG2);
}

/* The shapes that may have an entry for the packet, one bit each. */
static __always_inline __u64 candidate_shapes(const struct filter *filter, const struct match_key *key, int family)
{
	__u64 first = key->words[0], shapes = filter->shapes;

	if (!shapes)
		return 0;
	shapes = filter->sport[port_bucket(first & 0xffff, filter->port_key)] &
		 filter->dport[port_bucket(first >> 16 & 0xffff, filter->port_key)] &
		 filter->protocol[first >> PROTOCOL_SHIFT & (PROTOCOL_VALUES - 1)];
	if (family == AF_INET)
		return shapes & shapes_of_ipv4(&filter->src, key->words[1]) &
		       shapes_of_ipv4(&filter->dst, key->words[1] >> 32);
	return shapes & shapes_of_ipv6(&filter->src, key->words[1], key->words[2]) &
	       shapes_of_ipv6(&filter->dst, key->words[3], key->words[4]);
}

/* `masked`: the key as an entry of the shape would have it; `shape` counts from 0. */
static __always_inline void mask_key(struct match_key *masked, const struct filter *filter, const struct match_key *key,
				     __u64 shape, int family)
{
	const struct match_key *mask = &filter->masks[shape & (MOST_SHAPES - 1)];

#pragma unroll
	for (int i = 0; i < key_words(family); i++)
		masked->words[i] = key->words[i] & mask->words[i];
	masked->words[0] |= (shape + 1) << SHAPE_SHIFT;
}
