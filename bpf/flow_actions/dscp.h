/* SPDX-License-Identifier: GPL-2.0-only */
/* Writes another DSCP into the IP header; the ECN bits stay. */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include "lib/packet.h"

#define ECN_BITS 3

/* The first 16 bits of both headers hold all of the DSCP: version, length and TOS; or version, class and label. */
static __always_inline __u16 with_dscp(__u16 word, __u32 dscp, int family)
{
	return family == AF_INET ? (word & ~0xfc) | dscp << 2 : (word & ~0x0fc0) | dscp << 6;
}

/* 0: there is no whole IP header. */
static __always_inline int set_dscp(void *data, void *data_end, __u32 dscp, int family)
{
	__be16 *word = data + sizeof(struct ethhdr);
	struct iphdr *ip = (void *)word;
	__be16 before, after;
	__u32 sum;

	if ((void *)(ip + 1) > data_end)
		return 0;
	before = *word;
	after = bpf_htons(with_dscp(bpf_ntohs(before), dscp, family));
	*word = after;
	if (family == AF_INET) {
		/* RFC 1624: the checksum changes as the word does. */
		sum = (__u16)~ip->check + (__u16)~before + after;
		sum = (sum & 0xffff) + (sum >> 16);
		ip->check = ~(sum + (sum >> 16));
	}
	return 1;
}
