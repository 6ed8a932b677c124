/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What is done to a packet. GO_ON: the next function of the chain gets it; anything else is the program's verdict.
 *
 * Build-time choice: MISSING_INTERFACE, the verdict for packets whose interface is not there: XDP_DROP or XDP_PASS.
 */
#pragma once

#include <linux/types.h>

#include "lib/carriers/carrier.h"
#include "lib/map_handle.h"
#include "counters.h"
#include "dscp.h"
#include "police.h"
#include "target.h"

#define GO_ON (-1)

/* The mark must not travel to the other interface: what receives there could take it for one of its own. */
static __always_inline int redirect(struct xdp_md *ctx, struct flow_totals *totals, __u32 link)
{
	int verdict;

	carrier_release(ctx);
	verdict = bpf_redirect_map(MAP(flow_links), link, MISSING_INTERFACE);
	if (verdict != XDP_REDIRECT)
		totals->others[INTERFACE_MISSING] += 1;
	return verdict;
}

static __always_inline int move_to_cpu(struct xdp_md *ctx, struct flow_totals *totals, __u32 cpu)
{
	int verdict;

	carrier_release(ctx);
	verdict = bpf_redirect_map(MAP(flow_cpus), cpu, XDP_PASS);
	if (verdict != XDP_REDIRECT)
		totals->others[CPU_MISSING] += 1;
	return verdict;
}

static __always_inline int act(struct xdp_md *ctx, struct flow_totals *totals, __u32 number, enum flow_path path,
			       int family)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct flow_target *target = find_target(number);
	__u32 action;

	if (!target)
		return GO_ON;
	action = target->action & (FLOW_ACTIONS - 1);
	totals->actions[path * FLOW_ACTIONS + action] += 1;
	switch (action) {
	case FLOW_DROP:
		return XDP_DROP;
	case FLOW_PASS:
		return XDP_PASS;
	case FLOW_REDIRECT:
		return redirect(ctx, totals, target->argument);
	case FLOW_CPU:
		return move_to_cpu(ctx, totals, target->argument);
	case FLOW_POLICE:
		if (conforms(target, number, data_end - data))
			return GO_ON;
		totals->others[POLICED] += 1;
		return XDP_DROP;
	case FLOW_SET_DSCP:
		if (!set_dscp(data, data_end, target->argument, family))
			totals->others[NOT_CHANGED] += 1;
		return GO_ON;
	default:
		return GO_ON;
	}
}
