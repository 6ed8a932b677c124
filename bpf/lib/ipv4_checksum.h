/* SPDX-License-Identifier: GPL-2.0-only */
/* The checksum of an IPv4 header. */
#pragma once

#include <linux/ip.h>
#include <linux/types.h>

/* One's complement sum over an IPv4 header whose check field is zero. */
static __always_inline __u16 ipv4_checksum(const struct iphdr *ip)
{
	const __u16 *words = (const void *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < (int)(sizeof(*ip) / 2); i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum += sum >> 16;
	return ~sum;
}
