/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The VLAN tags of a frame, at most two, of 802.1Q or 802.1ad:
 *
 *	MAC addresses │ 0x88a8, outer TCI │ 0x8100, inner TCI │ 0x0800, IPv4 packet
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/types.h>

#define MAX_VLAN_TAGS 2
#define VLAN_BYTES_MASK 12 /* of 0, 4 or 8 bytes: says the bound to the verifier */
#define VLAN_ID_BITS 0x0fff
#define VLAN_SERVICE_TAG 0x1000 /* beside the id: the tag's TPID is 802.1ad's, 0x88a8; else 802.1Q's, 0x8100 */

struct vlan_tag {
	__be16 tci;
	__be16 ethertype; /* of what is behind the tag */
};

/* A tag as user space has it (`vlans` of nfcore.api.flows); 0 for a priority tag, which names no VLAN. */
static __always_inline __u16 vlan_of(const struct vlan_tag *tag, __be16 tpid)
{
	__u16 id = bpf_ntohs(tag->tci) & VLAN_ID_BITS;

	return id && tpid == bpf_htons(ETH_P_8021AD) ? id | VLAN_SERVICE_TAG : id;
}

/*
 * Reads the tags of a frame with a whole Ethernet header, the outer one first, and the ethertype behind them. False if
 * the frame ends within a tag. `*data` is moved by the length of the tags, so that what is behind them has the place of
 * a packet behind an Ethernet header.
 */
static __always_inline int read_vlan_tags(__u16 vlans[MAX_VLAN_TAGS], void **data, void *data_end, __be16 *ethertype)
{
	__be16 tpid = ((struct ethhdr *)*data)->h_proto;

#pragma unroll
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		struct vlan_tag *tag = *data + sizeof(struct ethhdr);

		if (tpid != bpf_htons(ETH_P_8021Q) && tpid != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > data_end)
			return 0;
		vlans[i] = vlan_of(tag, tpid);
		tpid = tag->ethertype;
		*data += sizeof(*tag);
	}
	*ethertype = tpid;
	return 1;
}
