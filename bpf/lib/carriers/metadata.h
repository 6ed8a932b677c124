/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Carrier `metadata`: the driver writes the mark as a u32 in host byte order at data_meta, in front of the packet.
 * Trust: only the driver writes there, so a mark is as reliable as the NIC's classification.
 */
#pragma once

#include <linux/types.h>

struct xdp_md_mark {
	__u32 mark;
} __attribute__((aligned(4)));

static __always_inline __u32 carrier_mark(struct xdp_md *ctx)
{
	struct xdp_md_mark *meta = (void *)(long)ctx->data_meta;

	if ((void *)(meta + 1) > (void *)(long)ctx->data)
		return 0;
	return meta->mark;
}

/*
 * Removes the metadata. To be called before bpf_xdp_adjust_head, which would move the metadata as well: that costs
 * several times as much as this call.
 */
static __always_inline void carrier_release(struct xdp_md *ctx)
{
	int length = ctx->data - ctx->data_meta;

	if (length > 0)
		bpf_xdp_adjust_meta(ctx, length);
}
