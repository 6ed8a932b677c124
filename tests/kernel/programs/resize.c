// SPDX-License-Identifier: GPL-2.0-only
// Puts HEAD bytes of 0xab in front of the frame.
#include <linux/bpf.h>

int resize(struct xdp_md *ctx)
{
	if (bpf_xdp_adjust_head(ctx, -HEAD))
		return XDP_ABORTED;
	__u8 *data = (void *)(long)ctx->data;
	if (data + HEAD > (__u8 *)(long)ctx->data_end)
		return XDP_ABORTED;
	for (int i = 0; i < HEAD; i++)
		data[i] = 0xab;
	return XDP_TX;
}
