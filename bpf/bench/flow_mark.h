/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The mark that a NIC would have set: flow n has mark 1 + n % MARKS, so that flows share marks where there are fewer.
 * It is computed as the flow is: a table of marks would push out of the cache what the program under test needs.
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
