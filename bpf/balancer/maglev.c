// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fills a Maglev ring, turn by turn; it is attached to nothing and sees no packet. User space describes the players
 * and their turns in maglev_work and has this run by BPF_PROG_TEST_RUN, over and over: a run does a little and leaves
 * the rest to the next. The rule is told in plugins/katran_accel/maglev.py, which builds the same rings with numpy.
 */
#include <linux/bpf.h>

#include "lib/map_handle.h"
#include "maglev.h"

/* Slots looked at before the program calls itself: about a microsecond. The verifier follows each step. */
#define STEPS 512

static __always_inline struct maglev_player *whose(struct maglev *work, __u64 turn)
{
	return &work->players[work->turns[turn] & (MAGLEV_PLAYERS - 1)];
}

/*
 * What is below zero goes up by RING_SLOTS, without a branch that nobody can predict. Any of the upper bits is the
 * sign; shifted by 63, it is a pattern of which newer verifiers follow both outcomes, at every step.
 */
static __always_inline __s64 wrapped(__s64 slot)
{
	return slot + ((slot >> 62) & RING_SLOTS);
}

/* Walks on, until few slots are left. Masks keep what is carried along in the same bounds after every step. */
static __always_inline void walk(struct maglev *work, __u64 turn)
{
	struct maglev_player *player = whose(work, turn);
	__u64 position = player->position & (MAGLEV_SLOTS - 1), skip = player->skip;

#pragma nounroll
	for (int step = 0; step < STEPS; step++) {
		__u64 slot = position, bit = 1ull << (slot % 64), *word = &work->taken[slot / 64];

		position = wrapped(slot + skip - RING_SLOTS) & (MAGLEV_SLOTS - 1);
		if (*word & bit)
			continue;
		*word |= bit;
		work->ring[slot] = player->num;
		player->position = position;
		turn = (turn + 1) & (MAGLEV_SLOTS - 1);
		if (turn >= RING_SLOTS - MAGLEV_FEW)
			break;
		player = whose(work, turn);
		position = player->position & (MAGLEV_SLOTS - 1);
		skip = player->skip;
	}
	player->position = position;
	work->turn = turn;
}

/* a * b modulo RING_SLOTS = 2^16 + 1, where 2^16 counts as -1. Neither factor exceeds 2^16. */
static __always_inline __s64 product(__u64 a, __u64 b)
{
	__u64 both = a * b;

	return wrapped((both & 0xffff) - (both >> 16));
}

/* Plays one turn when few slots are left: takes the one that the walk would meet first. */
static __always_inline void choose(struct maglev *work, __u64 turn)
{
	const struct maglev_player *player = whose(work, turn);
	__u64 left = RING_SLOTS - turn, chosen;
	/* Steps to the slot that is nearest so far, and its place in `few`. */
	__s64 nearest = 1ll << 62;

#pragma nounroll
	for (__u64 i = 0; i < MAGLEV_FEW && i < left; i++) {
		__s64 ahead = wrapped((__s64)work->few[i] - player->position);
		__s64 further = (product(ahead, player->inverse) * MAGLEV_FEW | i) - nearest;

		nearest += further & (further >> 62);
	}
	chosen = nearest & (MAGLEV_FEW - 1);
	work->ring[work->few[chosen] & (MAGLEV_SLOTS - 1)] = player->num;
	work->few[chosen] = work->few[(left - 1) & (MAGLEV_FEW - 1)];
	work->turn = turn + 1;
}

int maglev(struct xdp_md *ctx)
{
	__u32 only = 0;
	struct maglev *work = bpf_map_lookup_elem(MAP(maglev_work), &only);
	__u64 turn;

	if (!work)
		return XDP_ABORTED;
	turn = work->turn & (MAGLEV_SLOTS - 1);
	if (turn < RING_SLOTS - MAGLEV_FEW)
		walk(work, turn);
	else if (turn < RING_SLOTS && work->listed)
		choose(work, turn);
	else
		return XDP_DROP;
	bpf_tail_call_(MAP(maglev_again), ctx, 0);
	return XDP_DROP;
}
