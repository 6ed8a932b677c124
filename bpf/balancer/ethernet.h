/* SPDX-License-Identifier: GPL-2.0-only */
/* Ethernet headers of frames that leave: MAC addresses, and VLAN tags, which stay. */
#pragma once

#include <linux/if_ether.h>

#include "lib/packet.h"
#include "device.h"

#define MAC_WORDS (ETH_ALEN / 2)

/* By words of two bytes: all these addresses are aligned so, which the compiler does not know of a packet. */
static __always_inline void copy_mac(void *to, const void *from)
{
	__u16 *out = to;
	const __u16 *in = from;

#pragma unroll
	for (int i = 0; i < MAC_WORDS; i++)
		out[i] = in[i];
}

static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u16 mac[MAC_WORDS];

	copy_mac(mac, eth->h_source);
	copy_mac(eth->h_source, eth->h_dest);
	copy_mac(eth->h_dest, mac);
}

/* The Ethernet header with its tags, off the frame: where it is written may overlap where it is read. */
struct link_header {
	__u16 destination[MAC_WORDS], source[MAC_WORDS];
#ifdef VLAN
	__u8 tag_bytes;
	__be32 tags[2]; /* each with the EtherType in front of it */
#endif
};

#ifdef VLAN
#define MOST_LINK_BYTES (sizeof(struct ethhdr) + 2 * sizeof(struct vlan_tag))
#else
#define MOST_LINK_BYTES sizeof(struct ethhdr)
#endif

/* Reads the header at `data`; MOST_LINK_BYTES are there: an IP header follows. */
static __always_inline void read_link_header(struct link_header *link, const struct packet *packet, void *data)
{
	copy_mac(link->destination, data);
	copy_mac(link->source, data + ETH_ALEN);
#ifdef VLAN
	link->tag_bytes = packet->tag_bytes;
	link->tags[0] = *(__be32 *)(data + 12);
	link->tags[1] = *(__be32 *)(data + 16);
#endif
}

/* Writes it at `data`; `protocol`: EtherType of what follows. MOST_LINK_BYTES are there. */
static __always_inline void write_link_header(const struct link_header *link, void *data, __be16 protocol)
{
	__be16 *behind = data + 12;

	copy_mac(data, link->destination);
	copy_mac(data + ETH_ALEN, link->source);
#ifdef VLAN
	if (link->tag_bytes >= 4) {
		*(__be32 *)behind = link->tags[0];
		behind += 2;
	}
	if (link->tag_bytes >= 8) {
		*(__be32 *)behind = link->tags[1];
		behind += 2;
	}
#endif
	*behind = protocol;
}
