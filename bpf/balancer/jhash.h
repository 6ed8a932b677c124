/* SPDX-License-Identifier: GPL-2.0-only */
/* Bob Jenkins' lookup3 (public domain) in the two forms that the flow hash needs: of two words, and of 16 bytes. */
#pragma once

#include <linux/types.h>

#define JHASH_BASE 0xdeadbeefu

static __always_inline __u32 rotate_left(__u32 word, int bits)
{
	return (word << bits) | (word >> (32 - bits));
}

static __always_inline __u32 jhash_final(__u32 a, __u32 b, __u32 c)
{
	c = (c ^ b) - rotate_left(b, 14);
	a = (a ^ c) - rotate_left(c, 11);
	b = (b ^ a) - rotate_left(a, 25);
	c = (c ^ b) - rotate_left(b, 16);
	a = (a ^ c) - rotate_left(c, 4);
	b = (b ^ a) - rotate_left(a, 14);
	c = (c ^ b) - rotate_left(b, 24);
	return c;
}

static __always_inline __u32 jhash_2words(__u32 first, __u32 second, __u32 seed)
{
	__u32 start = JHASH_BASE + (2u << 2) + seed;

	return jhash_final(first + start, second + start, start);
}

static __always_inline __u32 jhash_16bytes(const __u32 words[4], __u32 seed)
{
	__u32 a, b, c;

	a = b = c = JHASH_BASE + 16 + seed;
	a += words[0];
	b += words[1];
	c += words[2];

	a = (a - c) ^ rotate_left(c, 4);
	c += b;
	b = (b - a) ^ rotate_left(a, 6);
	a += c;
	c = (c - b) ^ rotate_left(b, 8);
	b += a;
	a = (a - c) ^ rotate_left(c, 16);
	c += b;
	b = (b - a) ^ rotate_left(a, 19);
	a += c;
	c = (c - b) ^ rotate_left(b, 4);
	b += a;

	return jhash_final(a + words[3], b, c);
}
