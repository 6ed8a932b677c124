/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The mark that a NIC would set: flow n has mark 1 + n % MARKS, so flows share marks when there are fewer marks.
 * It is computed like the flow: a table of marks would take cache from the program under test.
 */
#pragma once

#include <linux/types.h>

/* Puts the mark where a driver would: a u32 in host byte order in front of the packet. */
static __always_inline int push_mark(struct xdp_md *ctx, __u32 flow)
{
	__u32 *meta;

	if (ctx->data_meta == ctx->data && bpf_xdp_adjust_meta(ctx, -(int)sizeof(*meta)))
		return -1;
	meta = (void *)(long)ctx->data_meta;
	if ((void *)(meta + 1) > (void *)(long)ctx->data)
		return -1;
	*meta = 1 + flow % MARKS;
	return 0;
}
