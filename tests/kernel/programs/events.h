/* SPDX-License-Identifier: GPL-2.0-only */
/* The record of both event programs and the counter that numbers them. */
#pragma once

#include <linux/bpf.h>

#define MAP(m) ((void *)bpf_pseudo_fd(1, FD_##m))

/* 20 bytes: not a multiple of 8, so that readers have to step over padding. */
struct record {
	__u32 sequence;
	__u32 words[4];
};

/* Something else in the same buffer. */
struct odd_record {
	__u32 words[ODD_WORDS];
};

static __always_inline __u32 *sequence(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(MAP(numbers), &zero);
}

static __always_inline void fill(struct record *record, __u32 number)
{
	record->sequence = number;
	record->words[0] = number * 3;
	record->words[1] = ~number;
	record->words[2] = 0xfeedbeef;
	record->words[3] = number >> 3;
}
