// SPDX-License-Identifier: GPL-2.0-only
// A record per packet in the perf buffer of this CPU; every ODD-th has another size.
#include "events.h"

int perf(struct xdp_md *ctx)
{
	__u32 *next = sequence();
	if (!next)
		return XDP_ABORTED;

	int failed;
	if (*next % ODD == ODD - 1) {
		struct odd_record odd = {};
		failed = bpf_perf_event_output(ctx, MAP(events), BPF_F_CURRENT_CPU, &odd, sizeof(odd));
	} else {
		struct record record;
		fill(&record, *next);
		failed = bpf_perf_event_output(ctx, MAP(events), BPF_F_CURRENT_CPU, &record, sizeof(record));
	}
	*next += 1;
	return failed ? XDP_DROP : XDP_PASS;
}
