/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Counters of each CPU: of entries, and of the program as a whole.
 *
 * Build-time choice: SLOTS, how many entries have counters. flow_counts has SLOTS elements for CPU 0, then for CPU 1, …:
 * a per-CPU array would read one cache line more, and user space could not read it without system calls.
 */
#pragma once

#include <linux/types.h>

#include "lib/map_handle.h"

/* Of an entry: packets that were looked up. Those that its rule on the NIC marks or drops are counted there. */
struct flow_count {
	__u64 packets;
	__u64 bytes; /* of frames */
	__u64 last_seen; /* in timer ticks, see clock.c; 0: never */
};

enum flow_action {
	FLOW_NOTHING, /* of a target that is not set */
	FLOW_DROP,
	FLOW_PASS,
	FLOW_COUNT,
	FLOW_REDIRECT,
	FLOW_SET_DSCP,
	FLOW_POLICE,
	FLOW_CPU,
	FLOW_ACTIONS,
};

/* How the entry of a packet was found. */
enum flow_path {
	BY_LOOK_UP,
	BY_MARK,
	FLOW_PATHS,
};

/* Slots of flow_totals.others; plugins/flow_actions/layouts.py has them in the same order. */
enum flow_other {
	NO_MATCH, /* IP without an entry */
	NOT_IP, /* neither IPv4 nor IPv6, or without a whole header */
	MARK_UNKNOWN, /* looked up: nothing is known of the mark */
	MARK_MISMATCH, /* looked up: the packet is not one that the mark stands for */
	POLICED, /* dropped, since it exceeds its rate */
	INTERFACE_MISSING,
	CPU_MISSING,
	NOT_CHANGED, /* no room for the new DSCP's header: it went on as it was */
	FLOW_OTHERS,
};

struct flow_totals {
	__u64 actions[FLOW_PATHS * FLOW_ACTIONS]; /* packets by path, then action */
	__u64 others[FLOW_OTHERS];
	__u64 zero; /* always, but the verifier does not know it: see nothing_found() */
};

static __always_inline struct flow_totals *find_totals(void)
{
	__u32 slot = 0;

	return bpf_map_lookup_elem(MAP(flow_totals), &slot);
}

static __always_inline void count_packet(__u32 slot, __u64 bytes)
{
	__u32 place = bpf_get_smp_processor_id() * SLOTS + slot;
	struct flow_count *count = bpf_map_lookup_elem(MAP(flow_counts), &place);

	if (!count)
		return;
	count->packets += 1;
	count->bytes += bytes;
	count->last_seen = bpf_jiffies64();
}
