// SPDX-License-Identifier: GPL-2.0-only
// Finds an inner map, jumps through a program array, redirects through a device map.
#include <linux/bpf.h>

#define MAP(m) ((void *)bpf_pseudo_fd(1, FD_##m))

int inner_map(struct xdp_md *ctx)
{
	__u32 key = 1, zero = 0;
	void *inner = bpf_map_lookup_elem(MAP(outer), &key);
	if (!inner)
		return XDP_ABORTED;
	__u32 *verdict = bpf_map_lookup_elem(inner, &zero);
	return verdict ? *verdict : XDP_ABORTED;
}

int jump(struct xdp_md *ctx)
{
	/* The compiler's own header spells this helper in another way. */
	void (*tail_call)(void *, void *, __u32) = (void *)BPF_FUNC_tail_call;
	tail_call(ctx, MAP(programs), 2);
	return XDP_ABORTED;
}

int redirect(struct xdp_md *ctx)
{
	return bpf_redirect_map(MAP(devices), 0, XDP_DROP);
}
