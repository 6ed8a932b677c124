/* SPDX-License-Identifier: GPL-2.0-only */
/* VLAN tags of 802.1Q and 802.1ad between Ethernet header and IP header: at most two. */
#pragma once

#include <linux/if_ether.h>
#include <linux/types.h>

#define VLAN_ID_BITS 0x0fff
#define VLAN_MOST_BYTES 12 /* 0, 4 or 8: a mask for the verifier */

struct vlan_tag {
	__be16 tci; /* priority and id */
	__be16 protocol; /* EtherType of what follows */
};

struct vlan_tags {
	__u16 ids[2]; /* outer, inner, host order; 0: no tag */
	__u8 bytes; /* of both: 0, 4 or 8 */
	__u8 is_cut; /* the frame ends within a tag */
};

static __always_inline int is_vlan(__be16 protocol)
{
	return protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD);
}

/* Reads the tags, and returns the EtherType behind them. */
static __always_inline __be16 read_vlan_tags(struct vlan_tags *tags, struct ethhdr *eth, void *data_end)
{
	struct vlan_tag *tag = (void *)(eth + 1);
	__be16 protocol = eth->h_proto;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (!is_vlan(protocol))
			break;
		if ((void *)(tag + 1) > data_end) {
			tags->is_cut = 1;
			break;
		}
		tags->ids[i] = bpf_ntohs(tag->tci) & VLAN_ID_BITS;
		tags->bytes += sizeof(*tag);
		protocol = tag->protocol;
		tag++;
	}
	return protocol;
}
