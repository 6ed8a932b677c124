/* SPDX-License-Identifier: GPL-2.0-only */
/* What entries lead to: an action with its parameters; and what a packet with the action's shared mark must match. */
#pragma once

#include <linux/types.h>

#include "lib/map_handle.h"
#include "counters.h"
#include "key.h"

/* What packets must match: words as in a key. A masked word has 0 where anything matches. */
struct flow_pattern {
	struct {
		__u64 value;
		__u64 mask;
	} words[KEY_WORDS_V6];
};

struct flow_target {
	__u32 action; /* enum flow_action */
	__u32 argument; /* slot of an interface, DSCP, CPU; police: 1 if it counts bytes, not packets */
	__u64 cost; /* police: of a packet or byte, in 1/64 ns / 65,536 */
	__u64 burst; /* police: in 1/64 ns */
	__u32 family; /* that the packets of a shared mark must have: 4, 6, or 0: both, by ports and protocol */
	__u32 checked; /* 0: whatever has the mark gets the action, unread */
	struct flow_pattern require;
} __attribute__((aligned(8)));

static __always_inline struct flow_target *find_target(__u32 number)
{
	return bpf_map_lookup_elem(MAP(flow_targets), &number);
}

static __always_inline int fits(const struct flow_pattern *pattern, const struct match_key *key, int family)
{
	__u64 different = 0;

#pragma unroll
	for (int i = 0; i < key_words(family); i++)
		different |= (key->words[i] ^ pattern->words[i].value) & pattern->words[i].mask;
	return !different;
}

static __always_inline int is_family(__u32 wanted, int family)
{
	return wanted == (family == AF_INET ? 4 : 6);
}
