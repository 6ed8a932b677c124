// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes each repetition of a test run a packet of another flow and calls the program under test.
 *
 *   last frame ──► rewind ──► next flow's addresses ──► mark ──► tail call ──► the program, as deployed
 *
 * Build-time choices: IPV6, FRAME_BYTES, SERVICES, PICK_AT_RANDOM, SCATTERED, MARKS (none: no metadata), FLOW_AT (offset
 * of the flow's IP header, when it is not behind an untagged Ethernet header), FD_<map>.
 */
#include <linux/bpf.h>

#ifdef MARKS
#include "flow_mark.h"
#endif
#include "numbered_flow.h"
#include "pick.h"
#include "rewind.h"

int bench_source(struct xdp_md *ctx)
{
	void (*tail_call)(void *, void *, __u32) = (void *)BPF_FUNC_tail_call;
	__u32 slot = 0, flow;
	struct bench_state *state = bpf_map_lookup_elem(MAP(bench_state), &slot);

	if (!state || rewind_frame(ctx))
		return XDP_ABORTED;
	flow = pick_flow(state);
	if (write_flow(ctx, flow))
		return XDP_ABORTED;
#ifdef MARKS
	if (push_mark(ctx, flow))
		return XDP_ABORTED;
#endif
	tail_call(ctx, MAP(bench_target), 0);
	return XDP_ABORTED;
}
