// SPDX-License-Identifier: GPL-2.0-only
// Stores the interface and receive queue that the packet claims to have come by.
#include <linux/bpf.h>

#define MAP(m) ((void *)bpf_pseudo_fd(1, FD_##m))

int interface(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct {
		__u32 ifindex, queue;
	} *seen = bpf_map_lookup_elem(MAP(seen), &zero);
	if (!seen)
		return XDP_ABORTED;
	seen->ifindex = ctx->ingress_ifindex;
	seen->queue = ctx->rx_queue_index;
	return XDP_PASS;
}
