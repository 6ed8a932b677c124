// SPDX-License-Identifier: GPL-2.0-only
// Reads a u32 in front of the frame, writes it plus ADD back, counts frames, answers by the first byte.
#include <linux/bpf.h>
#include <linux/if_ether.h>

#define MAP(m) ((void *)bpf_pseudo_fd(1, FD_##m))

int meta_prog(struct xdp_md *ctx)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(MAP(counts), &zero);
	if (count)
		__sync_fetch_and_add(count, 1);

	__u32 value = 7;
	__u32 *mark = (void *)(long)ctx->data_meta;
	if ((void *)(mark + 1) <= (void *)(long)ctx->data)
		value = *mark;
	else if (bpf_xdp_adjust_meta(ctx, -4))
		return XDP_ABORTED;

	mark = (void *)(long)ctx->data_meta;
	if ((void *)(mark + 1) > (void *)(long)ctx->data)
		return XDP_ABORTED;
	*mark = value + ADD;

	__u8 *frame = (void *)(long)ctx->data;
	if (frame + 14 > (__u8 *)(long)ctx->data_end)
		return XDP_DROP;
	return frame[0];
}
