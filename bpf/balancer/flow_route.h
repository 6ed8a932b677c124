/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where flows with rules go. The connection table sees no packet of theirs, so it forgets them; when the rules vanish,
 * their packets must find the same real, whatever the ring says by then. User space writes a flow's route before its
 * rule is installed, and removes it when the rule is gone and the flow is back in the connection table.
 */
#pragma once

#include "lib/flow_key.h"
#include "lib/map_handle.h"
#include "lib/uses_marks.h"
#include "katran_abi.h"

/* By the flow's key in the connection table. */
struct hw_accel_route {
	__u32 vip_num;
	__u32 real_key;
};

/* The number of the real to which a flow with a rule goes, 0 for all other flows. */
static __always_inline __u32 real_by_rule(const struct flow_key *key, const struct vip_meta *vip)
{
#if USES_MARKS
	struct hw_accel_route *found;

	if (vip->flags & (VIP_LRU_BYPASS | VIP_HASH_DPORT_ONLY)) /* no rules for their flows */
		return 0;
	found = bpf_map_lookup_elem(MAP(hw_accel_routes), key);
	return found && found->vip_num == vip->vip_num ? found->real_key : 0;
#else
	return 0;
#endif
}

/* A new connection has the flow's addresses. */
static __always_inline void end_route(const struct flow_key *key)
{
#if USES_MARKS
	bpf_map_delete_elem(MAP(hw_accel_routes), key);
#endif
}
