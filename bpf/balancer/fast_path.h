/* SPDX-License-Identifier: GPL-2.0-only */
/* From a mark to the real: array reads only. */
#pragma once

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "mark_entry.h"
#include "real.h"

#if USES_MARKS
/* Sets the route's real. ACCEL_STALE when VIP or real are no longer those that the entry was written for. */
static __always_inline enum accel_counter live_route(struct route *route, const struct vip_by_id *vip,
						     __u32 vip_generation, __u32 real_generation)
{
	route->real = live_real(route->real_key);
	if (!route->real || !is_live(vip, vip_generation, route->real_key, real_generation))
		return ACCEL_STALE;
	return ACCEL_FAST;
}
#endif

/* Sets `route` by a mark. ACCEL_FAST, or the counter of the reason why the packet cannot be sent by the mark. */
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
	set_vip_flags(route, vip->flags);
	return live_route(route, vip, entry->vip_generation, entry->real_generation);
}
#endif

#ifdef MARK_IS_TARGET
static __always_inline enum accel_counter route_by_mark(struct route *route, const struct packet *packet, __u32 mark,
							int family)
{
	struct hw_accel_target *target = bpf_map_lookup_elem(MAP(hw_accel_targets), &mark);
	struct vip_by_id *vip;
	enum accel_counter result;

	if (!target || !target->vip_generation)
		return ACCEL_UNKNOWN_MARK;
	route->vip_num = target->vip_num;
	route->real_key = target->real_key;
	vip = bpf_map_lookup_elem(MAP(vip_map_by_id), &target->vip_num);
	if (!vip)
		return ACCEL_STALE;
	set_vip_flags(route, vip->flags);
	result = live_route(route, vip, target->vip_generation, target->real_generation);
	if (result == ACCEL_FAST && !vip_matches(vip, packet, family))
		return ACCEL_OTHER_FLOW;
	return result;
}
#endif

#if USES_MARKS
/* HASH_NO_SRC_PORT: the outer header does not show the source port either. */
static __always_inline void hide_source_port(struct packet *packet, const struct route *route)
{
#ifdef HIDES_SOURCE_PORT
	if (route->vip_flags & VIP_HASH_NO_SRC_PORT)
		packet->flow.sport = 0;
#endif
}

/* Sets `route` by a mark, and counts the result. True when the packet can be sent by the mark. */
static __always_inline int follow_mark(struct route *route, const struct packet *packet, __u32 mark, int family)
{
	enum accel_counter result = route_by_mark(route, packet, mark, family);

	count(result);
	return result == ACCEL_FAST;
}

/* Erases the entry of a flow's mark: the connection is over, but a rule may still set the mark. */
static __always_inline void void_mark(__u32 mark)
{
#ifdef MARK_IS_FLOW
	struct hw_accel_flow *entry = bpf_map_lookup_elem(MAP(hw_accel_mapping), &mark);

	if (entry)
		*(volatile __u32 *)&entry->vip_generation = 0;
#endif
}

/* Sets `route` by the mark of a packet that takes the slow path anyway. Without a valid mark it has no real. */
static __always_inline void route_edge_by_mark(struct route *route, const struct packet *packet, __u32 mark, int family)
{
	if (route_by_mark(route, packet, mark, family) == ACCEL_FAST)
		return;
	route->real = NULL;
	route->real_key = 0;
}
#else
static __always_inline void void_mark(__u32 mark)
{
}

static __always_inline void route_edge_by_mark(struct route *route, const struct packet *packet, __u32 mark, int family)
{
}
#endif
