/* SPDX-License-Identifier: GPL-2.0-only */
/* The Maglev ring: from a flow's hash to the number of a real. */
#pragma once

#include "lib/flow_key.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "jhash.h"
#include "katran_abi.h"

/* The ports that a flow's hash is made of: 0 where its VIP ignores one. */
struct hashed_ports {
	__be16 sport;
	__be16 dport;
#ifdef UDP_FLOW_MIGRATION
	__be16 of_vip; /* the port of the VIP's key in Katran's maps: 0 for a VIP that takes every port */
#endif
};

static __always_inline void set_vip_port(struct hashed_ports *ports, __be16 port)
{
#ifdef UDP_FLOW_MIGRATION
	ports->of_vip = port;
#endif
}

/*
 * Hash of source address and ports, without destination address and protocol. `family` is a constant in every call.
 * HASH_DPORT_ONLY: the destination port replaces the source port.
 */
static __always_inline __u32 flow_hash(const __be32 src[4], __be16 sport, __be16 dport, __u32 vip_flags, int family)
{
	__u32 source = family == AF_INET ? src[0] : jhash_16bytes(src, FLOW_HASH_SEED_V6);

	if (vip_flags & VIP_HASH_DPORT_ONLY)
		sport = dport;
	return jhash_2words(source, (__u32)sport | (__u32)dport << 16, FLOW_HASH_SEED);
}

/* The real's number, or 0 when the VIP has none in this slot. */
static __always_inline __u32 ring_real(const __be32 src[4], const struct hashed_ports *ports,
				       const struct vip_meta *vip, int family)
{
	__u32 hash = flow_hash(src, ports->sport, ports->dport, vip->flags, family);
	__u32 slot = vip->vip_num * RING_SLOTS + hash % RING_SLOTS;
	__u32 *real = bpf_map_lookup_elem(MAP(ch_rings), &slot);

	if (!real) {
		count_v1(STATS_RING_DROP);
		return 0;
	}
	if (!*real)
		count_v2(STATS_RING_DROP);
	return *real;
}
