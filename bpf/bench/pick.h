/* SPDX-License-Identifier: GPL-2.0-only */
/* Picks the flow of the next packet. User space sets the state between runs; one CPU runs at a time. */
#pragma once

#include <linux/types.h>

struct bench_state {
	__u64 random; /* never 0 */
	__u32 flows; /* at random: how many flows, from `flow` on */
	__u32 flow; /* in turn: that of the next packet */
	__u32 packets; /* in turn: packets per flow */
	__u32 left; /* in turn: remaining packets of the flow */
};

#ifdef PICK_AT_RANDOM
/* Marsaglia's xorshift64, scaled by a multiplication: no division, no call. */
static __always_inline __u32 pick_flow(struct bench_state *state)
{
	__u64 x = state->random;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	state->random = x;
	return state->flow + ((x & 0xffffffff) * state->flows >> 32);
}
#else
static __always_inline __u32 pick_flow(struct bench_state *state)
{
	__u32 flow = state->flow;

	if (state->left > 1) {
		state->left -= 1;
	} else {
		state->flow = flow + 1;
		state->left = state->packets;
	}
	return flow;
}
#endif
