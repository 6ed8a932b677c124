/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that name their real by a server id. An id goes before the connection table and before the mark, and corrects
 * the table.
 */
#pragma once

#include "lib/packet.h"
#include "quic.h"
#include "real.h"
#include "server_id.h"
#include "stable_routing.h"
#include "tcp_id.h"

/* Whether a mark must not decide about the packet. Flows of VIPs with ids in UDP have no marks. */
static __always_inline int names_real(struct xdp_md *ctx, const struct packet *packet, int family)
{
#ifdef TCP_SERVER_IDS
	return packet->flow.proto == IPPROTO_TCP && id_in_tcp(ctx, packet, family);
#else
	return 0;
#endif
}

/* Sets the route by an id in the packet. What an ICMP error quotes is not searched for ids. */
static __always_inline enum id_result route_by_id(struct xdp_md *ctx, const struct packet *packet,
						  const struct vip_meta *vip, void *lru, const struct flow_key *key,
						  struct route *route, int family)
{
	enum id_result result = ID_NONE;

#ifdef QUIC
	if (vip->flags & VIP_QUIC && packet->flow.proto == IPPROTO_UDP) {
		if (is_error(packet))
			count_quic_error(packet, family);
		else
			result = route_by_quic(ctx, packet, vip, lru, key, route, family);
	}
#endif
#ifdef UDP_STABLE_ROUTING
	if (result == ID_NONE && vip->flags & VIP_UDP_STABLE_ROUTING && packet->flow.proto == IPPROTO_UDP &&
	    !is_error(packet))
		result = route_by_stable_id(ctx, packet, route, family);
#endif
#ifdef TCP_SERVER_IDS
	if (packet->flow.proto == IPPROTO_TCP && !is_error(packet))
		result = route_by_tcp(ctx, packet, vip, lru, key, route, family);
#endif
	return result;
}
