/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that name their real by a server id: QUIC connection ids, UDP stable routing, TCP server ids. An id goes
 * before the connection table and before the mark, and corrects the table.
 */
#pragma once

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "lib/tcp_server_id.h"
#include "counters.h"
#include "introspection.h"
#include "katran_abi.h"
#include "lru.h"
#include "real.h"

enum id_result {
	ID_NONE, /* by connection table or ring */
	ID_NAMES_REAL,
	ID_MOVES_FLOW, /* the same, and so far the connection table had another real */
	ID_OF_NOBODY, /* of a real that is not there: dropped */
};

#ifdef ROUTES_BY_ID
/* Counts in a map of one element; `field` is one of its struct. */
#define COUNT_FIELD(map, layout, field)                                                                                \
	do {                                                                                                           \
		__u32 first = 0;                                                                                       \
		struct layout *counters = bpf_map_lookup_elem(MAP(map), &first);                                       \
		if (counters)                                                                                          \
			counters->field += 1;                                                                          \
	} while (0)

/* The number of the real of an id, NULL when the map has no such index; 0: the id leads nowhere at present. */
static __always_inline __u32 *real_of_id(__u32 id)
{
	return bpf_map_lookup_elem(MAP(server_id_map), &id);
}

static __always_inline struct lb_stats *server_id_stats_of(__u32 vip_num)
{
#if defined(QUIC) || defined(TCP_SERVER_IDS)
	return bpf_map_lookup_elem(MAP(server_id_stats), &vip_num);
#else
	return NULL;
#endif
}

static __always_inline void count_first_packet(__u32 vip_num)
{
	struct lb_stats *stats = server_id_stats_of(vip_num);

	if (stats)
		stats->v1 += 1;
}

static __always_inline void count_mismatch(__u32 vip_num)
{
	struct lb_stats *stats = server_id_stats_of(vip_num);

	if (stats)
		stats->v2 += 1;
}

enum lru_before { LRU_HAD_NONE, LRU_HAD_SAME, LRU_HAD_OTHER };

/*
 * Lets the connection table have the real that an id names. A new entry counts as expired: without an id, a UDP flow's
 * next packet goes by the ring.
 */
static __always_inline enum lru_before correct_entry(void *lru, const struct flow_key *key, __u32 real_key)
{
	struct real_pos_lru *entry = lru_entry(lru, key), fresh = {.pos = real_key};

	if (!entry) {
		if (!new_flow_flood(bpf_ktime_get_ns()))
			lru_store(lru, key, &fresh);
		return LRU_HAD_NONE;
	}
	if (entry->pos == real_key)
		return LRU_HAD_SAME;
	entry->pos = real_key;
	return LRU_HAD_OTHER;
}
#endif

#ifdef QUIC
#include "quic.h"
#endif
#ifdef UDP_STABLE_ROUTING
#include "stable_routing.h"
#endif

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
