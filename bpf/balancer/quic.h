/* SPDX-License-Identifier: GPL-2.0-only */
/* QUIC: the connection id that a server has chosen names its real. The first packets of a client have none. */
#pragma once

#include <linux/icmp.h>
#include <linux/icmpv6.h>

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "introspection.h"
#include "katran_abi.h"
#include "real.h"
#include "server_id.h"

#ifdef QUIC
#define QUIC_LONG_HEADER 0x80
#define QUIC_PACKET_TYPE 0x30
#define QUIC_0RTT 0x10 /* and Initial, 0x00: the client's own connection id */
#define QUIC_LONG_BYTES 14 /* up to the eighth byte of the connection id */
#define QUIC_SHORT_BYTES 9
#define QUIC_ID_BYTES 8 /* at least */
#define COUNT_QUIC(field) COUNT_FIELD(quic_stats_map, quic_stats, field)

/* Errors that say nothing about the server's process: host or port unreachable. */
static __always_inline void count_quic_error(const struct packet *packet, int family)
{
#ifdef ICMP
	__u8 code = packet->icmp_code;

	count_v1(STATS_QUIC_ICMP);
	if (family == AF_INET ? code == ICMP_HOST_UNREACH || code == ICMP_PORT_UNREACH
			      : code == ICMPV6_ADDR_UNREACH || code == ICMPV6_PORT_UNREACH)
		count_v2(STATS_QUIC_ICMP);
#endif
}

/* The connection id in a QUIC packet, NULL when there is none; `initial`: whether it is a client's first packet. */
static __always_inline __u8 *quic_connection_id(__u8 *payload, void *data_end, int *initial)
{
	if ((void *)(payload + QUIC_SHORT_BYTES) > data_end)
		return NULL;
	if (!(payload[0] & QUIC_LONG_HEADER))
		return payload + 1;
	if ((void *)(payload + QUIC_LONG_BYTES) > data_end)
		return NULL;
	if ((payload[0] & QUIC_PACKET_TYPE) <= QUIC_0RTT) {
		*initial = 1;
		return NULL;
	}
	return payload[5] >= QUIC_ID_BYTES ? payload + 6 : NULL;
}

/* The server id in a connection id, by the version in its first two bits; 0 or less: none. */
static __always_inline __s32 quic_server_id(const __u8 *id)
{
	switch (id[0] >> 6) {
	case 1:
		return ((__u32)id[0] << 10 | id[1] << 2 | id[2] >> 6) & 0xffff;
	case 2:
		return (__u32)id[1] << 16 | id[2] << 8 | id[3];
	case 3:
		return (__u32)id[1] << 24 | id[2] << 16 | id[3] << 8 | id[4];
	default:
		return 0;
	}
}

static __always_inline void count_quic_version(__u8 version)
{
	if (version == 1)
		COUNT_QUIC(cid_versions[1]);
	else if (version == 2)
		COUNT_QUIC(cid_versions[2]);
	else
		COUNT_QUIC(cid_versions[3]);
}

/* Goes to the real of an id. An id that leads nowhere is left as a sample. */
static __always_inline enum id_result go_by_quic_id(struct xdp_md *ctx, const struct vip_meta *vip, void *lru,
						    const struct flow_key *key, struct route *route, __u32 id)
{
	__u32 *real_key = real_of_id(id);

	if (!real_key || !*real_key) {
		__u32 first = 0;
		struct quic_stats *stats = bpf_map_lookup_elem(MAP(quic_stats_map), &first);

		if (stats) {
			stats->cid_invalid_server_id += 1;
			stats->cid_invalid_server_id_sample = id;
			stats->ch_routed += 1;
		}
		return ID_NONE;
	}
	if (!route_to(route, *real_key)) {
		COUNT_QUIC(cid_unknown_real_dropped);
		sample_event(ctx, EVENT_QUIC_UNKNOWN_REAL);
		return ID_OF_NOBODY;
	}
	COUNT_QUIC(cid_routed);
	switch (correct_entry(lru, key, route->real_key)) {
	case LRU_HAD_SAME:
		COUNT_QUIC(dst_match_in_lru);
		break;
	case LRU_HAD_OTHER:
		COUNT_QUIC(dst_mismatch_in_lru);
		count_mismatch(vip->vip_num);
		break;
	default:
		COUNT_QUIC(dst_not_found_in_lru);
	}
	return ID_NAMES_REAL;
}

static __always_inline enum id_result route_by_quic(struct xdp_md *ctx, const struct packet *packet,
						    const struct vip_meta *vip, void *lru, const struct flow_key *key,
						    struct route *route, int family)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	int initial = 0;
	__u8 *id = quic_connection_id(data + l4_at(packet, family) + UDP_HEADER_BYTES, data_end, &initial);
	__s32 server = id ? quic_server_id(id) : 0;

	if (initial) {
		COUNT_QUIC(cid_initial);
		count_first_packet(vip->vip_num);
		return ID_NONE;
	}
	if (server <= 0) {
		COUNT_QUIC(ch_routed);
		return ID_NONE;
	}
	count_quic_version(id[0] >> 6);
	return go_by_quic_id(ctx, vip, lru, key, route, server);
}
#endif
