/* SPDX-License-Identifier: GPL-2.0-only */
/* What decides about a flow before the ring does: routes by source, connection tables of other hosts, reals that are down. */
#pragma once

#include "lib/flow_key.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "katran_abi.h"
#include "lru.h"
#include "real.h"
#include "ring.h"

/* The number of the real to which clients with the packet's source address go; 0: the ring decides. */
static __always_inline __u32 real_by_source(const struct packet *packet, const struct vip_meta *vip, int family)
{
#ifdef SOURCE_ROUTING
	__u32 *real_key;

	if (!(vip->flags & VIP_SOURCE_ROUTING))
		return 0;
	if (family == AF_INET) {
		struct source_key_v4 key = {.prefixlen = 32, .addr = packet->flow.src[0]};

		real_key = bpf_map_lookup_elem(MAP(lpm_src_v4), &key);
	} else {
		struct source_key_v6 key = {.prefixlen = 128};

		__builtin_memcpy(key.addr, packet->flow.src, sizeof(key.addr));
		real_key = bpf_map_lookup_elem(MAP(lpm_src_v6), &key);
	}
	if (!real_key) {
		count_v1(STATS_SOURCE_ROUTE);
		return 0;
	}
	count_v2(STATS_SOURCE_ROUTE);
	return *real_key;
#else
	return 0;
#endif
}

/* Sets the route by the table that user space fills with flows of other hosts; false when it has none for the packet. */
static __always_inline int route_by_global_lru(const struct packet *packet, const struct hashed_ports *ports,
					       const struct vip_meta *vip, struct route *route)
{
#ifdef GLOBAL_LRU
	struct flow_key key = packet->flow;
	__u32 cpu = bpf_get_smp_processor_id(), *real_key;
	void *table;

	if (is_syn(packet) || !(vip->flags & VIP_GLOBAL_LRU))
		return 0;
	key.sport = ports->sport;
	key.dport = ports->dport;
	table = bpf_map_lookup_elem(MAP(global_lru_maps), &cpu);
	if (table) {
		real_key = bpf_map_lookup_elem(table, &key);
		asm volatile("" : "+r"(real_key));
	} else {
		count_v1(STATS_GLOBAL_LRU);
		real_key = bpf_map_lookup_elem(MAP(fallback_glru), &key);
	}
	if (!real_key || !route_to(route, *real_key))
		return 0;
	count_v2(STATS_GLOBAL_LRU);
	return 1;
#else
	return 0;
#endif
}

/* Whether a UDP flow must leave its real, number 0 when it has none, because the real is down for the VIP. */
static __always_inline int must_migrate(const struct packet *packet, const struct hashed_ports *ports,
					const struct vip_meta *vip, __u32 real_key)
{
#ifdef UDP_FLOW_MIGRATION
	struct vip_definition key = {.port = ports->of_vip, .proto = packet->flow.proto};
	void *down;

	if (packet->flow.proto != IPPROTO_UDP || !(vip->flags & VIP_UDP_FLOW_MIGRATION) ||
	    new_flow_flood(bpf_ktime_get_ns()))
		return 0;
	__builtin_memcpy(key.addr, packet->flow.dst, sizeof(key.addr));
	down = bpf_map_lookup_elem(MAP(vip_to_down_reals_map), &key);
	if (!down || !bpf_map_lookup_elem(down, &real_key))
		return 0;
	count_v1(STATS_MIGRATED);
	return 1;
#else
	return 0;
#endif
}
