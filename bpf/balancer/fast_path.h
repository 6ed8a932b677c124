/* SPDX-License-Identifier: GPL-2.0-only */
/* From a mark to the destination: array reads only. */
#pragma once

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "mark_entry.h"
#include "real.h"

#if USES_MARKS
/* What an entry says is true while VIP and real are those that it was written for. */
static __always_inline enum accel_counter live_route(struct route *route, const struct vip_by_id *vip,
						     __u32 vip_generation, __u32 real_generation)
{
	route->real = live_real(route->real_key);
	if (!route->real || !is_live(vip, vip_generation, route->real_key, real_generation))
		return ACCEL_STALE;
	return ACCEL_FAST;
}
#endif

/* Where a mark leads this packet: ACCEL_FAST when `route` tells, any other counter says why it leads nowhere. */
#ifdef MARK_IS_FLOW
static __always_inline enum accel_counter route_by_mark(struct route *route, const struct packet *packet, __u32 mark,
							int family)
{
	struct hw_accel_flow *entry = bpf_map_lookup_elem(MAP(hw_accel_mapping), &mark);
	struct vip_by_id *vip;

	if (!entry || !entry->vip_generation)
		return ACCEL_UNKNOWN_MARK;
	if (!flow_matches(entry, packet, family))
		return ACCEL_OTHER_FLOW;
	route->vip_num = entry->vip_num;
	route->real_key = entry->real_key;
	vip = bpf_map_lookup_elem(MAP(vip_map_by_id), &entry->vip_num);
	if (!vip)
		return ACCEL_STALE;
	return live_route(route, vip, entry->vip_generation, entry->real_generation);
}
#endif

#ifdef MARK_IS_TARGET
static __always_inline enum accel_counter route_by_mark(struct route *route, const struct packet *packet, __u32 mark,
							int family)
{
	struct hw_accel_target *target = bpf_map_lookup_elem(MAP(hw_accel_targets), &mark);
	struct vip_by_id *vip;
	enum accel_counter found;

	if (!target || !target->vip_generation)
		return ACCEL_UNKNOWN_MARK;
	route->vip_num = target->vip_num;
	route->real_key = target->real_key;
	vip = bpf_map_lookup_elem(MAP(vip_map_by_id), &target->vip_num);
	if (!vip)
		return ACCEL_STALE;
	found = live_route(route, vip, target->vip_generation, target->real_generation);
	if (found == ACCEL_FAST && !vip_matches(vip, packet, family))
		return ACCEL_OTHER_FLOW;
	return found;
}
#endif

#if USES_MARKS
/* Whether the mark leads the packet anywhere, which is counted: `route` tells where. */
static __always_inline int follow_mark(struct route *route, const struct packet *packet, __u32 mark, int family)
{
	enum accel_counter found = route_by_mark(route, packet, mark, family);

	count(found);
	return found == ACCEL_FAST;
}

/* Makes the mark of a flow void: its connection is over, though a rule may still set the mark. */
static __always_inline void void_mark(__u32 mark)
{
#ifdef MARK_IS_FLOW
	struct hw_accel_flow *entry = bpf_map_lookup_elem(MAP(hw_accel_mapping), &mark);

	if (entry)
		*(volatile __u32 *)&entry->vip_generation = 0;
#endif
}

/* The mark of a packet that goes the slow way all the same; a mark that leads nowhere leaves `route` empty. */
static __always_inline void route_edge_by_mark(struct route *route, const struct packet *packet, __u32 mark, int family)
{
	if (route_by_mark(route, packet, mark, family) != ACCEL_FAST)
		route->real = NULL;
}
#else
static __always_inline void void_mark(__u32 mark)
{
}

static __always_inline void route_edge_by_mark(struct route *route, const struct packet *packet, __u32 mark, int family)
{
}
#endif
