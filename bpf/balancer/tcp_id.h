/* SPDX-License-Identifier: GPL-2.0-only */
/* TCP server ids: a client gives back the option by which its server has named itself. */
#pragma once

#include "lib/packet.h"
#include "lib/tcp_server_id.h"
#include "counters.h"
#include "katran_abi.h"
#include "real.h"
#include "server_id.h"

#ifdef TCP_SERVER_IDS
/* The server id of a TCP packet, 0: it has none. */
static __always_inline __u32 id_in_tcp(struct xdp_md *ctx, const struct packet *packet, int family)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	void *tcp = data + l4_at(packet, family);

	if (tcp + TCP_HEADER_BYTES > data_end)
		return 0;
	return tcp_server_id(tcp, data_end);
}

static __always_inline enum id_result route_by_tcp(struct xdp_md *ctx, const struct packet *packet,
						   const struct vip_meta *vip, void *lru, const struct flow_key *key,
						   struct route *route, int family)
{
	__u32 id, *real_key;

	if (is_syn(packet)) {
		COUNT_FIELD(tpr_stats_map, tcp_server_id_stats, tcp_syn);
		count_first_packet(vip->vip_num);
		return ID_NONE;
	}
	id = id_in_tcp(ctx, packet, family);
	real_key = id ? real_of_id(id) : NULL;
	if (!real_key || !*real_key || !route_to(route, *real_key)) {
		COUNT_FIELD(tpr_stats_map, tcp_server_id_stats, ch_routed);
		return ID_NONE;
	}
	COUNT_FIELD(tpr_stats_map, tcp_server_id_stats, sid_routed);
	if (!(vip->flags & VIP_LRU_BYPASS) && correct_entry(lru, key, route->real_key) == LRU_HAD_OTHER) {
		COUNT_FIELD(tpr_stats_map, tcp_server_id_stats, dst_mismatch_in_lru);
		count_mismatch(vip->vip_num);
		return ID_MOVES_FLOW;
	}
	return ID_NAMES_REAL;
}
#endif
