/* SPDX-License-Identifier: GPL-2.0-only */
/* From a mark to the destination: array reads only. XDP_PASS means "not by this mark": take the slow path. */
#pragma once

#include "encap.h"
#include "hw_accel.h"

#ifdef MARK_IS_FLOW
static __always_inline int fast_path(struct xdp_md *ctx, const struct packet *packet, __u32 mark, int family)
{
	struct hw_accel_flow *entry = bpf_map_lookup_elem(MAP(hw_accel_mapping), &mark);
	struct vip_by_id *vip;

	if (!entry || !entry->vip_generation) {
		count(ACCEL_UNKNOWN_MARK);
		return XDP_PASS;
	}
	if (!flow_matches(entry, packet, family)) {
		count(ACCEL_OTHER_FLOW);
		return XDP_PASS;
	}
	vip = bpf_map_lookup_elem(MAP(vip_map_by_id), &entry->vip_num);
	if (!vip || !is_live(vip, entry->vip_generation, entry->real_key, entry->real_generation)) {
		count(ACCEL_STALE);
		return XDP_PASS;
	}
	count(ACCEL_FAST);
	return send_to_real(ctx, packet, entry->vip_num, entry->real_key, family);
}
#endif

#ifdef MARK_IS_TARGET
static __always_inline int fast_path(struct xdp_md *ctx, const struct packet *packet, __u32 mark, int family)
{
	struct hw_accel_target *target = bpf_map_lookup_elem(MAP(hw_accel_targets), &mark);
	struct vip_by_id *vip;

	if (!target || !target->vip_generation) {
		count(ACCEL_UNKNOWN_MARK);
		return XDP_PASS;
	}
	vip = bpf_map_lookup_elem(MAP(vip_map_by_id), &target->vip_num);
	if (!vip || !is_live(vip, target->vip_generation, target->real_key, target->real_generation)) {
		count(ACCEL_STALE);
		return XDP_PASS;
	}
	if (!vip_matches(vip, packet, family)) {
		count(ACCEL_OTHER_FLOW);
		return XDP_PASS;
	}
	count(ACCEL_FAST);
	return send_to_real(ctx, packet, target->vip_num, target->real_key, family);
}
#endif
