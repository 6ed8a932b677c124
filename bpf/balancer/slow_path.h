/* SPDX-License-Identifier: GPL-2.0-only */
/* Without a mark: VIP, connection table, ring, and a report of flows that are worth a rule. */
#pragma once

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "fast_path.h"
#include "flow_route.h"
#include "introspection.h"
#include "katran_abi.h"
#include "lru.h"
#include "mark_entry.h"
#include "real.h"
#include "reason.h"
#include "report.h"
#include "ring.h"
#include "vip.h"

/* Whether a packet counts for a report. Not with HASH_DPORT_ONLY: a report would lack the source (erase_source). */
static __always_inline int counts_for_report(const struct packet *packet, const struct vip_meta *vip)
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

/* Counts a packet that the slow path sends. Without marks it counts nothing: then the slow path sends all packets. */
static __always_inline void count_slow(__u32 vip_num, __u32 real_key)
{
#if USES_MARKS
	struct lb_stats *of_vip = bpf_map_lookup_elem(MAP(vip_slow_stats), &vip_num);
	struct lb_stats *of_real = bpf_map_lookup_elem(MAP(real_slow_stats), &real_key);

	if (of_vip)
		of_vip->v1 += 1;
	if (of_real)
		of_real->v1 += 1;
#endif
}

/* Counts a flow whose real was chosen by the ring of its VIP. */
static __always_inline void count_new_flow(__u32 vip_num, __u32 real_key)
{
	struct lb_stats *of_vip = bpf_map_lookup_elem(MAP(vip_slow_stats), &vip_num);
	struct lb_stats *of_real = bpf_map_lookup_elem(MAP(real_slow_stats), &real_key);

	count_v1(STATS_RING);
	if (of_vip)
		of_vip->v2 += 1;
	if (of_real)
		of_real->v2 += 1;
}

/* Sets the route's real. False when there is no real with this number, or it is gone. */
static __always_inline int route_to(struct route *route, __u32 real_key)
{
	route->real_key = real_key;
	route->real = live_real(real_key);
	return route->real != NULL;
}

/*
 * First packet of a flow on this CPU: the real of the flow's rule, or the ring's choice; the connection table stores it. A
 * SYN goes to the ring's choice. If it carries the mark of a rule that leads to another real, the rule must end; without
 * a mark it has no rule to look up, which a flood of them would pay for.
 */
static __always_inline void route_new_flow(const struct packet *packet, const struct flow_key *key,
					   const struct hashed_ports *ports, const struct vip_meta *vip, void *lru,
					   const struct route *marked, struct route *route, struct report *report,
					   int family)
{
	__u64 now = bpf_ktime_get_ns();
	struct real_pos_lru fresh = {.by_syn = is_syn(packet) != 0, .left = closes(packet) ? CLOSING_DISTANCE : 0};
	__u32 by_rule = is_syn(packet) && !marked->real ? 0 : real_by_rule(key, vip);
	__u32 real_key = is_syn(packet) ? 0 : by_rule;

	note_reason(packet, REASON_BY_RULE);
	if (!real_key || !route_to(route, real_key)) {
		note_reason(packet, REASON_NEW);
		real_key = ring_real(packet->flow.src, ports, vip, family);
		if (!real_key)
			return;
		if (!route_to(route, real_key)) {
			count_v1(STATS_RING_DROP);
			return;
		}
		count_new_flow(vip->vip_num, real_key);
	}
	if (is_syn(packet) && by_rule && by_rule != real_key) {
		end_route(key);
		report->kind = REPORT_MOVED;
	}
	if (is_rst(packet) || (vip->flags & VIP_LRU_BYPASS) || new_flow_flood(now))
		return;
	/* Before the insertion: the new entry gets the report state, and no second look-up is needed. */
	if (counts_for_report(packet, vip) && report_is_due(&fresh))
		report->kind = REPORT_FLOW;
	lru_insert(lru, key, real_key, &fresh, now);
}

/* Packet of a flow that is in the connection table. False when its real is gone: then the flow is new. */
static __always_inline int route_known_flow(const struct packet *packet, const struct vip_meta *vip,
					    struct real_pos_lru *entry, struct route *route, struct report *report)
{
	if (!route_to(route, entry->pos)) {
		count(ACCEL_REAL_GONE);
		return 0;
	}
	note_reason(packet, REASON_KNOWN);
	if (counts_for_report(packet, vip) && report_is_due(entry)) {
		report->kind = REPORT_FLOW;
		report->reports = entry->reports - 1;
	}
	return 1;
}

/* HASH_DPORT_ONLY: the source is not part of the hash, and the outer header does not show it, as published. */
static __always_inline void erase_source(struct packet *packet)
{
	__builtin_memset(packet->flow.src, 0, sizeof(packet->flow.src));
}

/* `device`: that the packet came by. `mark`: that of a packet which could not be sent by it; 0: no mark. */
static __always_inline int slow_path(struct xdp_md *ctx, struct packet *packet, const struct device *device, __u32 mark,
				     int family)
{
	struct hashed_ports ports = {.sport = packet->flow.sport, .dport = packet->flow.dport};
	struct flow_key key = connection_key(packet, family);
	struct vip_meta *vip = find_vip(packet, &ports, family);
	struct route marked = {}, route = {};
	struct real_pos_lru *entry = NULL;
	struct report report = {};
	__u16 was_reported = 0;
	void *lru;

	if (!vip)
		return because(packet, REASON_NOT_A_VIP, XDP_PASS);
	note_vip(packet, vip->vip_num);
	count(ACCEL_SLOW);
	if (packet->frame_bytes > MAX_FRAME_BYTES) {
		if (family == AF_INET)
			count_v1(STATS_TOO_BIG);
		else
			count_v2(STATS_TOO_BIG);
		sample_event(ctx, EVENT_TOO_BIG);
		return because(packet, REASON_TOO_BIG, XDP_DROP);
	}
	if (USES_MARKS && mark && is_tcp_edge(packet))
		route_edge_by_mark(&marked, packet, mark, family);
	lru = lru_of_this_cpu();
	if (!is_syn(packet) && !(vip->flags & VIP_LRU_BYPASS))
		entry = lru_lookup(lru, &key);
	if (vip->flags & VIP_HASH_DPORT_ONLY)
		erase_source(packet);
	if (entry && !route_known_flow(packet, vip, entry, &route, &report)) {
		/* A new entry takes its place in the table. From then on this one may be another flow's. */
		was_reported = entry->reports;
		entry->reports = 0;
		entry = NULL;
	}
	if (!entry) {
		count_lru_miss(packet);
		sample_miss(ctx, packet);
		route_new_flow(packet, &key, &ports, vip, lru, &marked, &route, &report, family);
	}
	/* Misses are counted before look-ups, and count_slow() before send_to_real(): see counters.h. */
	count_v1(STATS_LRU);
	if (!route.real)
		return because(packet, REASON_NO_REAL, XDP_DROP);
	if (marked.real && report.kind == REPORT_MOVED)
		void_mark(mark);
	if (USES_MARKS && closes(packet) && end_is_due(entry, marked.real_key || was_reported))
		report.kind = REPORT_ENDED;
	if (report.kind)
		report_flow(ctx, packet, device, vip->vip_num, route.real_key, &report, family);
	count_slow(vip->vip_num, route.real_key);
	route.vip_num = vip->vip_num;
	return send_to_real(ctx, packet, device, &route, family);
}
