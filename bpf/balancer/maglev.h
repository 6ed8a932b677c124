/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A Maglev ring while it is filled: the one value of the map maglev_work, which user space and maglev.c share.
 * The numpy side is plugins/katran_accel/maglev_kernel.py; a test compares the two.
 */
#pragma once

#include <linux/types.h>

#include "katran_abi.h"

/* Powers of two, larger than necessary: a mask bounds an index by one instruction. */
#define MAGLEV_SLOTS 131072u
#define MAGLEV_REALS 4096u
/* When so few slots are free, the program computes which one a walk visits first, instead of walking there. */
#define MAGLEV_LAST_SLOTS 128u

/* A real and its walk over the slots. */
struct maglev_real {
	__u32 position; /* the next slot */
	__u32 skip;
	__u32 inverse; /* of skip, modulo RING_SLOTS */
	__u32 num; /* the value of the slots that it takes */
};

struct maglev {
	__u32 turn; /* index of the next turn; so many slots are taken */
	__u32 listed; /* whether `free_slots` is filled in */
	__u32 free_slots[MAGLEV_LAST_SLOTS];
	__u64 taken[MAGLEV_SLOTS / 64]; /* one bit per slot */
	struct maglev_real reals[MAGLEV_REALS];
	__u16 turns[MAGLEV_SLOTS]; /* index of the real of the first, second, ... turn */
	__u32 ring[MAGLEV_SLOTS];
};
