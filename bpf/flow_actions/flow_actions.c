// SPDX-License-Identifier: GPL-2.0-only
/*
 * Actions for flows that an application has named.
 *
 *   frame ──► mark? ──► entry of the mark ──► check ──► action ──► verdict, or the next function of the chain
 *               │                any mismatch │           ▲
 *               └── headers ──────────────────┴► filter ──► entries
 *
 * Build-time choices: CARRIER_*, MARK_IS_FLOW | MARK_IS_TARGET, MARKED_LOOK_UP, MISSING_INTERFACE, FILTER_LOG2,
 * BUCKETS_LOG2, SLOTS, CHAIN_NEXT, and FD_<map> for every map.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>

#include "lib/carriers/carrier.h"
#include "lib/chain.h"
#include "actions.h"
#include "counters.h"
#include "headers.h"
#include "look_up.h"
#include "mark.h"

/* `family` is a constant in both calls: the compiler makes separate code for each. */
static __always_inline int handle(struct xdp_md *ctx, struct flow_totals *totals, void *data, void *data_end,
				  int family)
{
	struct match_key key;
	struct hit hit = {};
	__u64 counted = totals->zero; /* by the NIC */

#if USES_MARKS
	__u32 mark = carrier_mark(ctx);

	if (mark) {
		enum mark_result result = follow_mark(&hit, mark, data, data_end, family);

		if (result == MARK_OTHER)
			totals->others[MARK_MISMATCH] += 1;
		else if (result == MARK_NOT_OURS)
			totals->others[MARK_UNKNOWN] += 1;
		else if (hit.target)
			return act(ctx, totals, hit.target, BY_MARK, family);
		else
			counted = 1;
	}
#endif
	if (!read_key(&key, data, data_end, family)) {
		totals->others[NOT_IP] += 1;
		return GO_ON;
	}
	look_up(&hit, &key, totals, family);
	if (!hit.target) {
		totals->others[NO_MATCH] += 1;
		return GO_ON;
	}
	if (!counted)
		count_packet(hit.slot, data_end - data);
	return act(ctx, totals, hit.target, BY_LOOK_UP, family);
}

int flow_actions_ingress(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct flow_totals *totals = find_totals();
	struct ethhdr *eth = data;
	int verdict = GO_ON;

	if (!totals || (void *)(eth + 1) > data_end)
		return chain_next(ctx, XDP_PASS);
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		verdict = handle(ctx, totals, data, data_end, AF_INET);
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		verdict = handle(ctx, totals, data, data_end, AF_INET6);
	else
		totals->others[NOT_IP] += 1;
	return verdict == GO_ON ? chain_next(ctx, XDP_PASS) : verdict;
}
