/* SPDX-License-Identifier: GPL-2.0-only */
/* Without a mark: VIP, connection table, ring, and a report of flows that deserve a mark. */
#pragma once

#include "encap.h"
#include "lru.h"
#include "report.h"
#include "ring.h"
#include "vip.h"

/* A flow whose outer header hides its source could not be told from the others by a mark: never reported. */
static __always_inline int deserves_mark(const struct packet *packet, const struct vip_meta *vip)
{
	return USES_MARKS && !is_tcp_edge(packet) && !(vip->flags & VIP_HASH_DPORT_ONLY);
}

static __always_inline void count_lru_miss(const struct packet *packet)
{
	count_v2(STATS_LRU);
	if (packet->flow.proto != IPPROTO_TCP)
		return;
	if (is_syn(packet))
		count_v1(STATS_TCP_MISS);
	else
		count_v2(STATS_TCP_MISS);
}

/* First packet that this CPU sees of a flow: the ring chooses, the connection table remembers. */
static __always_inline __u32 route_new_flow(struct xdp_md *ctx, const struct packet *packet, const struct flow_key *key,
					    const struct vip_meta *vip, void *lru, int family)
{
	__u32 real = ring_real(packet->flow.src, key, vip, family);
	__u64 now = bpf_ktime_get_ns();
	struct real_pos_lru fresh = {};
	int due = 0;

	if (!real || is_rst(packet) || (vip->flags & VIP_LRU_BYPASS) || new_flow_flood(now))
		return real;
	/* Before the insertion, so that it carries what is left and no second look-up is needed. */
	if (deserves_mark(packet, vip))
		due = report_is_due(&fresh);
	lru_insert(lru, key, real, &fresh, now);
	if (due)
		report_flow(ctx, packet, vip->vip_num, real, 0, family);
	return real;
}

static __always_inline __u32 route_known_flow(struct xdp_md *ctx, const struct packet *packet,
					      const struct vip_meta *vip, struct real_pos_lru *entry, int family)
{
	__u32 real = entry->pos;

	if (deserves_mark(packet, vip) && report_is_due(entry))
		report_flow(ctx, packet, vip->vip_num, real, entry->reports - 1, family);
	return real;
}

/* A source that does not count for the hash does not show in the outer header either, as published. */
static __always_inline void forget_source(struct packet *packet)
{
	__builtin_memset(packet->flow.src, 0, sizeof(packet->flow.src));
}

static __always_inline int slow_path(struct xdp_md *ctx, struct packet *packet, int family)
{
	struct flow_key key = packet->flow;
	struct vip_meta *vip = find_vip(packet, &key);
	struct real_pos_lru *entry = NULL;
	__u32 real;
	void *lru;

	if (!vip)
		return XDP_PASS;
	count(ACCEL_SLOW);
	if (packet->frame_bytes > MAX_FRAME_BYTES) {
		if (family == AF_INET)
			count_v1(STATS_TOO_BIG);
		else
			count_v2(STATS_TOO_BIG);
		return XDP_DROP;
	}
	if (vip->flags & VIP_HASH_NO_SRC_PORT)
		key.sport = 0;
	lru = lru_of_this_cpu();
	count_v1(STATS_LRU);
	if (!is_syn(packet) && !(vip->flags & VIP_LRU_BYPASS))
		entry = lru_lookup(lru, &key);
	if (vip->flags & VIP_HASH_DPORT_ONLY)
		forget_source(packet);
	if (entry) {
		real = route_known_flow(ctx, packet, vip, entry, family);
	} else {
		count_lru_miss(packet);
		real = route_new_flow(ctx, packet, &key, vip, lru, family);
	}
	if (!real)
		return XDP_DROP;
	return send_to_real(ctx, packet, vip->vip_num, real, family);
}
