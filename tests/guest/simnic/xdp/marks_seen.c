// SPDX-License-Identifier: GPL-2.0-only
/* Counts frames by the mark in their metadata (u64 by u32; NO_MARK without any metadata), then answers VERDICT. */
#include <linux/bpf.h>

#define MAP(m) ((void *)bpf_pseudo_fd(1, FD_##m))

int marks_seen(struct xdp_md *ctx)
{
	__u32 *meta = (void *)(long)ctx->data_meta;
	__u32 mark = NO_MARK;
	__u32 zero = 0;
	__u64 one = 1;

	if ((void *)(meta + 1) <= (void *)(long)ctx->data)
		mark = *meta;
	__u64 *count = bpf_map_lookup_elem(MAP(marks), &mark);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(MAP(marks), &mark, &one, BPF_NOEXIST);

	__u32 *target = bpf_map_lookup_elem(MAP(target), &zero);
	if (VERDICT == XDP_REDIRECT && target)
		return bpf_redirect(*target, 0);
	return VERDICT;
}
