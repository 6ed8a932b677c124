/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From a mark to the target. A mark is a hint.
 *
 * MARK_IS_TARGET: a mark stands for a target that many entries share. The packet must match what the target requires.
 * MARK_IS_FLOW: a mark stands for one entry. The packet must match it, as in a look-up.
 * MARKED_LOOK_UP: a mark only says that the NIC has counted the packet; its entry is looked up.
 * Neither of the first two: the program uses no marks.
 */
#pragma once

#include <linux/types.h>

#include "lib/map_handle.h"
#include "lib/uses_marks.h"
#include "headers.h"
#include "look_up.h"
#include "target.h"

/* Value of flow_marks. target 0: the mark means nothing. */
#ifdef MARK_IS_FLOW
struct flow_mark {
	__u32 target;
	__u32 slot;
	__u32 family; /* 4 or 6 */
	__u32 pad;
	struct flow_pattern match;
} __attribute__((aligned(8)));
#else
struct flow_mark {
	__u32 target;
};
#endif

enum mark_result {
	MARK_OURS, /* do what the mark says; the NIC has counted the packet */
	MARK_NOT_OURS, /* nothing is known of it */
	MARK_OTHER, /* it stands for other packets */
};

#if USES_MARKS
static __always_inline struct flow_mark *find_mark(__u32 mark)
{
	struct flow_mark *entry = bpf_map_lookup_elem(MAP(flow_marks), &mark);

	return entry && entry->target ? entry : NULL;
}

/* Whether the frame is one that the mark stands for. Reads its headers only where that is needed. */
static __always_inline int mark_fits(const struct flow_mark *entry, void *data, void *data_end, int family)
{
	const struct flow_pattern *pattern;
	struct match_key key;

#ifdef MARK_IS_FLOW
	if (!is_family(entry->family, family))
		return 0;
	pattern = &entry->match;
#else
	struct flow_target *target = find_target(entry->target);

	if (!target)
		return 0;
	if (!target->checked)
		return 1;
	if (target->family && !is_family(target->family, family))
		return 0;
	pattern = &target->require;
#endif
	return read_key(&key, data, data_end, family) && fits(pattern, &key, family);
}

/* Sets `hit` if the result is MARK_OURS and the packet need not be looked up. */
static __always_inline enum mark_result follow_mark(struct hit *hit, __u32 mark, void *data, void *data_end, int family)
{
	struct flow_mark *entry = find_mark(mark);

	if (!entry)
		return MARK_NOT_OURS;
#ifndef MARKED_LOOK_UP
	if (!mark_fits(entry, data, data_end, family))
		return MARK_OTHER;
	hit->target = entry->target;
#endif
	return MARK_OURS;
}
#endif
