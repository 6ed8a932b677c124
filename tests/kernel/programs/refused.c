// SPDX-License-Identifier: GPL-2.0-only
// Compiles, but reads a packet without looking at its end.
#include <linux/bpf.h>

int refused(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	return data[20];
}
