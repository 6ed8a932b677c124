// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fills a Maglev ring, turn by turn. Attached to nothing: user space writes the reals and their turns into maglev_work
 * and runs this by BPF_PROG_TEST_RUN until the ring is full; each run continues where the last one stopped.
 * plugins/katran_accel/maglev.py has the rule, and builds the same rings with numpy.
 */
#include <linux/bpf.h>

#include "lib/map_handle.h"
#include "maglev.h"

/* Steps before the program calls itself: about a microsecond. The verifier follows each of them. */
#define STEPS 512

static __always_inline struct maglev_real *real_of_turn(struct maglev *work, __u64 turn)
{
	return &work->reals[work->turns[turn] & (MAGLEV_REALS - 1)];
}

/*
 * Adds RING_SLOTS to a negative number, without a branch, which the CPU could not predict. Bit 62 equals the sign, and
 * is used instead of it: of a shift by 63, newer verifiers follow both outcomes, at every step.
 */
static __always_inline __s64 modulo_ring(__s64 slot)
{
	return slot + ((slot >> 62) & RING_SLOTS);
}

/* Takes turns until few slots are free. The masks give each variable the same bounds after every step. */
static __always_inline void walk(struct maglev *work, __u64 turn)
{
	struct maglev_real *real = real_of_turn(work, turn);
	__u64 position = real->position & (MAGLEV_SLOTS - 1), skip = real->skip;

#pragma nounroll
	for (int step = 0; step < STEPS; step++) {
		__u64 slot = position, bit = 1ull << (slot % 64), *word = &work->taken[slot / 64];

		position = modulo_ring(slot + skip - RING_SLOTS) & (MAGLEV_SLOTS - 1);
		if (*word & bit)
			continue;
		*word |= bit;
		work->ring[slot] = real->num;
		real->position = position;
		turn = (turn + 1) & (MAGLEV_SLOTS - 1);
		if (turn >= RING_SLOTS - MAGLEV_LAST_SLOTS)
			break;
		real = real_of_turn(work, turn);
		position = real->position & (MAGLEV_SLOTS - 1);
		skip = real->skip;
	}
	real->position = position;
	work->turn = turn;
}

/* a * b modulo RING_SLOTS = 2^16 + 1, where 2^16 equals -1. Neither factor exceeds 2^16. */
static __always_inline __s64 multiply(__u64 a, __u64 b)
{
	__u64 both = a * b;

	return modulo_ring((both & 0xffff) - (both >> 16));
}

/* Takes one turn when few slots are free: the slot that the walk would visit first. */
static __always_inline void take_nearest(struct maglev *work, __u64 turn)
{
	const struct maglev_real *real = real_of_turn(work, turn);
	__u64 left = RING_SLOTS - turn, chosen;
	/* Steps of the walk to the nearest slot so far, and its index in `free_slots`. */
	__s64 nearest = 1ll << 62;

#pragma nounroll
	for (__u64 i = 0; i < MAGLEV_LAST_SLOTS && i < left; i++) {
		__s64 ahead = modulo_ring((__s64)work->free_slots[i] - real->position);
		__s64 further = (multiply(ahead, real->inverse) * MAGLEV_LAST_SLOTS | i) - nearest;

		nearest += further & (further >> 62);
	}
	chosen = nearest & (MAGLEV_LAST_SLOTS - 1);
	work->ring[work->free_slots[chosen] & (MAGLEV_SLOTS - 1)] = real->num;
	work->free_slots[chosen] = work->free_slots[(left - 1) & (MAGLEV_LAST_SLOTS - 1)];
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
	if (turn < RING_SLOTS - MAGLEV_LAST_SLOTS)
		walk(work, turn);
	else if (turn < RING_SLOTS && work->listed)
		take_nearest(work, turn);
	else
		return XDP_DROP;
	bpf_tail_call_(MAP(maglev_again), ctx, 0);
	return XDP_DROP;
}
