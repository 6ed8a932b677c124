/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The entries of marks and their checks. A mark is a hint: each packet with a mark is checked against the mark's
 * entry, and the entry against the VIP and real as they are now.
 *
 * MARK_IS_FLOW: hw_accel_mapping[mark] is one flow. MARK_IS_TARGET: hw_accel_targets[mark] is a (VIP, real) that many
 * flows share. Neither defined: the program does not use marks.
 */
#pragma once

#include "lib/flow_key.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "lib/uses_marks.h"

/* One per VIP number. An entry of a mark is live while its generation equals the one here; 0 is never live. */
struct vip_by_id {
	__be32 addr[4];
	__be32 mask[4]; /* all ones for a VIP of one address */
	__be16 port; /* 0: every port */
	__u8 proto;
	__u8 family; /* 4 or 6 */
	__u32 flags;
	__u32 generation;
	__u32 pad;
};

/* mark -> flow, for flow-id. Fills a cache line. */
struct hw_accel_flow {
	__u32 vip_num;
	__u32 real_key;
	struct flow_key flow;
	__u32 vip_generation;
	__u32 real_generation;
	__u32 family; /* 4 or 6 */
	__u32 pad;
} __attribute__((aligned(8)));

/* mark -> (VIP, real), for dest-id. */
struct hw_accel_target {
	__u32 vip_num;
	__u32 real_key;
	__u32 vip_generation;
	__u32 real_generation;
};

static __always_inline int flow_matches(const struct hw_accel_flow *entry, const struct packet *packet, int family)
{
	const struct flow_key *want = &entry->flow, *have = &packet->flow;

	if (entry->family != (family == AF_INET ? 4 : 6) || want->proto != have->proto)
		return 0;
	if (want->sport != have->sport || want->dport != have->dport)
		return 0;
	if (family == AF_INET)
		return want->src[0] == have->src[0] && want->dst[0] == have->dst[0];
	return same_address(want->src, have->src) && same_address(want->dst, have->dst);
}

static __always_inline int vip_matches(const struct vip_by_id *vip, const struct packet *packet, int family)
{
	const struct flow_key *have = &packet->flow;

	if (vip->family != (family == AF_INET ? 4 : 6) || vip->proto != have->proto)
		return 0;
	if (vip->port && vip->port != have->dport)
		return 0;
	if (family == AF_INET)
		return !((vip->addr[0] ^ have->dst[0]) & vip->mask[0]);
	return !((((vip->addr[0] ^ have->dst[0]) & vip->mask[0]) | ((vip->addr[1] ^ have->dst[1]) & vip->mask[1])) |
		 (((vip->addr[2] ^ have->dst[2]) & vip->mask[2]) | ((vip->addr[3] ^ have->dst[3]) & vip->mask[3])));
}

#if USES_MARKS
/* Whether VIP and real are still those that the entry was written for. */
static __always_inline int is_live(const struct vip_by_id *vip, __u32 vip_generation, __u32 real_key,
				   __u32 real_generation)
{
	__u32 *real = bpf_map_lookup_elem(MAP(hw_accel_reals), &real_key);

	return real && vip_generation && vip_generation == vip->generation && real_generation == *real;
}
#endif
