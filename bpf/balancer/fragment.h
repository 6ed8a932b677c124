/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fragments of a VIP's packets, built with HASH_FRAGMENTS: only the first one has ports, so all of a datagram go to the
 * real that the ring has for the source address alone. Connection table and marks know nothing of them.
 */
#pragma once

#include "lib/packet.h"
#include "counters.h"
#include "katran_abi.h"
#include "real.h"
#include "reason.h"
#include "ring.h"
#include "too_big.h"
#include "vip.h"

#ifdef HASH_FRAGMENTS
/* Whether what was read is a fragment of TCP or UDP, with its whole header. */
static __always_inline int is_whole_fragment(const struct packet *packet, void *data, void *data_end, int family)
{
	if (!packet->is_fragment || !has_ports(packet->flow.proto))
		return 0;
	return family == AF_INET || data + l4_at(packet, family) + IPV6_FRAGMENT_BYTES <= data_end;
}

static __always_inline int balance_fragment(struct xdp_md *ctx, const struct packet *packet,
					    const struct device *device, int family)
{
	struct vip_meta *vip = vip_of_address(packet, packet->flow.proto, family);
	const struct hashed_ports none = {};
	struct route route = {};
	struct vip_meta by_address = {};
	__u32 real_key;

	if (!vip)
		return because(packet, REASON_NOT_A_VIP, XDP_PASS);
	note_vip(packet, vip->vip_num);
	note_reason(packet, REASON_FRAGMENT);
	count(ACCEL_SLOW);
	if (is_too_big(packet))
		return answer_too_big(ctx, packet, family);
	by_address.vip_num = vip->vip_num;
	real_key = ring_real(packet->flow.src, &none, &by_address, family);
	if (!real_key)
		return because(packet, REASON_NO_REAL, XDP_DROP);
	if (!route_to(&route, real_key)) {
		count_v1(STATS_RING_DROP);
		return because(packet, REASON_NO_REAL, XDP_DROP);
	}
	route.vip_num = vip->vip_num;
	set_vip_flags(&route, vip->flags);
	return send_to_real(ctx, packet, device, &route, family);
}
#endif
