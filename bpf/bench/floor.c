// SPDX-License-Identifier: GPL-2.0-only
/*
 * What no program that encapsulates can go below: nothing at all, a moved head, and a moved head after the
 * metadata was dropped. OUTER_BYTES is the header that would be written there.
 */
#include <linux/bpf.h>
#include <linux/types.h>

int bench_noop(struct xdp_md *ctx)
{
	return XDP_TX;
}

int bench_head(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_head(ctx, -OUTER_BYTES) ? XDP_ABORTED : XDP_TX;
}

int bench_metadata(struct xdp_md *ctx)
{
	if (bpf_xdp_adjust_meta(ctx, ctx->data - ctx->data_meta))
		return XDP_ABORTED;
	return bpf_xdp_adjust_head(ctx, -OUTER_BYTES) ? XDP_ABORTED : XDP_TX;
}
