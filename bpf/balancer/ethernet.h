/* SPDX-License-Identifier: GPL-2.0-only */
/* Ethernet headers of frames that leave: MAC addresses, and VLAN tags, which stay. */
#pragma once

#include <linux/if_ether.h>

#include "lib/packet.h"
#include "device.h"

static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac, ETH_ALEN);
}

/* The Ethernet header with its tags, off the frame: where it is written may overlap where it is read. */
struct link_header {
	__u8 macs[2 * ETH_ALEN]; /* destination, source */
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
	__builtin_memcpy(link->macs, data, sizeof(link->macs));
#ifdef VLAN
	link->tag_bytes = packet->tags.bytes;
	link->tags[0] = *(__be32 *)(data + 12);
	link->tags[1] = *(__be32 *)(data + 16);
#endif
}

/* Writes it at `data`; `protocol`: EtherType of what follows. MOST_LINK_BYTES are there. */
static __always_inline void write_link_header(const struct link_header *link, void *data, __be16 protocol)
{
	__be16 *behind = data + 12;

	__builtin_memcpy(data, link->macs, sizeof(link->macs));
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
