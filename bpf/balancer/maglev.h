/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A Maglev ring that is being built: what user space and maglev.c share, as the one value of the map maglev_work.
 * The numpy side is plugins/katran_accel/maglev_kernel.py; a test compares the two.
 */
#pragma once

#include <linux/types.h>

#include "katran_abi.h"

/* Powers of two, larger than RING_SLOTS asks for: they bound an index at the cost of one instruction. */
#define MAGLEV_SLOTS 131072u
#define MAGLEV_PLAYERS 4096u
/* When so few slots are left, their places in a walk are computed instead of walking there. */
#define MAGLEV_FEW 128u

/* A real and its walk over the slots. */
struct maglev_player {
	__u32 position; /* the next slot */
	__u32 skip;
	__u32 inverse; /* of skip, modulo RING_SLOTS */
	__u32 num; /* what the ring holds */
};

struct maglev {
	__u32 turn; /* the next of `turns`; as many slots are taken */
	__u32 listed; /* whether `few` holds the slots that are left */
	__u32 few[MAGLEV_FEW];
	__u64 taken[MAGLEV_SLOTS / 64]; /* a bit per slot */
	struct maglev_player players[MAGLEV_PLAYERS];
	__u16 turns[MAGLEV_SLOTS]; /* who takes the first, second, ... slot */
	__u32 ring[MAGLEV_SLOTS];
};
