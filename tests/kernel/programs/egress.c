// SPDX-License-Identifier: GPL-2.0-only
// A TC program: counts each packet, and answers VERDICT.
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "lib/map_handle.h"

int egress(struct __sk_buff *skb)
{
	__u32 key = 0;
	__u64 *count = bpf_map_lookup_elem(MAP(counts), &key);

	if (count)
		__sync_fetch_and_add(count, 1);
	return VERDICT;
}
