// SPDX-License-Identifier: GPL-2.0-only
// Counts the packet under the key COUNT_AS and answers VERDICT.
#include <linux/bpf.h>

#define MAP(m) ((void *)bpf_pseudo_fd(1, FD_##m))

int verdict_prog_with_a_long_name(struct xdp_md *ctx)
{
	__u32 key = COUNT_AS;
	__u64 *count = bpf_map_lookup_elem(MAP(counts), &key);
	if (count)
		__sync_fetch_and_add(count, 1);
	return VERDICT;
}
