/* SPDX-License-Identifier: GPL-2.0-only */
/* Finds the real of a number and sends a packet to it. */
#pragma once

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "device.h"
#include "encap.h"
#include "katran_abi.h"
#include "reason.h"

/* Where a packet goes: the numbers of its VIP and real, and the real's definition, NULL while there is none. */
struct route {
	__u32 vip_num;
	__u32 real_key;
	struct real_definition *real;
};

/* The real of this number, or NULL when there is none or it is gone. */
static __always_inline struct real_definition *live_real(__u32 real_key)
{
	struct real_definition *real = bpf_map_lookup_elem(MAP(reals), &real_key);

	return real && !(real->flags & REAL_GONE) ? real : NULL;
}

/* Counts the packet for its VIP and real and sends it to the real. */
static __always_inline int send_to_real(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
					const struct route *route, int family)
{
	const struct ctl_value *gateway = next_hop(device, route->real);

	note_real(packet, route->vip_num, route->real_key);
	if (!gateway) {
		count_v1(STATS_NO_NEXT_HOP);
		return because(packet, REASON_NO_NEXT_HOP, XDP_DROP);
	}
	count_bytes(route->vip_num, packet->ip_bytes);
	count_real(route->real_key, packet->ip_bytes);
	if (family == AF_INET && !(route->real->flags & REAL_IPV6))
		return encap_ipv4(ctx, packet, device, gateway, route->real->addr[0]);
	return encap_ipv6(ctx, packet, device, gateway, route->real, family);
}
