/* SPDX-License-Identifier: GPL-2.0-only */
/* Without a mark: VIP, connection table, ring, and a report of flows that are worth a rule. */
#pragma once

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "before_ring.h"
#include "by_id.h"
#include "counters.h"
#include "fast_path.h"
#include "flow_route.h"
#include "katran_abi.h"
#include "lru.h"
#include "mark_entry.h"
#include "introspection.h"
#include "real.h"
#include "reason.h"
#include "report.h"
#include "ring.h"
#include "too_big.h"
#include "vip.h"

/*
 * Whether a packet counts for a report. Not with HASH_DPORT_ONLY: a report would lack the source (erase_source). Not
 * where packets name their real: a mark would override that.
 */
static __always_inline int counts_for_report(const struct packet *packet, const struct vip_meta *vip)
{
	__u32 unmarked = VIP_HASH_DPORT_ONLY;

#ifndef HIDES_SOURCE_PORT
	unmarked |= VIP_HASH_NO_SRC_PORT; /* no VIP had it when the program was loaded */
#endif
#ifdef QUIC
	unmarked |= VIP_QUIC;
#endif
#ifdef UDP_STABLE_ROUTING
	unmarked |= VIP_UDP_STABLE_ROUTING;
#endif
	return USES_MARKS && !is_tcp_edge(packet) && !is_error(packet) && !(vip->flags & unmarked);
}

static __always_inline void count_tcp_miss(const struct packet *packet)
{
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
	int flood = new_flow_flood(now);

	note_reason(packet, REASON_BY_RULE);
	if (!real_key || !route_to(route, real_key)) {
		note_reason(packet, REASON_SOURCE_ROUTE);
		real_key = flood ? 0 : real_by_source(packet, vip, family);
		if (!real_key) {
			note_reason(packet, REASON_NEW);
			real_key = ring_real(packet->flow.src, ports, vip, family);
		}
		if (!real_key)
			return;
		if (!route_to(route, real_key)) {
			count_v1(STATS_RING_DROP);
			return;
		}
		count_new_flow(vip->vip_num, real_key);
	}
	count_v2(STATS_LRU);
	if (is_syn(packet) && !is_error(packet) && by_rule && by_rule != real_key) {
		end_route(key);
		report->kind = REPORT_MOVED;
	}
	if (is_rst(packet) || (vip->flags & VIP_LRU_BYPASS) || flood)
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

/* Sets the route of a packet that names no real: by the connection tables, or as that of a new flow. */
static __always_inline void route_by_flow(struct xdp_md *ctx, struct packet *packet, const struct flow_key *key,
					  const struct hashed_ports *ports, const struct vip_meta *vip, void *lru,
					  const struct route *marked, struct route *route, struct report *report,
					  int family)
{
	struct real_pos_lru *entry = NULL;
	__u16 was_reported = 0;
	int known;

	if (!is_syn(packet) && !(vip->flags & VIP_LRU_BYPASS))
		entry = lru_lookup(lru, key);
	if (vip->flags & VIP_HASH_DPORT_ONLY)
		erase_source(packet);
	note_reason(packet, REASON_KNOWN);
	known = entry && route_known_flow(packet, vip, entry, route, report);
	if (entry && !known) {
		/* A new entry takes its place in the table. From then on this one may be another flow's. */
		was_reported = entry->reports;
		entry->reports = 0;
		entry = NULL;
	}
	if (!known) {
		note_reason(packet, REASON_GLOBAL_LRU);
		known = route_by_global_lru(packet, ports, vip, route);
	}
	if (must_migrate(packet, ports, vip, known ? route->real_key : 0)) {
		end_route(key);
		*report = (struct report){};
		route->real = NULL;
		known = 0;
		entry = NULL;
	}
	if (!known) {
		count_tcp_miss(packet);
		sample_miss(ctx, packet);
		route_new_flow(packet, key, ports, vip, lru, marked, route, report, family);
	}
	if (USES_MARKS && closes(packet) && !is_error(packet) && route->real &&
	    end_is_due(entry, marked->real_key || was_reported))
		report->kind = REPORT_ENDED;
}

/* The flow may have a rule, by which its packets without an id would go on to the real that it had. */
static __always_inline void end_rule_of_moved(const struct packet *packet, const struct flow_key *key,
					      const struct vip_meta *vip, __u32 mark, struct route *marked,
					      struct report *report, int family)
{
#if USES_MARKS && defined(ROUTES_BY_ID)
	if (mark)
		route_edge_by_mark(marked, packet, mark, family);
	if (marked->real || real_by_rule(key, vip)) {
		end_route(key);
		report->kind = REPORT_MOVED;
	}
#endif
}

/* `device`: that the packet came by. `mark`: that of a packet which could not be sent by it; 0: no mark. */
static __always_inline int slow_path(struct xdp_md *ctx, struct packet *packet, const struct device *device, __u32 mark,
				     int family)
{
	struct hashed_ports ports = {.sport = packet->flow.sport, .dport = packet->flow.dport};
	struct flow_key key = connection_key(packet, family);
	struct route marked = {}, route = {};
	struct report report = {};
	struct vip_meta *vip;
	enum id_result by_id;
	void *lru;

	set_vip_port(&ports, packet->flow.dport);
	vip = find_vip(packet, &ports, family);
	if (!vip)
		return because(packet, REASON_NOT_A_VIP, XDP_PASS);
	note_vip(packet, vip->vip_num);
	count(ACCEL_SLOW);
	if (is_too_big(packet))
		return answer_too_big(ctx, packet, family);
	if (USES_MARKS && mark && is_tcp_edge(packet) && !is_error(packet))
		route_edge_by_mark(&marked, packet, mark, family);
	lru = lru_of_this_cpu();
	note_reason(packet, REASON_SERVER_ID);
	by_id = route_by_id(ctx, packet, vip, lru, &key, &route, family);
	if (by_id == ID_NONE)
		route_by_flow(ctx, packet, &key, &ports, vip, lru, &marked, &route, &report, family);
	else if (by_id == ID_MOVES_FLOW)
		end_rule_of_moved(packet, &key, vip, mark, &marked, &report, family);
	/* Misses are counted before look-ups, and count_slow() before send_to_real(): see counters.h. */
	count_v1(STATS_LRU);
	if (!route.real)
		return because(packet, by_id == ID_NONE ? REASON_NO_REAL : REASON_UNKNOWN_ID, XDP_DROP);
	route.vip_num = vip->vip_num;
	set_vip_flags(&route, vip->flags);
	if (marked.real && report.kind == REPORT_MOVED)
		void_mark(mark);
	if (report.kind && !is_local(&route))
		report_flow(ctx, packet, device, vip->vip_num, route.real_key, &report, family);
	count_slow(vip->vip_num, route.real_key);
	packet->flow.sport = ports.sport; /* what the hash ignores, the outer header does not show */
	return send_to_real(ctx, packet, device, &route, family);
}
