// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floors: no program that encapsulates can do less. One does nothing, one moves the head, one removes the metadata and
 * moves the head. OUTER_BYTES: size of the outer header that such a program writes. And one drops: no program that
 * drops on an interface can do less.
 */
#include <linux/bpf.h>
#include <linux/types.h>

int bench_noop(struct xdp_md *ctx)
{
	return XDP_TX;
}

int bench_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
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
